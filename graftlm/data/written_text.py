"""Text that the model writes itself, for its heads to learn from (CAFT, arXiv 2506.07833: self-distillation)."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from graftlm.data.batches import padded
from graftlm.data.encoding import encode_text
from graftlm.errors import InputError
from graftlm.models.decoder import end_tokens
from graftlm.runs.files import append_text, drop_partial_line

TEXT_FILE = "text.jsonl"
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class WrittenText:
    """One prompt with the model's continuation, as token ids; `kind` says which prompts it came from."""

    kind: str
    prompt_length: int
    input_ids: list[int]

    @property
    def written(self) -> int:
        return len(self.input_ids) - self.prompt_length


def read_texts(path: Path) -> list[WrittenText]:
    """The texts in a JSONL file; a last line cut short by a kill is left out."""
    texts = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                texts.append(WrittenText(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a written text ({error}); delete the file") from error
    return texts


def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[int]],
    *,
    tokens: int,
    kind: str = "domain",
    path: Path | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[WrittenText]:
    """Continue the prompts (text or token ids) by sampling until `tokens` tokens are written.

    Prompts are taken in a shuffled order, again and again. Each batch is drawn with a seed of its own and appended to
    `path` when it is done, so that an interrupted call picks up where it was; a batch that is there in part is drawn
    again. Raises InputError without prompts.
    """
    if not prompts:
        raise InputError(f"there are no {kind} prompts for the model to write from")
    encoded = [encode_text(tokenizer, p) if isinstance(p, str) else p for p in prompts]
    texts: list[WrittenText] = []
    stream = _shuffled(encoded, seed)
    finished: list[WrittenText] = []
    if path is not None and path.exists():
        drop_partial_line(path)
        finished = [text for text in read_texts(path) if text.kind == kind]
    if sum(t.written for t in finished) >= tokens:
        return finished
    done = 0
    model.eval()
    while done < tokens:
        # Each text may be cut at max_new_tokens: no more prompts than that many tokens can need.
        size = min(batch_size, -(-(tokens - done) // max_new_tokens))
        # Similar lengths need the least padding within a batch; the order within it does not matter.
        batch = sorted(itertools.islice(stream, size), key=len)
        new = finished[len(texts) : len(texts) + size]
        if len(new) < size:
            if path is not None and new:
                _remove_last_lines(path, len(new))
            set_seed(seed + len(texts))
            new = _continue(model, tokenizer, batch, kind, temperature, max_new_tokens)
            if path is not None:
                append_text(path, "".join(json.dumps(asdict(text)) + "\n" for text in new))
        texts += new
        done += sum(t.written for t in new)
        if progress is not None:
            progress(min(done, tokens), tokens)
    return texts


def _remove_last_lines(path: Path, count: int) -> None:
    """Truncate the file, which needs no room on the disk."""
    lines = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, sum(map(len, lines[:-count])))


def _shuffled(prompts: Sequence[list[int]], seed: int) -> Iterator[list[int]]:
    """The prompts again and again, each time in another order."""
    order = random.Random(seed)
    while True:
        yield from order.sample(list(prompts), len(prompts))


@torch.inference_mode()
def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    kind: str,
    temperature: float,
    max_new_tokens: int,
) -> list[WrittenText]:
    input_ids, mask = padded(prompts, tokenizer.pad_token_id, "left")
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    ends = end_tokens(model, tokenizer)
    texts = []
    for prompt, row in zip(prompts, output[:, input_ids.shape[1] :].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        texts.append(WrittenText(kind, len(prompt), prompt + row[:end]))
    return texts
