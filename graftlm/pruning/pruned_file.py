"""The file of pruned rows, and what lies beside it: the page, and the list of the rows that were left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.runs.config import RUN_FILE
from graftlm.runs.files import dump_json, remove, write_text

COLUMN = "pruning"
"""The column of question, chain, answer and ranks."""
Failure = tuple[str, str]
"""Where a row stands that was left out, and why."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Result of `graftlm prune`.

    `rows` as written; `failed`: those that were left out; `agreement`: Spearman's correlation with exact ranks of the
    rows that were checked; `verdict`: the sentences of the page.
    """

    rows: list[dict[str, Any]]
    failed: list[Failure]
    agreement: list[float]
    verdict: list[str] = field(default_factory=list)


def companions(output: Path) -> tuple[Path, Path]:
    """The page, and the rows that were left out."""
    return output.with_suffix(".html"), output.with_suffix(".failed.jsonl")


def partial_file(output: Path) -> Path:
    """The rows that are done, until all are."""
    return output.with_name(f"{output.name}.partial")


def check_companions(output: Path, *, resumed: bool) -> None:
    """Raise InputError where files lie beside a new `output`, or where there is nothing to resume beside an old one."""
    if resumed and output.exists() and not partial_file(output).exists():
        raise InputError(f"{output} exists, and there is nothing beside it to resume; give --overwrite to prune anew")
    if not output.exists() and not output.with_suffix(f".{RUN_FILE}").exists():
        for path in (*companions(output), partial_file(output)):
            if path.exists():
                raise InputError(f"{path} exists; give another --output, or move it")


def write_pruned(output: Path, rows: Sequence[Mapping[str, Any]], failed: Sequence[Failure]) -> None:
    """Write the rows, and the list of those that were left out if there are any; each file as a whole or not at all."""
    if output.suffix.lower() == ".jsonl":
        write_text(output, "".join(dump_json(row) + "\n" for row in rows))
    else:
        _write_parquet(output, rows)
    _, left_out = companions(output)
    if failed:
        write_text(left_out, "".join(f"{dump_json({'row': place, 'reason': reason})}\n" for place, reason in failed))
    else:
        remove(left_out)


def _write_parquet(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
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
            f"{output}: the rows do not fit Parquet's columns ({error}); prune to a .jsonl file instead"
        ) from error
    except OSError as error:
        raise OSError(f"{output} cannot be written: {error.strerror}; its content is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)
