"""What `graftlm serve` can be told; nothing heavy is imported here, so that the command line may read the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from graftlm.errors import InputError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
COUNTS = ("max_batch_size", "max_queue", "max_tokens_limit", "max_body_bytes", "max_connections")
SECONDS = ("request_seconds", "arrival_seconds", "grace_seconds")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the server listens and what a client may ask of it.

    Raises InputError for a value out of range, and for a host that others can reach without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_batch_size: int = 16  # sequences that are written at once
    max_queue: int = 128  # sequences that wait, and the most that one request may ask for
    max_tokens_limit: int = 1024  # a request's `max_tokens`, and what a chat gets that names none
    max_body_bytes: int = 4 * 1024 * 1024
    max_connections: int = 512
    request_seconds: float = 300.0
    arrival_seconds: float = 30.0  # for a request's head, for its body, and for a client that reads nothing
    grace_seconds: float = 30.0  # for what runs when the server is told to stop
    gather_seconds: float = 0.005  # how long an idle model waits for company to the first request

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but at least 1 is needed")
        for name in SECONDS:
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but more than 0 is needed")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port is {self.port}, but 0 to 65535 is possible")
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
