"""Rows of any supported form -> prompt+completion or text, each checked, with errors that name the row.

| form | columns | becomes |
|---|---|---|
| prompt+completion | prompt, completion: both text or both lists of messages | as it is |
| messages | messages: list of {role, content} | a row for each assistant turn |
| sharegpt | conversations: list of {from, value}; optional system | a row for each assistant turn |
| alpaca | instruction, output; optional input | a user message and the assistant's answer |
| text | text | as it is; empty texts are left out |

Where a row has the columns of several forms, the first of this table counts. A conversation gives one row for
each assistant turn, whose prompt is everything before it: the loss then falls on the completion alone,
whatever the chat template (a mask over all turns at once needs a template with {% generation %} marks, which
few models have), and each turn is trained on exactly the text that the model is given when it has to write it
(templates such as Qwen3's render earlier turns differently). The price is that the earlier turns are read
again with each later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from graftlm.errors import InputError

Row = dict[str, Any]
Message = dict[str, str]

FORMS = {
    "prompt+completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# One number for each token of the completion, written by other parts of graftlm; passed on as they are.
TOKEN_COLUMNS = ("weights", "importance")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
}


def canonical_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Row]:
    """Convert (place, row) pairs, such as ("row 3 of data.csv", {...}), by the form that the first row has.

    Yields rows with the same keys throughout: `prompt` and `completion`, both text or both lists of
    {"role", "content"}, or `text`; with `weights` or `importance` (lists of float) where given.

    Raises:
        InputError: a missing column, a null or wrongly typed value, or rows that differ in kind.
    """
    convert: Callable[[Mapping[str, Any], str], Iterator[Row]] | None = None
    first: tuple[str, Row] | None = None
    for place, row in rows:
        if convert is None:
            convert = CONVERTERS[detect_form(row, place)]
        for converted in convert(row, place):
            add_token_columns(converted, row, place)
            first = first or (place, converted)
            check_same_kind(first, place, converted)
            yield converted


def detect_form(row: Mapping[str, Any], place: str) -> str:
    for form, columns in FORMS.items():
        if all(column in row for column in columns):
            return form
    expected = "; ".join(" + ".join(columns) for columns in FORMS.values())
    raise InputError(f"{place} has the columns {describe_columns(row)}, but one of these is needed: {expected}")


def from_prompt_completion(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    prompt, completion = column(row, "prompt", place), column(row, "completion", place)
    if isinstance(prompt, list) and isinstance(completion, list):
        prompt = [to_message(message, f"{place}: prompt") for message in prompt]
        completion = [to_message(message, f"{place}: completion") for message in completion]
        if not prompt or not completion or completion[-1]["role"] != "assistant":
            raise InputError(f"{place}: prompt needs a message, and completion has to end with the assistant's")
    else:
        prompt, completion = text(row, "prompt", place), text(row, "completion", place)
        if not completion:
            raise InputError(f"{place}: column 'completion' is empty; remove the row or fill it")
    yield {"prompt": prompt, "completion": completion}


def from_messages(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    return split_conversation(column(row, "messages", place), "messages", place)


def from_sharegpt(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    turns = column(row, "conversations", place)
    if isinstance(turns, list) and row.get("system"):
        turns = [{"role": "system", "content": row["system"]}, *turns]
    return split_conversation(turns, "conversations", place)


def from_alpaca(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    instruction, output = text(row, "instruction", place), text(row, "output", place)
    context = text(row, "input", place) if row.get("input") is not None else ""
    if not output:
        raise InputError(f"{place}: column 'output' is empty; remove the row or fill it")
    question = f"{instruction}\n\n{context}" if context else instruction
    yield {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": output}],
    }


def from_text(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    if content := text(row, "text", place):
        yield {"text": content}


CONVERTERS: dict[str, Callable[[Mapping[str, Any], str], Iterator[Row]]] = {
    "prompt+completion": from_prompt_completion,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "alpaca": from_alpaca,
    "text": from_text,
}


def split_conversation(turns: Any, name: str, place: str) -> Iterator[Row]:
    """One row for each assistant turn that something precedes; what follows the last one is left out."""
    if not isinstance(turns, list):
        raise InputError(f"{place}: column {name!r} is {describe(turns)}, but a list of messages is expected")
    messages = [to_message(turn, f"{place}: {name}") for turn in turns]
    targets = [i for i, message in enumerate(messages) if i > 0 and message["role"] == "assistant"]
    if not targets:
        raise InputError(f"{place}: column {name!r} has no assistant turn that answers another")
    for i in targets:
        yield {"prompt": messages[:i], "completion": [messages[i]]}


def to_message(turn: Any, place: str) -> Message:
    """{role, content} from a message in OpenAI's or ShareGPT's notation."""
    if isinstance(turn, Mapping):
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if isinstance(role, str) and role.lower() in ROLES and isinstance(content, str):
            return {"role": ROLES[role.lower()], "content": content}
        if isinstance(role, str) and isinstance(content, str):
            raise InputError(f"{place} has the role {role!r}; known are {', '.join(ROLES)}")
    raise InputError(f"{place} has {describe(turn)} as a message, but {{role, content}} or {{from, value}} is expected")


def add_token_columns(converted: Row, row: Mapping[str, Any], place: str) -> None:
    for name in TOKEN_COLUMNS:
        if row.get(name) is None:
            continue
        values = row[name]
        if not isinstance(values, list) or not all(is_weight(value) for value in values):
            raise InputError(f"{place}: column {name!r} is {describe(values)}, but a list of numbers >= 0 is expected")
        turns = converted.get("prompt")
        if isinstance(turns, list) and any(message["role"] == "assistant" for message in turns):
            raise InputError(f"{place}: column {name!r} fits no conversation with several assistant turns")
        converted[name] = [float(value) for value in values]


def is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def check_same_kind(first: tuple[str, Row], place: str, row: Row) -> None:
    """Columns of one data set hold one type each."""
    first_place, expected = first
    if row.keys() != expected.keys():
        names = " + ".join(row), " + ".join(expected)
        raise InputError(f"{place} gives {names[0]}, but {first_place} gives {names[1]}; make the rows alike")
    if isinstance(row.get("prompt"), list) != isinstance(expected.get("prompt"), list):
        raise InputError(f"{place} and {first_place} differ: one has text, the other messages; make them alike")


def column(row: Mapping[str, Any], name: str, place: str) -> Any:
    """The value of a column; InputError if the column is missing or the value null."""
    if name not in row:
        raise InputError(f"{place} has no column {name!r}; it has {describe_columns(row)}")
    if row[name] is None:
        raise InputError(f"{place}: column {name!r} is null; remove the row or fill it")
    return row[name]


def text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = column(row, name, place)
    if not isinstance(value, str):
        raise InputError(f"{place}: column {name!r} is {describe(value)}, but text is expected")
    return value


def describe_columns(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row) or "none"


def describe(value: Any) -> str:
    """A short look at a wrong value: its type and its beginning."""
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
