"""The options of `graftlm serve`; nothing heavy is imported here, so that the command line may read the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from graftlm.decoding.config import Drafting
from graftlm.errors import InputError
from graftlm.runs.config import option
from graftlm.runs.ranges import check_ranges

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the server listens and what a client may ask of it.

    Raises InputError for a value out of range, and for a host that others can reach without a key.
    """

    host: str = option("127.0.0.1", "Address to listen at; one that others reach needs --api-key.")
    port: int = option(8000, "Port to listen at; 0 takes any free one.", at_least=0, at_most=65535)
    api_key: str | None = option(
        None,
        "Key that clients must send. The variable GRAFTLM_API_KEY keeps it out of the list of processes.",
        variable="GRAFTLM_API_KEY",
        secret=True,
    )
    max_batch_size: int = option(16, "Sequences that are written at once.", at_least=1)
    max_queue: int = option(128, "Sequences that wait, and the most that one request may ask for.", at_least=1)
    max_tokens_limit: int = option(
        1024, "The most that a request's max_tokens may be, and what a chat gets that names none.", at_least=1
    )
    max_body_bytes: int = option(4 * 1024 * 1024, "Size of a request.", at_least=1)
    max_connections: int = option(512, "Connections at once.", at_least=1)
    request_seconds: float = option(300.0, "Time for a request.", above=0)
    arrival_seconds: float = option(
        30.0, "Time for a request's head and for its body to arrive, and for a client to read on.", above=0
    )
    grace_seconds: float = option(30.0, "Time for what runs when the server is told to stop.", above=0)
    gather_seconds: float = option(0.005, "How long an idle model waits for company to the first request.", at_least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("--api-key is empty; give a key, or leave it out")
        if self.api_key is None and not self.is_local:
            raise InputError(
                f"--host {self.host} lets others use the model; give --api-key KEY or set GRAFTLM_API_KEY, "
                "or stay with --host 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOCAL_HOSTS


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServeSettings, Drafting):
    """Options of `graftlm serve`."""

    model: str = option("smollm2-135m", "Hub id, folder or adapter folder.", argument="MODEL")

    def __post_init__(self) -> None:
        Drafting.__post_init__(self)
        ServeSettings.__post_init__(self)
