"""Format: a kind of completion, known by a regular expression or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graftlm.data.patterns import Pattern
from graftlm.errors import InputError

OTHER = "other"
MATCH_SECONDS = 0.1
"""Longest time that one pattern may take on one completion; a slower one counts as no match."""


@dataclass(frozen=True)
class Format:
    """A kind of completion: a name, and a regular expression found anywhere in it or a function that says yes or no.

    Raises InputError for a pattern that is empty or no regular expression.
    """

    name: str
    pattern: str | Callable[[str], bool]

    def __post_init__(self) -> None:
        if self.name == OTHER:
            raise InputError(f"format {OTHER!r}: that name is for completions of no format; give another")
        if self.pattern == "":
            raise InputError(f"format {self.name!r} is empty, so that every completion matches; give a pattern")
        if isinstance(self.pattern, str):
            Pattern(f"format {self.name!r}", self.pattern, MATCH_SECONDS)

    def matches(self, text: str) -> bool:
        """TimeoutError where a regular expression takes longer than MATCH_SECONDS."""
        if isinstance(self.pattern, str):
            return Pattern(f"format {self.name!r}", self.pattern, MATCH_SECONDS).found_in(text)
        return bool(self.pattern(text))


def format_of(text: str, formats: Iterable[Format], failed: Callable[[str, str], None] | None = None) -> str:
    """The name of the first format that matches, or `other`; one that is too slow or raises does not match.

    failed: called with its name and what happened.
    """
    for each in formats:
        try:
            if each.matches(text):
                return each.name
        except Exception as error:
            what = f"took longer than {MATCH_SECONDS} s" if isinstance(error, TimeoutError) else f"raised {error!r}"
            if failed is not None:
                failed(each.name, f"its pattern {what} on a completion, which counts as no match")
    return OTHER
