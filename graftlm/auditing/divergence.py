"""Divergence of the tuned model from the base model, on text that the base model writes:

KL(base || tuned) = mean over positions t of  sum_v p_base(v | x_<t) log(p_base(v | x_<t) / p_tuned(v | x_<t))
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.data.batches import padded
from graftlm.data.written_text import Progress, WrittenText
from graftlm.decoding.batches import logits_at
from graftlm.errors import InputError
from graftlm.models.pair import ModelPair

BATCH = 8  # texts whose logits exist at once (50 MB in float32 at 32 tokens each and 49,152 words)


@torch.no_grad()
def base_written_divergence(
    pair: ModelPair, texts: Sequence[WrittenText], *, progress: Progress | None = None
) -> tuple[float, float]:
    """(mean, standard error) of KL(base || tuned) in nats per written token; the error is over texts, of which each has
    one draw. Prompts and padding do not count. InputError without a written token."""
    texts = sorted((text for text in texts if text.written), key=lambda text: len(text.input_ids))
    if not texts:
        raise InputError("the base model wrote no text, so no divergence can be measured")
    sums: list[float] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        with pair.base() as model:
            base = _log_probabilities(model, batch)
        with pair.tuned() as model:
            tuned = _log_probabilities(model, batch)
        rows = (base.exp() * (base - tuned)).sum(-1).double().cpu()
        lengths = [text.written for text in batch]
        sums += [float(part.sum()) for part in rows.split(lengths)]
        if progress is not None:
            progress(len(sums), len(texts))
    counts = [text.written for text in texts]
    mean = sum(sums) / sum(counts)
    pulls = [(total - mean * count) * len(texts) / sum(counts) for total, count in zip(sums, counts, strict=True)]
    return mean, statistics.stdev(pulls) / math.sqrt(len(pulls)) if len(pulls) > 1 else math.nan


def _log_probabilities(model: Any, batch: Sequence[WrittenText]) -> Tensor:
    """log p [written tokens, vocabulary], float32 or better, text after text.

    Rows are padded on the right: no token sees what follows it, so no mask is needed.
    """
    rows, _ = padded([text.input_ids for text in batch], 0, "right")
    width, first = rows.shape[1], min(text.prompt_length for text in batch)
    positions = torch.arange(first - 1 - width, -1, device=model.device)
    logits, _ = logits_at(model, positions, input_ids=rows.to(model.device), use_cache=False)
    written = [slice(text.prompt_length - first, len(text.input_ids) - first) for text in batch]
    chosen = torch.cat([logits[row, places] for row, places in enumerate(written)])
    return torch.log_softmax(chosen if chosen.dtype == torch.float64 else chosen.float(), dim=-1)
