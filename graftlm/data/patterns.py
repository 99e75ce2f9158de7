"""Regular expressions that a user gave, which no text can keep busy for ever."""

from __future__ import annotations

from functools import lru_cache

import regex

from graftlm.errors import InputError


class Pattern:
    """A user's regular expression, in the syntax of the package `regex`, which has time limits.

    Args:
        name: who it is, as the user gave it: "--protect".
        seconds: longest time on one text.

    Raises InputError for a malformed one. Its methods raise TimeoutError where a text takes longer than `seconds`.
    """

    def __init__(self, name: str, pattern: str, seconds: float) -> None:
        self.seconds = seconds
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise InputError(f"{name}: {pattern!r} is no regular expression ({error})") from None

    def found_in(self, text: str) -> bool:
        return self._compiled.search(text, timeout=self.seconds) is not None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) of each match that does not overlap the one before."""
        return [match.span() for match in self._compiled.finditer(text, timeout=self.seconds)]


PRUNING_SECONDS = 2.0
"""Longest time of a pattern on one row: far from what a fair one takes, so that no busy machine leaves rows out."""


@lru_cache
def row_pattern(flag: str, pattern: str) -> Pattern:
    return Pattern(flag, pattern, PRUNING_SECONDS)


def row_spans(flag: str, pattern: str, text: str) -> list[tuple[int, int]]:
    """The spans of a pattern of pruning; InputError where it is malformed, or too slow on this row."""
    try:
        return row_pattern(flag, pattern).spans(text)
    except TimeoutError:
        raise InputError(
            f"{flag} {pattern!r} takes longer than {PRUNING_SECONDS:g} s on this text: give a simpler pattern"
        ) from None
