"""The model's hidden states on a set of texts, computed once for all epochs of distillation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from graftlm.data.batches import batches_that_fit, padded
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
        shift = min(head + 1, self.written.shape[1])
        return nn.functional.pad(self.written[:, shift:], (0, shift))

    def ahead(self, values: Tensor, head: int, positions: Tensor) -> Tensor:
        """`values` [batch, time, ...] from `head` places later, at `positions`: [rows, ...]."""
        return torch.roll(values, -head, dims=1)[positions]


def batches_of_similar_length(texts: Sequence[WrittenText], tokens_per_batch: int) -> list[list[WrittenText]]:
    """Batches of at most `tokens_per_batch` positions, padding included, and at least one text."""
    ordered = sorted(texts, key=lambda text: len(text.input_ids))
    return list(batches_that_fit(ordered, lambda batch: len(batch) * len(batch[-1].input_ids) <= tokens_per_batch))


def cached_batches(
    model: nn.Module,
    texts: Sequence[WrittenText],
    *,
    tap: int,
    tokens_per_batch: int,
    pad_token_id: int,
    top: int = 16,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CachedBatch]:
    """Run the model over the texts, and keep its hidden states in a memory-mapped file without a name in `folder`: it
    is gone with the batches, and with the process.

    The file holds positions × hidden values in the model's dtype (2.3 KB a position for SmolLM2-135M in float32).
    """
    groups = batches_of_similar_length(texts, tokens_per_batch)
    decoder = Decoder(model)
    dtype, hidden_size = decoder.unembedding.weight.dtype, int(decoder.unembedding.weight.shape[1])
    sizes = [len(group) * len(group[-1].input_ids) * hidden_size for group in groups]
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = numpy.memmap(file, numpy.uint8, "w+", shape=max(sum(sizes), 1) * dtype.itemsize)
    pieces = torch.from_numpy(mapped).view(dtype)[: sum(sizes)].split(sizes)
    batches = []
    was_training = model.training
    model.eval()
    try:
        for group, values in zip(groups, pieces, strict=True):
            batches.append(_fill(decoder, group, tap, pad_token_id, top, values))
            if progress is not None:
                progress(len(batches), len(groups))
    finally:
        model.train(was_training)
    return batches


@torch.no_grad()
def _fill(
    decoder: Decoder, texts: list[WrittenText], tap: int, pad_token_id: int, top: int, values: Tensor
) -> CachedBatch:
    device = decoder.unembedding.weight.device
    tokens, mask = padded([text.input_ids for text in texts], pad_token_id, "right")
    prompt_lengths = torch.tensor([text.prompt_length for text in texts])
    written = (mask.cumsum(1) > prompt_lengths[:, None]) & mask.bool()
    final, call = decoder.run(tap, input_ids=tokens.to(device), attention_mask=mask.to(device))
    hidden = values.view(*tokens.shape, -1)
    hidden.copy_(call.hidden_states)
    top_tokens = torch.zeros(*tokens.shape, top, dtype=torch.int64)
    top_probabilities = torch.zeros(*tokens.shape, top)
    # Only the positions that some head's target is read from.
    wanted = nn.functional.pad(written[:, 1:], (0, 1))
    for chunk in torch.nonzero(wanted).split(256):
        rows = final[chunk[:, 0].to(device), chunk[:, 1].to(device)]
        probabilities, ids = decoder.scaled(decoder.unembedding(rows).float()).softmax(-1).topk(top)
        top_tokens[chunk[:, 0], chunk[:, 1]] = ids.cpu()
        top_probabilities[chunk[:, 0], chunk[:, 1]] = probabilities.cpu()
    kwargs = {name: value for name, value in call.kwargs.items() if name != "hidden_states"}
    cached = LayerCall((hidden, *call.args[1:]), kwargs, call.following)
    return CachedBatch(cached, tokens, written, top_tokens, top_probabilities)
