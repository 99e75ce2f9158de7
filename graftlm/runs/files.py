"""Writing files so that a crash, a kill or a full disk leaves the old content or the new, never a part."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = ".writing"
"""The folder in which files are written that go together."""


def temporary(name: str) -> str:
    """The name of a file while it is written."""
    return f".{name}.tmp"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step; OSError names the file, whose old content stands."""
    scratch = path.with_name(temporary(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error.strerror}; its content is untouched") from error


@contextmanager
def written_together(folder: Path, names: Sequence[str] = ()) -> Iterator[Path]:
    """A scratch folder for these files (or all that it then holds), which replace those in `folder` in the end, unless
    there is an error.

    Its name is always the same, so that what a kill leaves is gone with the next call.
    """
    scratch = folder / WRITING
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for name in names or sorted(os.listdir(scratch)):
            os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder, which replaces `folder` in the end, unless there is an error.

    A kill leaves the old content or the new in `folder` where the system can exchange two folders (Linux); elsewhere,
    between two renames, the old one beside it. What it leaves beside it is gone with the next call.
    """
    scratch, aside = partial_of(folder), folder.with_name(f".{folder.name}.old")
    if aside.exists() and not folder.exists():
        os.replace(aside, folder)
    for left in (scratch, aside):
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield scratch
        if not folder.exists():
            os.replace(scratch, folder)
        elif not exchange(scratch, folder):
            os.replace(folder, aside)
            os.replace(scratch, folder)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """The path of a folder while it is written."""
    return folder.with_name(f".{folder.name}.partial")


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def append_line(path: Path, line: str) -> None:
    """Add one whole line to `path`, or nothing; OSError names the file."""
    append_text(path, f"{line}\n")


def append_text(path: Path, text: str) -> None:
    """Add all of `text` to `path`, or nothing; OSError names the file."""
    data = text.encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                written = file.write(data)
            except OSError:
                file.truncate(end)
                raise
            if written != len(data):
                file.truncate(end)
                raise OSError(0, "the disk is full")
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}; its lines are untouched") from error


def drop_partial_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end, so that the next one does not run into it."""
    if not path.exists():
        return
    whole = path.read_bytes().rpartition(b"\n")
    if whole[2]:
        os.truncate(path, len(whole[0]) + len(whole[1]))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, [] where there is none; a last line without its end is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
    return [json.loads(line) for line in lines]


def sha256_of(paths: Iterable[Path]) -> str:
    """Hexadecimal, over what is in the files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: what is not finite becomes null; tensors and arrays of one number become that number."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def plain(value: Any) -> Any:
    """`value` out of mappings, lists, numbers and text alone; TypeError for what has no such form."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
