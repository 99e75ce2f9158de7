"""The options of `graftlm restore`. Nothing heavy is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graftlm.errors import InputError
from graftlm.runs.config import REQUIRED, option
from graftlm.runs.ranges import check_ranges

SPAN = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """Options of `graftlm restore`."""

    tuned: str = option(REQUIRED, "Hub id, folder or adapter folder.", argument="TUNED")
    layers: str = option(REQUIRED, "Layers in which the tuning is undone, such as 0-14 or 0-4,9.")
    scale: float = option(0.0, "Share of the tuning's change that is left there.", at_least=0, at_most=1)
    base: str | None = option(None, "The model that a whole TUNED was tuned from; an adapter knows its own.")
    output: str = option(REQUIRED, "Folder for the model.", resumable=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_layers(self.layers)


def parse_layers(text: str) -> set[int]:
    """ "0-2,5" -> {0, 1, 2, 5}; InputError for anything else."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = SPAN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(f"--layers is {text!r}, but layers such as 0-14 or 0-4,9 are expected")
        chosen.update(range(first, last + 1))
    return chosen
