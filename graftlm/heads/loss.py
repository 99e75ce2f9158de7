"""The multi-token loss.

    L = L_0 + c · s(t) · Σ_{k=1..K} d^k · L_k
    L_k = 1/N · Σ_i w_i · NLL(token i, predicted by head k from k + 1 tokens before)

s(t) falls or rises over the T optimizer steps; N is the number of supervised tokens in the whole optimizer step, over
all devices and accumulated batches, for every head alike. Source: CAFT (arXiv 2506.07833), section 3; c = 0.01,
d = 0.8 and s = "rsine" are its code's defaults.

Where this differs from the authors' code:
1. L_k is a sum divided once by N; theirs is a mean per batch, so that accumulation changes the gradient.
2. A head without a target (all masked, or a row shorter than k + 2) contributes zero; theirs gives NaN.
3. A head never predicts across the end of a packed row, nor from a padding position.
4. The auxiliary terms' tokens may be weighted (w); L_0 never is, so that c = 0 is plain supervised fine-tuning.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder
from graftlm.models.forking import forking_token_mask
from graftlm.models.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy
from graftlm.tuning.config import Schedule, Weighting

IGNORE = -100


def schedule_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """s(t) in [0, 1] at optimizer step `step` of `total_steps`.

    rsine = sin((T − t)/T · π/2), sine = sin(t/T · π/2), linear = t/T, constant = 1.
    """
    if schedule not in get_args(Schedule):
        raise InputError(f"unknown schedule {schedule!r}; known: {', '.join(get_args(Schedule))}")
    progress = min(max(step / max(total_steps, 1), 0.0), 1.0)
    return {
        "rsine": math.sin((1 - progress) * math.pi / 2),
        "sine": math.sin(progress * math.pi / 2),
        "linear": progress,
        "constant": 1.0,
    }[schedule]


def head_coefficients(num_heads: int, coefficient: float, decay: float, factor: float = 1.0) -> list[float]:
    """[1, c·s·d, c·s·d², ...]: the weight of L_0 to L_K."""
    return [1.0, *(coefficient * factor * decay**k for k in range(1, num_heads + 1))]


def shifted_targets(
    labels: Tensor, head: int, attention_mask: Tensor | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """Targets [batch, time] of head `head` (0 = the model's own) at each position; −100 where there is none.

    labels: [batch, time], −100 where not supervised. attention_mask: [batch, time], 0 at padding (one of another shape,
    such as a packed row's block mask, says nothing of padding).
    document_ids: [batch, time]; a position never predicts a token of another document.
    """
    shift = head + 1
    targets = torch.full_like(labels, IGNORE)
    if shift >= labels.shape[1]:
        return targets
    targets[:, :-shift] = labels[:, shift:]
    if attention_mask is not None and attention_mask.dim() == 2:
        targets.masked_fill_(attention_mask == 0, IGNORE)
    if document_ids is not None:
        other = document_ids[:, :-shift] != document_ids[:, shift:]
        targets[:, :-shift] = targets[:, :-shift].masked_fill(other, IGNORE)
    return targets


def document_ids(position_ids: Tensor | None) -> Tensor | None:
    """Number [batch, time] the documents of packed rows, whose positions start again at 0 in each."""
    return None if position_ids is None else (position_ids == 0).cumsum(-1)


def self_weights(weighting: Weighting, own: LinearCrossEntropy, forking_fraction: float) -> Tensor:
    """Weights [rows] of the supervised tokens, from the model's own predictions of them (detached).

    entropy: 1/fraction for the forking tokens, else 0. surprisal: the token's own NLL in nats.
    """
    if weighting == "entropy":
        kept = forking_token_mask(own.entropy, torch.ones_like(own.correct), forking_fraction)
        return kept.to(own.nll.dtype) / forking_fraction
    if weighting == "surprisal":
        return own.nll.detach()
    return torch.ones_like(own.nll)


def rows_loss(
    decoder: Decoder, rows: Tensor, targets: Tensor, row_weights: Tensor, with_entropy: bool = False
) -> LinearCrossEntropy:
    """`linear_cross_entropy` of normed rows [rows, hidden] through the model's unembedding."""
    return linear_cross_entropy(
        rows,
        decoder.unembedding.weight,
        targets,
        row_weights,
        bias=getattr(decoder.unembedding, "bias", None),
        logit_scale=decoder.logit_scale,
        logit_softcap=decoder.logit_softcap,
        with_entropy=with_entropy,
    )


def head_losses(
    model: nn.Module,
    heads: MultiTokenHeads,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    *,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Mean NLL [K + 1] in nats per supervised target of the model's own head (0) and each auxiliary head (k).

    Head k's target at a position is the label k + 1 later; a head without any target gives 0. Differentiable with
    respect to the model's and the heads' parameters.

    Args:
        input_ids, labels: [batch, time] int64; labels −100 where not supervised.
        attention_mask: [batch, time], 0 at padding, or None.
        position_ids: [batch, time] of packed rows, or None.
    """
    decoder = Decoder(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    final, call = decoder.run(heads.tap, **inputs)
    losses = []
    for k in range(heads.num_heads + 1):
        target = shifted_targets(labels, k, attention_mask, document_ids(position_ids))
        kept = target != IGNORE
        rows = final[kept] if k == 0 else heads.rows(k, call, decoder.final_norm, kept)
        ones = torch.ones(len(rows), device=rows.device, dtype=torch.promote_types(rows.dtype, torch.float32))
        losses.append(rows_loss(decoder, rows, target[kept], ones).loss / max(len(rows), 1))
    return torch.stack(losses)
