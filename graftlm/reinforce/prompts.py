"""Any data the user has -> the rows that a reward reads: a prompt, and every other column as it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow
from datasets import Dataset, concatenate_datasets

from graftlm.data.forms import LOST_COLUMNS, refuse_columns, to_message
from graftlm.data.load import read_source
from graftlm.errors import InputError
from graftlm.reinforce.completions import completion_text
from graftlm.tasks.reasoning import PREFIX, Reasoning

QUESTIONS = ("prompt", "question", "problem", "instruction")
RESERVED = ("prompts", "completions", "completion_ids", "image", "images", "environment", "trainer_state", "log_extra",
            "log_metric")  # fmt: skip
ANSWERS = ("completion", "solution", "output", "response")


def load_prompts(source: str, *, rows: int, options: Mapping[str, Any] | None = None) -> Dataset:
    """Rows with `prompt` (text, or messages that end with the user's) and the columns that the source has.

    A row's `question`, `problem` or `instruction` (with its `input`) serves as its prompt; where there is no column
    `answer`, the text of its `completion`, `solution`, `output` or `response` is that as well.

    Raises:
        InputError: no such source, no rows, options for data that is not of reasoning-gym, or a row without a prompt.
    """
    if source.startswith(PREFIX):
        made: Dataset = Reasoning(source, options).rows("train", rows)
        return made.remove_columns("completion")
    if options:
        raise InputError(f"--data-options are for reasoning-gym:NAME, but the data is {source!r}")
    read = [row_of(place, row) for place, row in itertools.islice(read_source(source, "train"), rows)]
    if not read:
        raise InputError(f"data {source!r} has no rows")
    columns = list(dict.fromkeys(name for row in read for name in row))
    if reserved := [name for name in columns if name in RESERVED]:
        raise InputError(f"data {source!r} has a column {reserved[0]!r}, a name that TRL uses itself: rename it")
    parts = []
    for name in columns:
        try:
            parts.append(Dataset.from_dict({name: [row.get(name) for row in read]}))
        except pyarrow.ArrowException as error:
            raise InputError(f"column {name!r} of data {source!r} holds values of several kinds: {error}") from error
    return concatenate_datasets(parts, axis=1)


def row_of(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    refuse_columns(row, (*LOST_COLUMNS, "system"), place)
    rest = {name: value for name, value in row.items() if name != "completion"}
    if "answer" not in rest and (name := next((each for each in ANSWERS if each in row), None)):
        value = row[name]
        conversation = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
        rest["answer"] = completion_text(value) if conversation else value
    if isinstance(messages := rest.pop("messages", None), list) and "prompt" not in rest:
        asking = [i for i, turn in enumerate(messages) if isinstance(turn, dict) and turn.get("role") == "user"]
        last = asking[-1] if asking else -1
        return {**rest, "prompt": checked(place, messages[: last + 1])}
    name = next((each for each in QUESTIONS if rest.get(each)), None)
    if name is None:
        raise InputError(
            f"{place} has no prompt: one of the columns {', '.join(QUESTIONS)} or messages is expected, but it has "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    prompt = checked(place, rest[name])
    if name == "instruction" and isinstance(prompt, str) and isinstance(context := rest.get("input"), str) and context:
        prompt = f"{prompt}\n\n{context}"  # Alpaca's; as `graftlm tune` has it
    return {**rest, "prompt": prompt}


def checked(place: str, prompt: Any) -> Any:
    """Text or a non-empty list of messages; InputError names the row."""
    if isinstance(prompt, list) and prompt:
        return [to_message(message, place) for message in prompt]
    if not (isinstance(prompt, str) and prompt.strip()):
        raise InputError(
            f"{place}: its prompt is {str(prompt)[:80]!r}, but text or messages (role and content) are expected"
        )
    return prompt
