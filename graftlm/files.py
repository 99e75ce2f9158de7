"""Writing files so that a crash, a kill or a full disk leaves the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step; OSError names the file, whose old content stands."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error.strerror}; its content is untouched") from error


@contextmanager
def written_together(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A scratch folder for these files, which replace those in `folder` in the end, unless there is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        yield Path(scratch)
        for name in names:
            os.replace(Path(scratch) / name, folder / name)


def append_line(path: Path, line: str) -> None:
    """Add one whole line to `path`, or nothing; OSError names the file."""
    data = f"{line}\n".encode()
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
