"""Settings of the terms. Readable without torch: the command line makes its flags of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from graftlm.errors import InputError
from graftlm.runs.config import coerce, current_names, option, typed_fields
from graftlm.runs.ranges import check_ranges

Schedule = Literal["rsine", "sine", "linear", "constant"]
Weighting = Literal["uniform", "entropy", "surprisal", "importance"]
FORKING_FRACTION = 0.2


def schedule_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """s(t) in [0, 1] at optimizer step `step` of `total_steps`.

    rsine = sin((T − t)/T · π/2), sine = sin(t/T · π/2), linear = t/T, constant = 1.
    """
    if schedule not in get_args(Schedule):
        raise InputError(f"unknown schedule {schedule!r}; known: {', '.join(get_args(Schedule))}")
    progress = min(max(step / max(total_steps, 1), 0.0), 1.0)
    return {
        "rsine": math.sin((1 - progress) * math.pi / 2),
        "sine": math.sin(progress * math.pi / 2),
        "linear": progress,
        "constant": 1.0,
    }[schedule]


@dataclass(frozen=True, kw_only=True)
class TermSettings:
    """Settings of every term; one with more of its own inherits from this. InputError for a number out of range."""

    weight: float = option(1.0, "Weight of the term in the loss.", at_least=0)
    schedule: Schedule = option("constant", "s(t), the factor of the weight: rsine falls, sine and linear rise.")

    def __post_init__(self) -> None:
        check_ranges(self, prefix="")

    def weight_at(self, step: int, total_steps: int) -> float:
        """Weight at optimizer step `step` of `total_steps`."""
        return self.weight * schedule_factor(self.schedule, step, total_steps)


@dataclass(frozen=True, kw_only=True)
class MultiTokenSettings(TermSettings):
    """Settings of the auxiliary heads' losses; the defaults are those of CAFT's code."""

    weight: float = option(0.01, "c in L = L0 + c · s(t) · Σ d^k · L_k.", at_least=0)
    decay: float = option(0.8, "d in that sum.", above=0, at_most=1)
    schedule: Schedule = option("rsine", "s(t): rsine falls from 1 to 0, sine and linear rise, constant stays.")
    token_weights: Weighting = option("uniform", "Which tokens the auxiliary heads learn from.")
    forking_fraction: float = option(
        FORKING_FRACTION, "Share of tokens that the weights `entropy` keep.", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_weights != "entropy" and self.forking_fraction != FORKING_FRACTION:
            raise InputError(f"forking_fraction is {self.forking_fraction}, but only the weights `entropy` read it")


@dataclass(frozen=True, kw_only=True)
class KLAnchorSettings(TermSettings):
    """Settings of the KL anchor."""

    weight: float = option(0.1, "Weight of KL(base ‖ tuned) on general text.", at_least=0)
    data: str | None = option(None, "Text rows for it (default: a bundled set).")


def read_settings(kind: type[TermSettings], given: Mapping[str, Any], culprit: str) -> TermSettings:
    """Settings out of a mapping, such as a block of YAML. Raises InputError that names the culprit and the setting."""
    known = {field.name: (field, annotation) for field, annotation in typed_fields(kind)}
    named = current_names(given, known, f"{culprit}: unknown setting")
    values = {name: coerce(value, known[name][1], f"{culprit}: {name}") for name, value in named.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{culprit}: {error}") from error
