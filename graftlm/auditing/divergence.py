"""Divergence of the tuned model from the base model, on text that the base model writes:

    KL(base || tuned) = mean over positions t of  sum_v p_base(v | x_<t) log(p_base(v | x_<t) / p_tuned(v | x_<t))

over text x that the base model writes itself: the mean estimates the divergence per token of the two models'
distributions over such text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from graftlm.data.written_text import WrittenText, write_texts
from graftlm.decoding.batches import logits_at
from graftlm.errors import InputError
from graftlm.models.pair import ModelPair

MAX_ROWS = 256  # positions whose logits exist at once (50 MB in float32 at 49,152 words)


def write_base_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens: int = 1500,
    max_new_tokens: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[WrittenText]:
    """Let the base model write at least `tokens` tokens at temperature 1 after the prompts."""
    return write_texts(
        model, tokenizer, prompts, tokens=tokens, kind="general", temperature=1.0, max_new_tokens=max_new_tokens,
        seed=seed, progress=progress,
    )  # fmt: skip


@torch.no_grad()
def base_written_divergence(
    pair: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[WrittenText],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, float]:
    """(mean, standard error) of KL(base || tuned) in nats per written token; the error is over texts, of which each has
    one draw. Prompts and padding do not count. InputError without a written token."""
    texts = sorted((text for text in texts if text.written), key=lambda text: len(text.input_ids))
    if not texts:
        raise InputError("the base model wrote no text, so no divergence can be measured")
    sums: list[float] = []
    for batch in _batches(texts):
        logs = []
        for opened in (pair.base, pair.tuned):
            with opened() as model:
                logs.append(_log_probabilities(model, batch))
        rows = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).double().cpu()
        lengths = [text.written for text in batch]
        sums += [float(part.sum()) for part in rows.split(lengths)]
        if progress is not None:
            progress(len(sums), len(texts))
    counts = [text.written for text in texts]
    mean = sum(sums) / sum(counts)
    pulls = [(total - mean * count) * len(texts) / sum(counts) for total, count in zip(sums, counts, strict=True)]
    many = len(pulls)
    error = math.sqrt(math.fsum(pull * pull for pull in pulls) / (many - 1) / many) if many > 1 else math.nan
    return mean, error


def _batches(texts: Sequence[WrittenText]) -> list[list[WrittenText]]:
    """Batches of neighbours; the positions from the first that any text wrote to the end are at most MAX_ROWS."""
    batches: list[list[WrittenText]] = []
    for text in texts:
        grown = [*batches[-1], text] if batches else [text]
        width = max(len(t.input_ids) for t in grown) - min(t.prompt_length for t in grown)
        if batches and len(grown) * width <= MAX_ROWS:
            batches[-1] = grown
        else:
            batches.append([text])
    return batches


def _log_probabilities(model: Any, batch: Sequence[WrittenText]) -> Tensor:
    """log p [written tokens, vocabulary], float32 or better, text after text.

    Rows are padded on the right: no token sees what follows it, so no mask is needed.
    """
    rows = nn.utils.rnn.pad_sequence([torch.tensor(text.input_ids) for text in batch], batch_first=True)
    width, first = rows.shape[1], min(text.prompt_length for text in batch)
    positions = torch.arange(first - 1 - width, -1, device=model.device)
    logits, _ = logits_at(model, positions, input_ids=rows.to(model.device), use_cache=False)
    written = [slice(text.prompt_length - first, len(text.input_ids) - first) for text in batch]
    chosen = torch.cat([logits[row, places] for row, places in enumerate(written)])
    return torch.log_softmax(chosen if chosen.dtype == torch.float64 else chosen.float(), dim=-1)
