"""Σ_k coefficient_k · L_k of the auxiliary heads, one head after another.

Where the heads, the final norm and the unembedding are all frozen (LoRA, mostly), the one gradient that is needed is
that of the hidden states that every head reads. It is then taken head by head while the loss is computed, and summed:
nothing of a head is computed twice or kept, so memory does not grow with the number of heads. Otherwise each head is
recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import IGNORE, rows_loss
from graftlm.models.decoder import Decoder, LayerCall


class AuxiliaryLoss(NamedTuple):
    """`loss` carries the gradient."""

    loss: Tensor  # scalar: Σ_k coefficients[k] · Σ_i w_i · NLL_i, nats
    nll_sums: list[Tensor]  # K scalars: NLL in nats, summed over a head's targets, unweighted, without gradient
    target_counts: list[int]  # K


def auxiliary_loss(
    heads: MultiTokenHeads,
    decoder: Decoder,
    call: LayerCall,
    targets: Sequence[Tensor],
    token_weights: Sequence[Tensor],
    coefficients: Sequence[float],
    *,
    sharded: bool = False,
) -> AuxiliaryLoss:
    """The heads' weighted losses on what `call` captured.

    Args:
        targets: K tensors [batch, time] int64, −100 where a head has none.
        token_weights: K tensors [batch, time] of the targets' weights w.
        coefficients: K factors of the heads' sums.
        sharded: the parameters are divided over devices (FSDP, ZeRO), whose hooks allow gradients in the backward
            pass only.
    """
    used = nn.ModuleList([heads, decoder.final_norm, decoder.unembedding])
    early = torch.is_grad_enabled() and not sharded and not any(p.requires_grad for p in used.parameters())
    hidden_states = call.hidden_states
    early = early and hidden_states.requires_grad
    gradient = torch.zeros_like(hidden_states) if early else None
    losses, nll_sums, counts = [], [], []
    for k, (target, weights, coefficient) in enumerate(zip(targets, token_weights, coefficients, strict=True), start=1):
        kept = target != IGNORE
        if gradient is None:
            rows = heads.rows(k, call, decoder.final_norm, kept)
            found = rows_loss(decoder, rows, target[kept], weights[kept])
        else:
            leaf = hidden_states.detach().requires_grad_()
            rows = decoder.final_norm(call.through(heads.layers[k - 1], leaf)[kept])  # type: ignore[arg-type]
            found = rows_loss(decoder, rows, target[kept], weights[kept])
            # The coefficient (and 1/N, by the caller) comes after: half precision sees gradients of ordinary size.
            gradient += coefficient * torch.autograd.grad(found.loss, leaf)[0]
        losses.append(coefficient * (found.loss if gradient is None else found.loss.detach()))
        nll_sums.append(found.nll.sum())
        counts.append(len(rows))
    loss = torch.stack(losses).sum()
    if gradient is not None:
        loss = _WithGradient.apply(hidden_states, loss, gradient)
    return AuxiliaryLoss(loss, nll_sums, counts)


class _WithGradient(torch.autograd.Function):
    """`loss`, whose gradient with respect to `hidden_states` is known already."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None
