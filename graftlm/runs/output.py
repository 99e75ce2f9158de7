"""May a command write here? One rule for all commands.

An output is a folder, with run.yaml in it, or one file, with NAME.run.yaml beside it. A new one is made. One that is
there is continued with --resume, or replaced with --overwrite, but not where the command reads from it. A folder that
holds anything but a run is never touched. One process at a time works in an output.

    .lock        held meanwhile (beside a file: .NAME.lock, which is removed in the end)
    .previous/   what --overwrite replaces in a folder, kept until the new run has logged or made something
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from graftlm.errors import InputError
from graftlm.runs.config import RUN_FILE
from graftlm.runs.files import plain, remove, temporary
from graftlm.runs.yaml_text import YAMLError, parse_yaml

LOCK_FILE = ".lock"
PREVIOUS = ".previous"
NOT_COMPARED = {"output"}  # a moved folder is still the same run


class Output:
    """The place that a command writes to, as its config's field `output` declares it.

    Attributes:
        path: the folder or the file.
        is_file: which of the two it is.
        folder: the folder, or the one that the file lies in.
        document: its run.yaml.
        resumable: whether the command can go on with --resume.
    """

    def __init__(self, path: str | Path, config: Any) -> None:
        self.path = Path(path)
        declared: Mapping[str, Any] = next((field.metadata for field in fields(config) if field.name == "output"), {})
        self.is_file = self.path.suffix.lower() in declared.get("files", ())
        self.folder = self.path.parent if self.is_file else self.path
        self.document = self.path.with_suffix(f".{RUN_FILE}") if self.is_file else self.path / RUN_FILE
        self.resumable = declared.get("resumable", True)
        self._lock_file = self.folder / (f".{self.path.name}{LOCK_FILE}" if self.is_file else LOCK_FILE)
        self._lock = FileLock(self._lock_file, timeout=0, thread_local=False)
        self._made: list[Path] = []

    def check(self, command: str, config: Any, *, resume: bool, overwrite: bool) -> None:
        """Raise InputError where the command may not write here; touches nothing."""
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one")
        self.check_kind()
        if not self.content():
            return
        if resume:
            check_same_run(self.document, command, config)
        elif overwrite:
            self._check_not_read(config)
        else:
            ways = "--resume, --overwrite" if self.resumable else "--overwrite"
            raise InputError(f"output {self.path} holds a run; give {ways} or another --output")

    def check_kind(self) -> None:
        """Raise InputError for a folder in the place of a file, a file in that of a folder, and a folder that holds
        anything but a run."""
        if self.is_file and self.path.is_dir():
            raise InputError(f"output {self.path} is a folder; give a file as --output")
        if self.is_file:
            return
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output {self.path} is a file; give a folder as --output")
        content = sorted(path.name for path in self.content())
        if content and not self.document.is_file() and not (self.path / PREVIOUS / RUN_FILE).is_file():
            raise InputError(f"output {self.path} holds other things ({', '.join(content[:3])}); give another --output")

    def content(self) -> list[Path]:
        """Paths that a new run would replace; not our lock, what was set aside, or a half written run.yaml."""
        if self.is_file:
            return [path for path in (self.path, self.document) if path.exists()]
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if path.name not in (LOCK_FILE, PREVIOUS, temporary(RUN_FILE))]

    def _check_not_read(self, config: Any) -> None:
        """Raise InputError where the config names something that lies in what --overwrite would replace."""
        place = self.path.resolve()
        for name, text in texts(asdict(config)):
            if name not in NOT_COMPARED and text and os.path.exists(text):
                read = Path(text).resolve()
                if place in (read, *read.parents):
                    raise InputError(f"output {self.path} holds {text}, which is read; give another --output")

    def acquire(self) -> None:
        """Make the folder and keep other processes out until `release`, or until this process dies."""
        self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise InputError(f"output {self.path} is in use by another process") from None
        except OSError as error:
            self._remove_made()
            raise InputError(f"output {self.path} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        if self.is_file:
            self._lock_file.unlink(missing_ok=True)
            self._remove_made()
        self._lock.release()

    def set_aside(self) -> None:
        """Move an earlier run in the folder into .previous/, run.yaml first: without it the folder is half moved."""
        previous = self.path / PREVIOUS
        if self.is_file:
            return
        if (previous / RUN_FILE).is_file():  # what lies in the folder never logged anything
            for path in self.content():
                remove(path)
            return
        remove(previous)  # what a kill left of one
        previous.mkdir()
        for path in sorted(self.content(), key=lambda path: path.name != RUN_FILE):
            os.replace(path, previous / path.name)

    def put_back(self) -> None:
        """Move .previous/ back where an overwriting run stopped before it wrote its own run.yaml."""
        previous = self.path / PREVIOUS
        if self.document.is_file() or not (previous / RUN_FILE).is_file():
            return
        for path in sorted(previous.iterdir(), key=lambda path: path.name == RUN_FILE):
            remove(self.path / path.name)
            os.replace(path, self.path / path.name)
        previous.rmdir()

    def remove_previous(self) -> None:
        """Delete what was set aside, run.yaml first: without it the rest is no run any more."""
        if not self.is_file:
            (self.path / PREVIOUS / RUN_FILE).unlink(missing_ok=True)
            remove(self.path / PREVIOUS)

    def undo(self) -> None:
        """Take back a run that did nothing: put back what it replaced, or leave no trace of it."""
        if self.is_file:
            return
        if (self.path / PREVIOUS / RUN_FILE).is_file():
            self.document.unlink(missing_ok=True)
            for path in self.content():
                remove(path)
            self.put_back()
        elif self.content() == [self.document]:
            self.document.unlink()
            self._lock_file.unlink(missing_ok=True)
            self._remove_made()

    def _remove_made(self) -> None:
        """Remove the folders that `acquire` made, where they are empty."""
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def texts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, text) of each text in a config, those in lists too."""
    for name, value in config.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield name, item


def check_same_run(document_file: Path, command: str, config: Any) -> None:
    """Raise InputError that names what differs from the run that run.yaml describes."""
    document = read_document(document_file)
    if (other := document.get("command")) != command:
        raise InputError(f"{document_file} is of a `graftlm {other}` run, not of `graftlm {command}`")
    then = document.get("config", {})
    differing = [
        f"{key} ({then[key]!r} then, {value!r} now)"
        for key, value in plain(asdict(config)).items()
        if key not in NOT_COMPARED and key in then and then[key] != value
    ]
    if differing:
        raise InputError(f"{document_file} cannot be resumed with another config: {', '.join(differing)}")


def read_document(path: Path) -> dict[str, Any]:
    """The content of a run.yaml."""
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is not the run.yaml of a graftlm run")
    return document
