"""From the bytes of a request's body to the request, or to the one line that says what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from graftlm.serve.protocol import GenerationRequest
from graftlm.serve.refusal import refuse, shortened

Kind = TypeVar("Kind", bound=GenerationRequest)

NAME = re.compile(r"(?!(?:str|int|float|bool)$)\w+")
"""A field's name, where pydantic also puts the names of types."""


def read(kind: type[Kind], body: bytes, content_type: str) -> Kind:
    """The request that a body holds. Raises Refusal for the first thing that is wrong with it.

    Bytes that are not UTF-8, halves of a character, NaN, deep nesting and numbers of thousands of digits are no JSON.
    """
    if "json" not in content_type:  # a web page elsewhere may send other types without asking the browser
        raise refuse("the body is not read as JSON: send the header Content-Type: application/json")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refuse(f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise refuse(*described(error.errors(include_url=False, include_context=False, include_input=False))) from None


def described(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The message for the first error, and the parameter that it is about.

    Where a parameter may be of several types, each of them has an error; the one that is no mismatch of types tells.
    """
    same = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    first = next((error for error in same if not error["type"].endswith("_type")), errors[0])
    where = [str(part) for part in first["loc"] if isinstance(part, int) or NAME.fullmatch(part)]
    if first["type"] == "extra_forbidden":
        name = shortened(".".join([*where[:-1], str(first["loc"][-1])]))
        return f"{name} is not supported by this server; leave it out", name
    reason = str(first["msg"]).removeprefix("Value error, ")
    return (f"{'.'.join(where)}: {reason}", where[0]) if where else (f"the body is not valid: {reason}", None)
