"""Listen, load, serve until told to stop, and finish what runs."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.errors import InputError
from graftlm.proxy.steering import load_steered
from graftlm.runs.console import say
from graftlm.runs.run import Run
from graftlm.serve.app import create_app
from graftlm.serve.batching import Engine
from graftlm.serve.connections import Connection, Limits, room_for_connections
from graftlm.serve.metrics import Metrics
from graftlm.serve.prompts import Prompts
from graftlm.serve.protocol import CompletionRequest
from graftlm.serve.settings import ServeConfig, ServeSettings

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# After the time for what runs: for the error that tells the rest of it, before connections are cut.
SECONDS_TO_SAY_SO = 2
SECONDS_BETWEEN_NEWS = 60


def run_serve(config: ServeConfig, run: Run) -> None:
    """Serve the model that `config` names, steered or with heads that draft as it says."""

    def load() -> tuple[Any, Any]:
        model, tokenizer = load_steered(config.model, config)
        return (model if config.heads is None else HeadsDecoding.load(model, config.heads)), tokenizer

    serve(load, config.model, config)


def serve(load: Callable[[], tuple[Any, Any]], name: str, settings: ServeSettings) -> None:
    """Serve the model that `load` gives, with its tokenizer, until SIGINT or SIGTERM.

    The port is taken first, so that one in use is noticed before a long loading.

    Raises:
        InputError: the port or host cannot be had.
    """
    with listening(settings) as listener, signals_end_quietly():
        model, tokenizer = load()
        app = create_app(model, tokenizer, name, settings)
        try_out(model, app.state.prompts, settings)
        config = uvicorn_config(app, settings)
        try:
            Server(config, app.state.engine, f"{name} at {address(listener)}/v1").run(sockets=[listener])
        finally:
            app.state.engine.stop()


def uvicorn_config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """uvicorn's settings, with limits on connections and on the log that it has none for."""
    connections, backlog = room_for_connections(settings)
    protocol: Any = partial(Connection, limits=Limits(connections, settings.arrival_seconds))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        backlog=backlog,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.grace_seconds) + SECONDS_TO_SAY_SO,
    )
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(NEWS)
    return config


def try_out(model: Any, prompts: Prompts, settings: ServeSettings) -> None:
    """Write one token of two prompts, so that a model that cannot write is found before a client asks.

    Raises:
        InputError: it cannot, most likely by its generation config.
    """
    request = CompletionRequest(model="", prompt=[[0], [0, 0]], max_tokens=1)
    sequences = prompts.sequences(request, [[0], [0, 0]], lambda piece: None)
    try:
        Engine(model, prompts.pad_token, settings, Metrics()).write(sequences)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"the model cannot write, see its generation_config.json: {reason}") from error


class Server(uvicorn.Server):
    """uvicorn, which tells the engine to drain as soon as a signal comes."""

    def __init__(self, config: uvicorn.Config, engine: Engine, what: str) -> None:
        super().__init__(config)
        self.engine = engine
        self.what = what

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            say(f"serving {self.what} (Ctrl-C stops)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()  # or the application would end with a long traceback

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second Ctrl-C ends at once.

        uvicorn's own does the same and raises the signal again in the end, for a status that is not 0.
        """
        self.engine.drain()
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True


class News(logging.Filter):
    """Lets each message through once a minute, since clients can cause any number, and none of a request that is cut.

    uvicorn logs a long traceback for each of those that are cut when the server has to end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False
        if record.created - self.logged.get(record.msg, 0) < SECONDS_BETWEEN_NEWS:
            return False
        self.logged[record.msg] = record.created
        return True


NEWS = News()


@contextmanager
def listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket that is bound, but takes no connection yet."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise InputError(
                f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; "
                "give another --port or --host"
            ) from error
        yield listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def signals_end_quietly() -> Iterator[None]:
    """Exit status 0 also for a signal before the server has taken the signals over."""

    def leave(sig: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = {sig: signal.signal(sig, leave) for sig in STOP_SIGNALS}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
