"""Any data the user has -> a Dataset of prompt+completion or text rows (graftlm/data/forms.py says which forms)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.data.encoding import beginning, encode_messages, encode_text
from graftlm.data.forms import TOKEN_COLUMNS, Row, canonical_rows, describe
from graftlm.data.named import named_data
from graftlm.data.readers import READERS, PlacedRow, ending, names_split, read_file, read_lines, select_files
from graftlm.errors import InputError
from graftlm.models.hub import hub_reachable

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
CHUNK_ROWS = 10_000  # rows held as Python objects at a time


def load_rows(source: str | os.PathLike[str], split: str = "train", *, limit: int | None = None) -> Dataset:
    """Load rows and bring them to one form.

    Args:
        source: a built-in task's name, a .json, .jsonl, .csv or .parquet file (or any of them .gz), a folder of such
            files, or a hub id, with a configuration as in "openai/gsm8k:main". A task's name wins over a folder of that
            name: write ./molecules for the folder.
        split: a single file is its "train" split, unless its name has the word for another one.
        limit: stop after so many rows.

    Returns columns `prompt` and `completion` (both text, or both lists of {"role", "content"} messages), or `text`;
    with `weights` or `importance` (list of float, one for each token of the completion) where the source has them.
    Raises InputError: no such source or split, an unreadable or malformed file, no rows, or a row of no known form.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, but a number of rows from 1 up is expected")
    from datasets import Dataset, concatenate_datasets

    name = os.fspath(source)
    rows = itertools.islice(canonical_rows(read_source(name, split)), limit)
    parts: list[Dataset] = []
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        parts.append(Dataset.from_list(chunk, features=parts[0].features if parts else features_of(chunk[0])))
    if not parts:
        raise InputError(f"data {name!r} (split {split!r}) has no rows")
    return concatenate_datasets(parts)


def read_source(name: str, split: str) -> Iterator[PlacedRow]:
    """The raw rows of a task, file, folder or hub id."""
    path = Path(name).expanduser()
    if rows := named_data().get(name):
        return ((f"row {i} of task {name}", row) for i, row in enumerate(rows(split), start=1))
    if path.is_dir():
        return itertools.chain.from_iterable(read_file(file) for file in select_files(path, split))
    if path.exists():
        if split != "train" and not names_split(Path(path.name), split):
            raise InputError(f"data file {path} is one split, 'train'; there is no {split!r} in it")
        return read_file(path)
    if ending(path) in READERS or not HUB_ID.fullmatch(name):
        raise InputError(f"data {name!r} does not exist")
    return read_hub(name, split)


def read_hub(name: str, split: str) -> Iterator[PlacedRow]:
    import datasets

    unknown = f"data {name!r} is no file, folder or task ({', '.join(named_data())}), and"
    if not datasets.config.HF_HUB_OFFLINE and not hub_reachable():
        raise InputError(f"{unknown} the hub is out of reach; set HF_HUB_OFFLINE=1 to use an earlier download")
    hub_id, _, configuration = name.partition(":")
    try:
        rows: Any = datasets.load_dataset(hub_id, configuration or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{unknown} not on the hub: {reason}") from error
    return ((f"row {i} of {name}", row) for i, row in enumerate(rows, start=1))


def features_of(row: Row) -> Features:
    """Column types by the row's own; given, so that they do not depend on which rows come first."""
    from datasets import Features, Value

    text = Value("string")
    lists = {name: [Value("float64")] if name in TOKEN_COLUMNS else [{"role": text, "content": text}] for name in row}
    return Features({name: text if isinstance(value, str) else lists[name] for name, value in row.items()})


def prompt_too_long(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> None:
    """InputError for the first row whose prompt leaves no room for one token of its completion within `max_length`
    tokens (None: unlimited), or does not go through the tokenizer's chat template. `text` rows have no prompt."""
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        if prompt is None or (max_length is None and isinstance(prompt, str)):
            continue
        try:
            length = len(prompt_tokens(prompt, tokenizer))
        except InputError as error:
            raise InputError(f"the prompt of row {number}, {describe(prompt)}: {error}") from error
        if max_length is not None and length >= max_length:
            raise InputError(
                f"the prompt of row {number}, {describe(prompt)}, has {length} tokens, no room for its "
                f"completion within max_length={max_length}; raise max_length, or shorten or remove the row"
            )


def begun_once(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows, their prompts and texts without a spelled beginning that the tokenizer would put there once more."""
    name, first = ("text" if "text" in rows.column_names else "prompt"), beginning(tokenizer)
    if first and any(isinstance(text, str) and text.startswith(first) for text in rows[name]):
        rows = rows.map(lambda row: {name: row[name].removeprefix(first)})
    return rows


def prompt_tokens(prompt: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt as in training: messages go through the chat template, up to the answer."""
    return encode_text(tokenizer, prompt) if isinstance(prompt, str) else encode_messages(tokenizer, prompt)


def row_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each row as TRL trains on it, before it cuts any; rows and tokenizer as TRL gets them."""
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK_ROWS):
        texts = [whole_text(row, tokenizer) for row in rows.select(range(start, min(start + CHUNK_ROWS, len(rows))))]
        templated = "prompt" in rows.column_names and not isinstance(rows[0]["prompt"], str)
        lengths += map(len, tokenizer(texts, add_special_tokens=not templated)["input_ids"])
    return lengths


def whole_text(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A row's prompt and completion as one text, with the end that the template or else TRL puts there."""
    whole = row["text"] if "text" in row else row["prompt"] + row["completion"]
    if isinstance(whole, list):
        return str(tokenizer.apply_chat_template(whole, tokenize=False))
    end = tokenizer.eos_token or ""
    return str(whole if whole.endswith(end) else whole + end)


def data_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over the rows in order, each as JSON with sorted keys: equal for equal data, however stored."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def general_prompts() -> list[str]:
    """Short prompts on varied subjects, the general set for distilling heads: sentences, questions, code."""
    return read_lines(Path(__file__).with_name("general_prompts.txt"), "the bundled")


def general_text() -> list[str]:
    """Short encyclopaedic paragraphs on varied subjects: measures forgetting, and holds the KL anchor."""
    return read_lines(Path(__file__).with_name("general_text.txt"), "the bundled")
