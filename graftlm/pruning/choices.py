"""What can be chosen when pruning; nothing heavy is imported here."""

from __future__ import annotations

from typing import Any, Literal, get_args

from graftlm.errors import InputError

Objective = Literal["joint", "answer"]
Granularity = Literal["token", "word"]
Mode = Literal["exact", "screened", "surrogate", "random", "surprisal", "attention", "truncation", "llmlingua2"]


THINK_TAGS = r"</?think>"
"""What goes last unless something else is asked for."""


def check_choice(name: str, value: str, choices: Any) -> None:
    """InputError where `value` is none of a Literal's."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: choose one of {', '.join(allowed)}")
