"""The model's hidden states on a set of texts, computed once for all epochs of distillation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from graftlm.data.written_text import WrittenText
from graftlm.models.decoder import Decoder, LayerCall


@dataclass
class CachedBatch:
    """A batch of texts: what its heads are called with, and what they are to say.

    cached: the model's layer call, with hidden states [batch, time, hidden] in the cache, whatever device the rest of
    it is on.
    tokens: [batch, time] int64. written: [batch, time] bool, true where the model wrote the token.
    top_tokens, top_probabilities: [batch, time, n] of the model's own next-token distribution at each position.
    """

    cached: LayerCall
    tokens: Tensor
    written: Tensor
    top_tokens: Tensor
    top_probabilities: Tensor

    def call(self, like: Tensor) -> LayerCall:
        """The call with its hidden states in the dtype and on the device of `like`."""
        return replace(self.cached, args=(self.cached.args[0].to(like), *self.cached.args[1:]))

    def targets(self, head: int) -> Tensor:
        """Positions [batch, time] (bool) where head `head` (1..K) has to predict a token that the model wrote."""
        positions = torch.zeros_like(self.written)
        shift = head + 1
        if shift < positions.shape[1]:
            positions[:, :-shift] = self.written[:, shift:]
        return positions

    def ahead(self, values: Tensor, head: int, positions: Tensor) -> Tensor:
        """`values` [batch, time, ...] from `head` places later, at `positions`: [rows, ...]."""
        return torch.roll(values, -head, dims=1)[positions]


def batches_of_similar_length(texts: Sequence[WrittenText], tokens_per_batch: int) -> list[list[WrittenText]]:
    """Batches of at most `tokens_per_batch` positions, padding included, and at least one text."""
    batches: list[list[WrittenText]] = []
    for text in sorted(texts, key=lambda t: len(t.input_ids)):
        if batches and (len(batches[-1]) + 1) * len(text.input_ids) <= tokens_per_batch:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches


class HiddenStateCache:
    """Batches of texts with their hidden states in a memory-mapped file without a name: it is gone with the process.

    The file holds positions × hidden values in the model's dtype (2.3 KB a position for SmolLM2-135M in float32).
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[WrittenText],
        *,
        tap: int,
        tokens_per_batch: int,
        pad_token_id: int,
        top: int = 16,
        folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        groups = batches_of_similar_length(texts, tokens_per_batch)
        decoder = Decoder(model)
        sizes = [len(g) * max(len(t.input_ids) for t in g) for g in groups]
        hidden_size = decoder.unembedding.weight.shape[1]
        dtype = decoder.unembedding.weight.dtype
        size = max(sum(sizes), 1) * int(hidden_size)
        with tempfile.TemporaryFile(dir=folder) as file:
            mapped = numpy.memmap(file, numpy.uint8, "w+", shape=size * dtype.itemsize)
        self._store = torch.from_numpy(mapped).view(dtype)
        self.batches: list[CachedBatch] = []
        used = 0
        was_training = model.training
        model.eval()
        try:
            for number, (group, size) in enumerate(zip(groups, sizes, strict=True), start=1):
                values = self._store[used * int(hidden_size) : (used + size) * int(hidden_size)]
                self.batches.append(_fill(decoder, group, tap, pad_token_id, top, values))
                used += size
                if progress is not None:
                    progress(number, len(groups))
        finally:
            model.train(was_training)

    def close(self) -> None:
        self.batches.clear()
        del self._store


@torch.no_grad()
def _fill(
    decoder: Decoder, texts: list[WrittenText], tap: int, pad_token_id: int, top: int, values: Tensor
) -> CachedBatch:
    device = decoder.unembedding.weight.device
    width = max(len(t.input_ids) for t in texts)
    tokens = torch.full((len(texts), width), pad_token_id)
    mask = torch.zeros_like(tokens)
    written = torch.zeros_like(tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text.input_ids)] = torch.tensor(text.input_ids)
        mask[row, : len(text.input_ids)] = 1
        written[row, text.prompt_length : len(text.input_ids)] = True
    final, call = decoder.run(tap, input_ids=tokens.to(device), attention_mask=mask.to(device))
    hidden = values.view(*tokens.shape, -1)
    hidden.copy_(call.hidden_states)
    top_tokens = torch.zeros(*tokens.shape, top, dtype=torch.int64)
    top_probabilities = torch.zeros(*tokens.shape, top)
    # Only the positions that some head's target is read from.
    wanted = torch.nn.functional.pad(written[:, 1:], (0, 1))
    for chunk in torch.nonzero(wanted).split(256):
        rows = final[chunk[:, 0].to(device), chunk[:, 1].to(device)]
        probabilities, ids = _next_token_probabilities(decoder, rows).topk(top)
        top_tokens[chunk[:, 0], chunk[:, 1]] = ids.cpu()
        top_probabilities[chunk[:, 0], chunk[:, 1]] = probabilities.cpu()
    kwargs = {name: value for name, value in call.kwargs.items() if name != "hidden_states"}
    cached = LayerCall((hidden, *call.args[1:]), kwargs, call.following)
    return CachedBatch(cached, tokens, written, top_tokens, top_probabilities)


def _next_token_probabilities(decoder: Decoder, normed_rows: Tensor) -> Tensor:
    """Softmax [rows, vocabulary] of rows that have been through the final norm."""
    return torch.softmax(decoder.scaled(decoder.unembedding(normed_rows).float()), dim=-1)
