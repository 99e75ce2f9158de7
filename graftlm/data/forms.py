"""Bring rows of any supported form to prompt+completion or text; each is checked, and errors name the row.

| form | columns | becomes |
|---|---|---|
| prompt+completion | prompt, completion: both text or both lists of messages | as it is |
| messages | messages: list of {role, content}; optional system | a row for each assistant turn |
| sharegpt | conversations: list of {from, value}; optional system | a row for each assistant turn |
| alpaca | instruction, output; optional input, system | a user message and the assistant's answer |
| text | text | as it is; empty texts are left out |

Where a row has the columns of several forms, the first of this table counts. A conversation gives one row for each
assistant turn, whose prompt is everything before it: the loss then falls on the completion alone, whatever the chat
template (a mask over all turns at once needs a template with {% generation %} marks, which few models have), and each
turn is trained on exactly the text that the model is given when it has to write it (templates such as Qwen3's render
earlier turns differently). The price is that the earlier turns are read again with each later one. A turn with `weight`
0, or `train` or `training` false, gives no row: it is context of the later ones. What else a message or its row holds
and the model would never see (tool calls, tools, images) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from graftlm.errors import InputError

Row = dict[str, Any]
Message = dict[str, str]
Converter = Callable[[Mapping[str, Any], str], Iterator[Row]]  # a row and its place

# One number for each token of the completion, written by other parts of graftlm; passed on as they are.
TOKEN_COLUMNS = ("weights", "importance")
# Whether a turn is trained on: OpenAI's and Axolotl's keys of a message.
TRAINED_KEYS = ("weight", "train", "training")
MESSAGE_KEYS = ("role", "from", "content", "value", *TRAINED_KEYS)
MESSAGES = "{role, content} or {from, value}"
# Columns that chat templates and trainers read beside the messages.
LOST_COLUMNS = ("tools", "functions", "chat_template_kwargs", "images", "image", "audios", "audio", "videos", "video")
ROLES = {
    **{role: role for role in ("user", "assistant", "system", "developer", "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
}


def canonical_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Row]:
    """Convert (place, row) pairs, such as ("row 3 of data.csv", {...}), by the form that the first row has.

    Yields rows as `load_rows` describes them, all with the same keys. Raises InputError for a missing column, a null or
    wrongly typed value, or rows that differ in kind.
    """
    convert: Converter | None = None
    first: tuple[str, Row] | None = None
    for place, row in rows:
        convert = convert or converter_of(row, place)
        for converted in convert(row, place):
            add_token_columns(converted, row, place)
            first = first or (place, converted)
            check_same_kind(first, place, converted)
            yield converted


def converter_of(row: Mapping[str, Any], place: str) -> Converter:
    for columns, convert in FORMS.items():
        if all(column in row for column in columns):
            return convert
    expected = "; ".join(map(" + ".join, FORMS))
    raise InputError(f"{place} has the columns {describe_columns(row)}, but one of these is needed: {expected}")


def from_prompt_completion(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    prompt, completion = column(row, "prompt", place), column(row, "completion", place)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        yield {"prompt": text(row, "prompt", place), "completion": filled_text(row, "completion", place)}
        return
    refuse_columns(row, (*LOST_COLUMNS, "system"), place)
    messages = [to_message(message, f"{place}: prompt") for message in prompt]
    if not messages or not completion or to_message(completion[-1], f"{place}: completion")["role"] != "assistant":
        raise InputError(f"{place}: prompt needs a message, and completion has to end with the assistant's")
    yield from split_conversation(completion, "completion", place, prompt=messages)


def from_conversation(row: Mapping[str, Any], place: str, *, name: str) -> Iterator[Row]:
    refuse_columns(row, LOST_COLUMNS, place)
    turns, system = column(row, name, place), system_turn(row, place)
    if system and isinstance(turns, list) and turns and to_message(turns[0], f"{place}: {name}")["role"] == "system":
        raise InputError(f"{place} has a column 'system' and a system message in {name!r}; keep one of them")
    return split_conversation(turns, name, place, prompt=system)


def system_turn(row: Mapping[str, Any], place: str) -> list[Message]:
    """The message of the column `system`, if there is one."""
    return [{"role": "system", "content": text(row, "system", place)}] if row.get("system") else []


def refuse_columns(row: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """InputError for a column that belongs to the conversation and would be lost."""
    for name in names:
        if row.get(name) not in (None, "", [], {}):
            raise InputError(f"{place}: column {name!r} is not read; remove it, or write it into the messages")


def from_alpaca(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    refuse_columns(row, (*LOST_COLUMNS, "history"), place)
    question, answer = text(row, "instruction", place), filled_text(row, "output", place)
    if row.get("input") not in (None, ""):
        question += "\n\n" + text(row, "input", place)
    yield {
        "prompt": [*system_turn(row, place), {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def from_text(row: Mapping[str, Any], place: str) -> Iterator[Row]:
    if content := text(row, "text", place):
        yield {"text": content}


FORMS: dict[tuple[str, ...], Converter] = {
    ("prompt", "completion"): from_prompt_completion,
    ("messages",): partial(from_conversation, name="messages"),
    ("conversations",): partial(from_conversation, name="conversations"),
    ("instruction", "output"): from_alpaca,
    ("text",): from_text,
}
"""Columns of a form, and how one of its rows is converted."""


def split_conversation(turns: Any, name: str, place: str, *, prompt: Sequence[Message] = ()) -> Iterator[Row]:
    """One row for each assistant turn that something precedes, unless its own keys leave it as context; what follows
    the last one is left out. `prompt` comes before the turns."""
    if not isinstance(turns, list):
        raise InputError(f"{place}: column {name!r} is {describe(turns)}, but a list of messages is expected")
    messages = [*prompt, *(to_message(turn, f"{place}: {name}") for turn in turns)]
    first = max(len(prompt), 1)
    answers = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
    if not answers:
        raise InputError(f"{place}: column {name!r} has no assistant turn that answers another")
    says = dict(enumerate((trained(turn, f"{place}: {name}") for turn in turns), start=len(prompt)))
    if wrong := [messages[i] for i, asked in says.items() if asked and i not in answers]:
        raise InputError(
            f"{place}: {name}: {describe(wrong[0])} is to be trained on, but only assistant turns that answer are"
        )
    targets = [i for i in answers if says[i] is not False]
    if not targets:
        raise InputError(f"{place}: column {name!r} leaves no assistant turn to train on; remove the row")
    for i in targets:
        if not messages[i]["content"]:
            raise InputError(f"{place}: {name} has an empty assistant turn; fill it, or give it weight 0")
        yield {"prompt": messages[:i], "completion": [messages[i]]}


def to_message(turn: Any, place: str) -> Message:
    """{role, content} from a message in OpenAI's or ShareGPT's notation; InputError for a further key that has a value,
    such as tool_calls, since it would be lost."""
    if not isinstance(turn, Mapping):
        raise InputError(f"{place} has {describe(turn)} as a message, but {MESSAGES} is expected")
    for key, value in turn.items():
        if key not in MESSAGE_KEYS and value not in (None, "", [], {}):
            raise InputError(f"{place}: {key!r} of a message is not read; remove it, or write it into the content")
    role = turn.get("role", turn.get("from"))
    content = plain_text(turn.get("content", turn.get("value")))
    if not isinstance(role, str) or content is None:
        raise InputError(f"{place} has {describe(turn)} as a message, but {MESSAGES} with text is expected")
    if role.lower() not in ROLES:
        raise InputError(f"{place} has the role {role!r}; known are {', '.join(ROLES)}")
    return {"role": ROLES[role.lower()], "content": content}


def plain_text(content: Any) -> str | None:
    """The text of a message's content, or of its parts (OpenAI's {type: text}); None where it is something else."""
    if isinstance(content, list) and content:
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        return "".join(texts) if len(texts) == len(content) else None
    return content if isinstance(content, str) else None


def trained(turn: Mapping[str, Any], place: str) -> bool | None:
    """Read whether a message asks to be trained on: True, False, or None where it says nothing.

    Raises InputError for a value that is neither 0 nor 1, and for two keys that contradict each other.
    """
    given = {name: turn[name] for name in TRAINED_KEYS if turn.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise InputError(f"{place}: {name!r} of a message is {describe(value)}; a turn counts (1) or not (0)")
    if len(set(map(bool, given.values()))) > 1:
        raise InputError(f"{place}: {' and '.join(map(repr, given))} of a message contradict each other")
    return next(map(bool, given.values()), None)


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
        columns, others = " + ".join(row), " + ".join(expected)
        raise InputError(f"{place} gives {columns}, but {first_place} gives {others}; make the rows alike")
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


def filled_text(row: Mapping[str, Any], name: str, place: str) -> str:
    if value := text(row, name, place):
        return value
    raise InputError(f"{place}: column {name!r} is empty; remove the row or fill it")


def describe_columns(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row) or "none"


def describe(value: Any) -> str:
    """A short look at a wrong value: its type and its beginning."""
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
