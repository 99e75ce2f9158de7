"""How long a client may take to send and to read, and how many may be connected at once.

uvicorn closes connections that are idle after an answer. Without more, one that sends half a head stays open for ever,
so does one that reads nothing of its answer, and at the limit of open files nobody else is let in.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from graftlm.errors import InputError
from graftlm.runs.console import say
from graftlm.serve.settings import ServeSettings

OWN_FILES = 64  # what the server has open besides its connections
FEWEST = 16
LONGEST_BACKLOG = 512


@dataclass(frozen=True)
class Limits:
    """The state that the connections of one server share."""

    connections: int
    seconds: float
    waiting: dict[Connection, None] = field(default_factory=dict)
    """Those without a whole request that is not answered yet, the one that has waited longest first."""


class Connection(H11Protocol):
    """uvicorn's, which is cut when a request's head does not come in time or its answer is not read.

    At the limit the connection that has waited longest for a request makes room for the new one, so that a client who
    asks at once is answered however many others are silent.
    """

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = limits
        self.head_timer: asyncio.TimerHandle | None = None
        self.read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.follow()
        # Two rounds of the event loop later whatever the others have sent has been read.
        self.loop.call_soon(self.loop.call_soon, self.make_room)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.follow()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.forget()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.read_timer = self.loop.call_later(self.limits.seconds, self.cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.read_timer is not None:
            self.read_timer.cancel()

    def follow(self) -> None:
        """Start or end the waiting for a request; the application has its own time for a body."""
        if self.transport.is_closing() and self not in self.connections:
            return
        answered = self.cycle is None or self.cycle.response_complete
        if answered or self.cycle.more_body:
            self.limits.waiting.setdefault(self)
        else:
            self.limits.waiting.pop(self, None)
        if answered and self.head_timer is None:
            self.head_timer = self.loop.call_later(self.limits.seconds, self.cut)
        elif not answered and self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def make_room(self) -> None:
        """Cut as many as are too many."""
        while len(self.connections) > self.limits.connections and self.limits.waiting:
            next(iter(self.limits.waiting)).cut()

    def cut(self) -> None:
        """Close without a word, whether the client reads or not."""
        self.forget()
        self.connections.discard(self)
        self.transport.abort()

    def forget(self) -> None:
        self.limits.waiting.pop(self, None)
        for timer in (self.head_timer, self.read_timer):
            if timer is not None:
                timer.cancel()


def room_for_connections(settings: ServeSettings) -> tuple[int, int]:
    """How many connections may be open, and how many more may be taken at once before the first of them is counted.

    The limit of open files is raised as far as the system allows.

    Raises:
        InputError: the limit is too low for a server.
    """
    if sys.platform == "win32":
        return settings.max_connections, LONGEST_BACKLOG
    import resource

    wanted = OWN_FILES + settings.max_connections + 4 * LONGEST_BACKLOG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    free = (wanted if soft == resource.RLIM_INFINITY else soft) - OWN_FILES
    connections = min(settings.max_connections, free // 2)
    if connections < min(FEWEST, settings.max_connections):
        raise InputError(f"at most {soft} files may be open at once, but a server needs more: raise ulimit -n")
    if connections < settings.max_connections:
        say(f"graftlm: at most {soft} files may be open at once, so at most {connections} connections; see ulimit -n")
    # Those of three rounds of the event loop are open before the first of them is cut, and of one more while it closes.
    return connections, min(LONGEST_BACKLOG, (free - connections) // 4)
