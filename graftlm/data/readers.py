"""Read raw rows from JSON, JSON lines, CSV and Parquet files, each also as .gz, and from folders of them.

A reader yields (place, row): the place is "row 3 of data.csv", counted from 1 (in JSON lines the row is the line).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from graftlm.errors import InputError, check_whole

PlacedRow = tuple[str, Mapping[str, Any]]

# Words by which a file's name tells its split; any other split is its own word.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}


def read_file(path: Path) -> Iterator[PlacedRow]:
    """The rows of one file, by its ending. InputError: unsupported, unreadable, damaged or malformed."""
    reader = READERS.get(ending(path))
    if reader is None:
        raise InputError(f"data file {path} has an unsupported ending; use {', '.join(READERS)} or any of them .gz")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"data file {path} is not UTF-8 text") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"data file {path} is no whole gzip file") from error
    except OSError as error:
        raise InputError(f"data file {path} cannot be read: {error.strerror or error}") from error


def select_files(folder: Path, split: str) -> list[Path]:
    """The data files in `folder` and below that belong to `split`, sorted.

    These have a word for that split in their name or subfolder's name (train, valid, dev, test, ...); where none has
    one for "train", they are all files that name no split. Hidden ones (copies of editors and systems) do not count.
    """
    paths = sorted(path for path in folder.rglob("*") if ending(path) in READERS and path.is_file())
    names = [path.relative_to(folder) for path in paths]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise InputError(f"folder {folder} holds no data files ({', '.join(READERS)} or any of them .gz)")
    chosen = [name for name in names if names_split(name, split)]
    if not chosen and split == "train":
        chosen = [name for name in names if not any(names_split(name, other) for other in SPLIT_WORDS)]
    if not chosen:
        first = ", ".join(name.name for name in names[:5])
        raise InputError(f"folder {folder} has no file for the split {split!r}; it holds {first}")
    return [folder / name for name in chosen]


def names_split(path: Path, split: str) -> bool:
    words = set(re.split(r"[^a-z0-9]+", str(path).lower()))
    return bool(words & SPLIT_WORDS.get(split, {split.lower()}))


def ending(path: Path) -> str:
    """ ".jsonl" of data.jsonl and of data.jsonl.gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_lines(file: Path, name: str) -> list[str]:
    """The lines of a text file that are not empty. InputError, which begins with `name`, where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} {file} cannot be read as text: {error}") from error
    return [line for line in lines if line.strip()]


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """A text stream; utf-8-sig, since spreadsheets write a byte-order mark."""
    open_file = gzip.open if path.suffix.lower() == ".gz" else open
    return cast(TextIO, open_file(path, "rt", encoding="utf-8-sig", newline=newline))


def read_json_lines(path: Path) -> Iterator[PlacedRow]:
    with open_text(path, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = parse_json(line, f"line {number} of {path}")
            yield check_object(row, f"row {number} of {path}", line)


def read_json(path: Path) -> Iterator[PlacedRow]:
    """A list of objects; a file of JSON lines under this ending is read as such."""
    with open_text(path) as file:
        content = file.read()
    try:
        rows = parse_json(content, str(path))
    except InputError:
        if not starts_with_object(content):
            raise
        yield from read_json_lines(path)
        return
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise InputError(f"{path} has to hold a list of objects, but holds a {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield check_object(row, f"row {number} of {path}", content)


def parse_json(content: str, place: str) -> Any:
    """The value; InputError for no JSON, or an object with a key given twice, of which one value would be lost."""
    try:
        return json.loads(content, object_pairs_hook=distinct_keys)
    except RecursionError as error:
        raise InputError(f"{place} is JSON that is nested too deep") from error
    except ValueError as error:
        raise InputError(f"{place} is not valid JSON: {error}") from error


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"key {first_repeated([name for name, _ in pairs])!r} is given twice")
    return values


def first_repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def starts_with_object(content: str) -> bool:
    """Whether the first line is a whole JSON object, as in JSON lines."""
    try:
        return isinstance(json.loads(content.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def check_object(row: Any, place: str, content: str) -> PlacedRow:
    """The row with its place; `content` is the JSON that it comes from, where alone halves of characters can be."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is a {type(row).__name__}, but an object (column: value) is expected")
    if r"\ud" in content.lower():
        check_whole(json.dumps(row, ensure_ascii=False), place)
    return place, row


def read_csv(path: Path) -> Iterator[PlacedRow]:
    """Comma-separated with a header line; all values are text."""
    with open_text(path, newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            if twice := first_repeated(reader.fieldnames or []):
                raise InputError(f"{path} has two columns {twice!r}; rename one")
            for number, row in enumerate(reader, start=1):
                if None in row:
                    raise InputError(f"row {number} of {path} has more cells than the header; quote its commas")
                yield f"row {number} of {path}", row
        except csv.Error as error:
            if "field limit" in str(error):
                raise InputError(
                    f"line {reader.line_num} of {path} has a cell of more than {csv.field_size_limit():,} characters, "
                    "the most that CSV is read with: use JSON lines or Parquet"
                ) from error
            raise InputError(f"line {reader.line_num} of {path} is not valid CSV: {error}") from error


def read_parquet(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    source = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix.lower() == ".gz" else path
    try:
        with parquet.ParquetFile(source) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"row {number} of {path}", row
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no whole Parquet file: {' '.join(str(error).split())}") from error


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
