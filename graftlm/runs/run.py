"""The run folder: what ran, with what, and what came out, to be repeated and resumed (DESIGN 9, 10).

    run.yaml        command, resolved config with each value's source, versions, git commit, facts
    metrics.jsonl   one JSON object a line, as logged
    .lock           held while a process works here
    .previous/      what --overwrite replaces, kept until the new run has logged or made something

Under torchrun only rank 0 checks, locks and writes; on the other ranks the writing methods do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from graftlm.errors import InputError
from graftlm.runs.config import RUN_FILE
from graftlm.runs.files import (
    append_line,
    drop_partial_line,
    dump_json,
    plain,
    read_json_lines,
    remove,
    temporary,
    write_text,
)
from graftlm.runs.provenance import command_line, git_commit, now, versions
from graftlm.runs.yaml_text import YAMLError, dump_yaml, parse_yaml

METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
PREVIOUS = ".previous"
SUMMARY = "train_loss"
"""In the line that transformers logs when a training ends."""
NOT_COMPARED = {"output"}  # a moved folder is still the same run


class Run:
    """An open run folder; made by `Run.create`, best used in a `with` statement.

    Left by InputError before anything was logged or kept, it undoes itself: what --overwrite replaced is back.

    Attributes:
        folder: the run folder.
        is_main: whether this process writes; False on every rank but the first.
        resumed: whether an earlier run is continued here.
    """

    def __init__(self, folder: Path, document: dict[str, Any], lock: FileLock | None, *, resumed: bool) -> None:
        self.folder = folder
        self.is_main = lock is not None
        self.resumed = resumed
        self._document = document
        self._lock = lock
        self._kept = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        command: str,
        config: Any,
        sources: Mapping[str, str],
        resume: bool = False,
        overwrite: bool = False,
    ) -> Run:
        """Open `folder` for `command` with the dataclass `config` and write its run.yaml.

        Raises:
            InputError: the folder is not empty and neither `resume` nor `overwrite` is given, is no run
                folder, is in use by another process, or (`resume`) holds a run of another command or config.
        """
        folder = Path(folder)
        document = new_document(command, config, sources)
        if not is_main_process():
            return cls(folder, document, None, resumed=resume)
        check_usable(folder)
        lock = lock_folder(folder)
        try:
            restore(folder)
            check_folder(folder, command, config, resume=resume, overwrite=overwrite)
            resumed = resume and is_run_folder(folder)
            if resumed:
                document = read_document(folder)
                again = {"at": now(), "command_line": command_line(), "versions": versions()}
                document["resumed"] = [*document.get("resumed", []), again]
                document.pop("finished", None)
                drop_partial_line(folder / METRICS_FILE)
            elif overwrite:
                set_aside(folder)
            run = cls(folder, document, lock, resumed=resumed)
            run._write_document()
        except BaseException:
            lock.release()
            raise
        return run

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        return f"graftlm {self._document['command']} {self.folder / RUN_FILE} --resume"

    def record(self, **facts: Any) -> None:
        """Add facts found while running (data fingerprint, number of parameters...) to run.yaml."""
        self._document["facts"] = {**self._document.get("facts", {}), **plain(facts)}
        self._write_document()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite is written as null."""
        if not self.is_main:
            return
        self.keep()
        append_line(self.folder / METRICS_FILE, dump_json(metrics))

    def keep(self) -> None:
        """From here on there is something that took work: no error undoes this run any more."""
        if self.is_main and not self._kept:
            remove_previous(self.folder)
            self._kept = True

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines; one that a kill cut short is left out."""
        return read_json_lines(self.folder / METRICS_FILE)

    def rewind(self, step: int) -> None:
        """Drop what a run that resumes from its checkpoint logs again: the lines past `step`, and the summary of a
        training that was interrupted there."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step and SUMMARY not in line]
        self.write_text(METRICS_FILE, "".join(f"{dump_json(line)}\n" for line in kept))

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON to `name` in the folder, in one step."""
        self.write_text(name, dump_json(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write `text` to `name` in the folder, in one step; OSError where the disk is full."""
        if self.is_main:
            write_text(self.folder / name, text)

    def finish(self) -> None:
        """Mark the run as finished and close it."""
        if self.is_main:
            self._document["finished"] = now()
            self._write_document()
            remove_previous(self.folder)
        self.close()

    def close(self) -> None:
        """Let another process use the folder; closing twice does no harm."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        if isinstance(error, InputError) and self.is_main and not self.resumed and not self._kept:
            undo(self.folder)
        self.close()

    def _write_document(self) -> None:
        self.write_text(RUN_FILE, dump_yaml(self._document))


def check_folder(folder: Path, command: str, config: Any, *, resume: bool, overwrite: bool) -> None:
    """Raise InputError where a run may not use `folder`; touches nothing."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    check_usable(folder)
    if not visible_content(folder):
        return
    if not resume and not overwrite:
        raise InputError(f"output folder {folder} holds a run; give --resume, --overwrite or another folder")
    if resume:
        check_same_run(folder, command, config)


def check_usable(folder: Path) -> None:
    """Raise InputError where `folder` is a file or holds anything but a run."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output folder {folder} is a file; give another --output")
    content = sorted(path.name for path in visible_content(folder))
    if content and not is_run_folder(folder) and not is_run_folder(folder / PREVIOUS):
        shown = ", ".join(content[:3])
        raise InputError(f"output folder {folder} holds other things ({shown}); give another --output")


def check_same_run(folder: Path, command: str, config: Any) -> None:
    """Raise InputError that names what differs from the run in `folder`."""
    document = read_document(folder)
    if (other := document.get("command")) != command:
        raise InputError(f"{folder} holds a `graftlm {other}` run, not one of `graftlm {command}`")
    then = document.get("config", {})
    differing = [
        f"{key} ({then[key]!r} then, {value!r} now)"
        for key, value in plain(asdict(config)).items()
        if key not in NOT_COMPARED and key in then and then[key] != value
    ]
    if differing:
        raise InputError(f"{folder} cannot be resumed with another config: {', '.join(differing)}")


def new_document(command: str, config: Any, sources: Mapping[str, str]) -> dict[str, Any]:
    """The first content of run.yaml."""
    return {
        "command": command,
        "command_line": command_line(),
        "started": now(),
        "seed": getattr(config, "seed", None),
        "config": plain(asdict(config)),
        "sources": dict(sources),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def read_document(folder: Path) -> dict[str, Any]:
    """run.yaml of a run folder."""
    path = folder / RUN_FILE
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is not the run.yaml of a graftlm run")
    return document


def is_main_process() -> bool:
    """True but for the further processes that torchrun or accelerate start."""
    return os.environ.get("RANK", "0") == "0"


def is_run_folder(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file()


def visible_content(folder: Path) -> list[Path]:
    """What lies in the folder beside our own lock, what was set aside and a run.yaml that a kill left half written."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name not in (LOCK_FILE, PREVIOUS, temporary(RUN_FILE))]


def lock_folder(folder: Path) -> FileLock:
    """Make the folder and keep other processes out of it until the lock is released or this process dies."""
    lock = FileLock(folder / LOCK_FILE, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"output folder {folder} is in use by another process") from None
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror}") from error
    return lock


def set_aside(folder: Path) -> None:
    """Move an earlier run into .previous/, run.yaml first: without it the folder is half moved."""
    previous = folder / PREVIOUS
    if is_run_folder(previous):  # what lies in the folder never logged anything
        for path in visible_content(folder):
            remove(path)
        return
    remove(previous)  # what a kill left of one
    previous.mkdir()
    for path in sorted(visible_content(folder), key=lambda path: path.name != RUN_FILE):
        os.replace(path, previous / path.name)


def restore(folder: Path) -> None:
    """Move .previous/ back where an overwriting run stopped before it wrote its own run.yaml."""
    previous = folder / PREVIOUS
    if is_run_folder(folder) or not is_run_folder(previous):
        return
    for path in sorted(previous.iterdir(), key=lambda path: path.name == RUN_FILE):
        remove(folder / path.name)
        os.replace(path, folder / path.name)
    previous.rmdir()


def remove_previous(folder: Path) -> None:
    """Delete what was set aside, run.yaml first: without it the rest is no run any more."""
    (folder / PREVIOUS / RUN_FILE).unlink(missing_ok=True)
    remove(folder / PREVIOUS)


def undo(folder: Path) -> None:
    """Take back a run that did nothing: restore what it replaced, or leave no trace of it."""
    if is_run_folder(folder / PREVIOUS):
        (folder / RUN_FILE).unlink(missing_ok=True)
        for path in visible_content(folder):
            remove(path)
        restore(folder)
    elif [path.name for path in visible_content(folder)] == [RUN_FILE]:
        (folder / RUN_FILE).unlink()
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()
