"""Whether a value out of JSON or YAML is of the type that a setting declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from graftlm.runs.config import EXPECTED

WORDS: dict[Any, str] = {**EXPECTED, list: "a list", dict: "a mapping", Literal: "one of its words", NoneType: "null"}
PLAIN = (bool, int, float, str, NoneType)


def fits(value: Any, hint: Any, *, lenient: bool = False) -> bool:
    """Whether the value is of the type `hint`; a whole number is a float too, true is no number.

    lenient: for files that other versions of a library wrote: a float is a whole number too, and a type other than
    numbers, words, lists and mappings takes anything.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, member, lenient=lenient) for member in members)
    if origin is Literal:
        words = isinstance(value, str) and lenient and any(isinstance(member, str) for member in members)
        return words or any(type(value) is type(member) and value == member for member in members)
    if origin is list:
        return isinstance(value, list) and all(fits(item, members[0], lenient=lenient) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, members[1], lenient=lenient) for item in value.values())
    if hint is dict or hint is Any:
        return hint is Any or isinstance(value, Mapping)
    if hint is float or (hint is int and lenient):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint or (lenient and hint not in PLAIN)


def expected(hint: Any) -> str:
    """The type in words: a whole number or null."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found = [WORDS.get(get_origin(member) or member) for member in members]
    return " or ".join(dict.fromkeys(word for word in found if word)) or "something else"
