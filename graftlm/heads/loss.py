"""Losses of heads: targets, and the negative log-likelihood through the model's unembedding.

A head without a target (all masked, or a row shorter than k + 2) has loss 0. A head never predicts across the end of a
packed row, nor from a padding position. What is trained with heads is in graftlm/tuning/terms/multi_token.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy

IGNORE = -100


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
