"""The process that rewards are computed in: it can hang, crash or print without harm to the trainer.

The trainer sends (columns, number of samples, chunk size); the worker answers with one reply for each chunk, in order.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from graftlm.errors import InputError

Function = Callable[..., Any]
"""TRL's reward function: called with lists as keywords, gives one value for each completion."""
Reply = tuple[str, Any]
"""("values", one float for each sample, or the text of what is no finite number), or (kind of failure, message)."""

START_SECONDS = 120.0  # to import what the reward needs
LONGEST_WAIT = 1e6  # what the system's poll takes, in seconds
FLOAT32_MAX = 3.4028234e38  # the trainer's rewards are float32
MESSAGE_LENGTH = 500


class Worker:
    """A process that holds one reward. It ends with `stop()`, with this object, or with the trainer.

    `load`, called there, gives the reward's function. Raises InputError where that fails, RuntimeError where the
    process does not come up.
    """

    def __init__(self, load: Callable[[], Function]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads' locks
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, load), name="reward", daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would go unnoticed
        self.stop = weakref.finalize(self, _stop, self._process, self._connection)
        kind, message = self.receive(START_SECONDS)
        if kind != "ready":
            self.stop()
            if kind == "refused":
                raise InputError(message)
            guard = "a script needs `if __name__ == '__main__':` around what it runs"
            raise RuntimeError(f"the reward's process does not start: {message}; {guard}")

    @property
    def alive(self) -> bool:
        return self.stop.alive and self._process.is_alive()

    def send(self, columns: Mapping[str, Any], count: int, size: int) -> None:
        """Ask for the rewards of `count` samples, in calls of `size`."""
        data = pickle.dumps((columns, count, size))
        with suppress(OSError):  # it has just died: the next `receive` says so
            self._connection.send_bytes(data)

    def receive(self, seconds: float) -> Reply:
        """The next reply. A worker that gives none within `seconds`, or dies, is stopped."""
        try:
            if self._connection.poll(min(seconds, LONGEST_WAIT)):
                return self._connection.recv()
        except (EOFError, OSError):
            self.stop()
            return "exception", f"the reward's process died: {_ending(self._process.exitcode)}"
        self.stop()
        return "time-out", f"no value after {seconds:g} s"


def _stop(process: SpawnProcess, connection: Connection) -> None:
    connection.close()
    if process.is_alive() and process.pid is not None:
        if os.name == "posix":
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(process.pid, signal.SIGKILL)  # what the reward started ends too
        process.kill()
    process.join()


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"


def serve(connection: Connection, load: Callable[[], Function]) -> None:
    """Answer the trainer until it closes `connection`; the worker runs this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's
    if os.name == "posix":
        os.setsid()
    sys.stdout = sys.stderr  # stdout holds the trainer's results
    os.dup2(2, 1)
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    try:
        function = load()
    except BaseException as error:
        connection.send(("refused", str(error) if isinstance(error, InputError) else describe(error)))
        return
    connection.send(("ready", ""))
    with suppress(EOFError, OSError):
        while True:
            columns, count, size = connection.recv()
            for start in range(0, count, size):
                chunk = rows(columns, count, start, start + size)
                connection.send(reply(function, chunk, min(size, count - start)))


def _end_with_trainer() -> None:
    """A killed trainer must not leave a reward behind that runs for ever."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        if os.name == "posix":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def rows(columns: Mapping[str, Any], count: int, start: int, stop: int) -> dict[str, Any]:
    """The samples from `start` to `stop` of `count`; what is no list of that length is the same for all."""
    return {
        name: value[start:stop] if isinstance(value, list) and len(value) == count else value
        for name, value in columns.items()
    }


def reply(function: Function, columns: Mapping[str, Any], count: int) -> Reply:
    try:
        values = function(**columns)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        values = list(values)
        if len(values) != count:
            raise ValueError(f"{len(values)} values for {count} completions")
        return "values", [finite(value) for value in values]
    except TimeoutError as error:
        return "time-out", describe(error)
    except BaseException as error:  # SystemExit too
        return "exception", describe(error)


def finite(value: Any) -> float | str:
    """The value as a float, or its text if it is none, or not finite as float32."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return number if abs(number) <= FLOAT32_MAX else repr(value)[:MESSAGE_LENGTH]


def describe(error: BaseException) -> str:
    """One line: the type, the message, and where it was raised."""
    line = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_LENGTH]
    frames = traceback.extract_tb(error.__traceback__)
    return f"{line} ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else line
