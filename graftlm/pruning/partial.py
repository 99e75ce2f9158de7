"""A file that takes long: its rows lie beside it until all are there, so that a kill loses one at most."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.runs.files import dump_json, write_text

ENDINGS = (".jsonl", ".parquet")


def check_output_file(output: Path, *, resume: bool, overwrite: bool) -> None:
    """InputError if the file is there or half there and neither is asked for, or cannot be one of these kinds."""
    if output.suffix.lower() not in ENDINGS:
        raise InputError(f"--output {output}: the name must end in {' or '.join(ENDINGS)}")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; give a file")
    if output.parent.exists() and not output.parent.is_dir():
        raise InputError(f"--output {output}: {output.parent} is no folder")
    half_there = partial_file(output).exists()
    if overwrite or (resume and half_there):
        return
    for path in (output, *companions(output)):
        if path.exists():
            nothing = ", and there is nothing beside it to resume" if resume else ""
            raise InputError(f"{path} exists{nothing}; give another --output, or --overwrite")
    if half_there:
        raise InputError(
            f"{partial_file(output)} holds rows of an earlier call: --resume goes on, --overwrite starts anew"
        )


def companions(output: Path) -> tuple[Path, Path]:
    """The page, and the rows that were left out."""
    return output.with_suffix(".html"), output.with_suffix(".failed.jsonl")


def partial_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def write_rows(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All of them or, where that fails, none: the old content stands."""
    if output.suffix.lower() == ".jsonl":
        write_text(output, "".join(dump_json(row) + "\n" for row in rows))
        return
    import pyarrow
    from pyarrow import parquet

    temporary = output.with_name(f".{output.name}.tmp")
    names = dict.fromkeys(name for row in rows for name in row)  # or only the first row's would count
    try:
        whole = [{name: row.get(name) for name in names} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(whole), temporary)
        os.replace(temporary, output)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{output}: the rows do not fit Parquet's columns ({error}); rename {partial_file(output).name} to that of "
            "a .jsonl file, and --resume with that as --output"
        ) from error
    except OSError as error:
        raise OSError(f"{output} cannot be written: {error.strerror}; its content is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)
