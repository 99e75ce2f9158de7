"""The range of a number: declared beside the setting, checked in one place, shown in --help."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from graftlm.errors import InputError

LARGEST_SEED = 2**32 - 1  # of NumPy's generator


@dataclass(frozen=True, kw_only=True)
class Range:
    """Finite numbers between bounds; a bound that is None does not bind."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def rule(self) -> str:
        """above 0 and at most 1"""
        given = [(each.name.replace("_", " "), getattr(self, each.name)) for each in fields(self)]
        return " and ".join(f"{name} {bound}" for name, bound in given if bound is not None)

    def check(self, name: str, value: float | list[float] | None) -> None:
        """InputError that names the setting, its value and the rule; None, a setting not given, is in range."""
        if isinstance(value, list):
            for each in value:
                self.check(name, each)
        elif value is not None and value not in self:
            finite = "" if isinstance(value, int) or math.isfinite(value) else "a finite number "
            raise InputError(f"{name} is {value!r}, but it must be {finite}{self.rule}")


def range_of(field: Any) -> Range | None:
    """The range of a dataclass field that was made with `option`; None where it has none."""
    found: Range | None = field.metadata.get("range")
    return found


def check_ranges(settings: Any, prefix: str = "--") -> None:
    """InputError for the first field of a dataclass instance that lies outside its range."""
    for field in fields(settings):
        if (allowed := range_of(field)) is not None:
            name = field.name.replace("_", "-") if prefix else field.name
            allowed.check(prefix + name, getattr(settings, field.name))
