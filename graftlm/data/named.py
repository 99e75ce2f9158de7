"""Data with a name of its own, such as that of a built-in task, beside files and hub ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Rows = Callable[[Any], Iterable[Mapping[str, Any]]]
"""Split -> its rows; InputError if there is no such split."""

_tables: list[Callable[[], Mapping[str, Rows]]] = []


def add_named_data(table: Callable[[], Mapping[str, Rows]]) -> None:
    """Let `load_rows` know the names of `table`, which is called whenever they are looked up."""
    _tables.append(table)


def named_data() -> dict[str, Rows]:
    """Name -> its rows, of all tables."""
    return {name: rows for table in _tables for name, rows in table().items()}
