"""Drift of each layer's output on general text.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),  K = X X^T, L = Y Y^T

X, Y [positions, hidden] are the outputs of one layer of the base and of the tuned model (linear CKA, Kornblith et al.
2019, arXiv 1905.00414). Where we differ:

1. HSIC is the unbiased estimate of a minibatch, and the three HSICs are averaged over minibatches before the ratio is
   taken (Nguyen et al. 2021, arXiv 2010.15327). So no more than a batch's hidden states of one model are held, whatever
   the amount of text, and no hidden x hidden matrix a layer.
2. The first position of each text is left out: models park norms a hundred times the usual ones there (attention
   sinks), which alone would make any two models look alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from graftlm.auditing.result import LayerDrift
from graftlm.data.batches import padded
from graftlm.data.encoding import encode_text
from graftlm.data.written_text import Progress
from graftlm.decoding.batches import logits_at
from graftlm.errors import InputError
from graftlm.models.decoder import decoder_layers, plain_model
from graftlm.models.pair import ModelPair

POSITIONS = 512  # at most so many of a batch go into the Gram matrices, spread evenly


@torch.no_grad()
def layer_drift(
    pair: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_length: int = 128,
    progress: Progress | None = None,
) -> list[LayerDrift]:
    """One entry a decoder layer. InputError where the texts have fewer than five positions that count."""
    batches = list(_batches(tokenizer, texts, batch_size, max_length))
    products = torch.zeros(pair.layers, 3, dtype=torch.float64)  # HSIC of (K, L), (K, K), (L, L)
    cosines = torch.zeros(pair.layers, dtype=torch.float64)
    positions = 0
    for number, (ids, mask) in enumerate(batches, start=1):
        counted = mask.clone()
        counted[:, 0] = 0
        chosen = counted.flatten().nonzero().squeeze(1)
        if len(chosen) > 3:
            chosen = chosen[torch.linspace(0, len(chosen) - 1, min(POSITIONS, len(chosen))).long()]
            with pair.base() as model:
                base = [output.flatten(0, 1)[chosen].cpu() for output in _outputs(model, ids, mask)]
            with pair.tuned() as model:
                for layer, output in enumerate(_outputs(model, ids, mask)):
                    tuned = output.flatten(0, 1)[chosen].cpu()
                    products[layer] += _hsics(base[layer], tuned)
                    cosines[layer] += torch.cosine_similarity(base[layer].double(), tuned.double(), dim=1).sum()
            positions += len(chosen)
        if progress is not None:
            progress(number, len(batches))
    if not positions:
        raise InputError("the text that drift is measured on is too short: five tokens in one batch are needed")
    return [
        LayerDrift(
            layer=layer,
            cka=float(products[layer, 0] / (products[layer, 1] * products[layer, 2]).sqrt().clamp_min(1e-300)),
            cosine=float(cosines[layer] / positions),
        )
        for layer in range(pair.layers)
    ]


def _batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(token ids, mask) [batch, time] int64, padded on the right, of like lengths."""
    encoded = sorted((ids for text in texts if (ids := encode_text(tokenizer, text)[:max_length])), key=len)
    for start in range(0, len(encoded), batch_size):
        yield padded(encoded[start : start + batch_size], 0, "right")


def _outputs(model: nn.Module, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The output of each decoder layer [batch, time, hidden]; one position is unembedded."""
    plain: Any = plain_model(model)
    last = torch.tensor([-1], device=plain.device)
    outputs: list[Tensor] = []

    def collect(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for layer in decoder_layers(plain):
            hooks.enter_context(layer.register_forward_hook(collect))
        logits_at(model, last, input_ids=ids.to(plain.device), attention_mask=mask.to(plain.device), use_cache=False)
    return outputs


def _hsics(base: Tensor, tuned: Tensor) -> Tensor:
    """HSIC of (base, tuned), (base, base), (tuned, tuned); inputs [positions, hidden], output [3] float64."""
    ours, theirs = _gram(base), _gram(tuned)
    return torch.stack([_hsic(ours, theirs), _hsic(ours, ours), _hsic(theirs, theirs)])


def _gram(rows: Tensor) -> Tensor:
    """X X^T without its diagonal, [positions, positions] float64; X is centred, which changes no HSIC and keeps
    digits."""
    rows = rows.double()
    rows = rows - rows.mean(0)
    return (rows @ rows.T).fill_diagonal_(0)


def _hsic(ours: Tensor, theirs: Tensor) -> Tensor:
    """The unbiased estimate of Song et al. 2012 (equation 5), of Gram matrices with a zero diagonal."""
    count = len(ours)
    trace = (ours * theirs).sum()
    sums = ours.sum() * theirs.sum() / ((count - 1) * (count - 2))
    cross = 2 / (count - 2) * (ours.sum(0) @ theirs.sum(0))
    return (trace + sums - cross) / (count * (count - 3))
