"""Which tokens carry the signal: those where the model decides.

    H_t = −Σ_v p_t(v) ln p_t(v)                                             entropy of the policy at token t, in nats
    J   = 1 / Σ_t I[H_t ≥ τ_ρ] · Σ_t I[H_t ≥ τ_ρ] · min(r_t A, clip(r_t) A)     τ_ρ keeps the top ρ of a batch's tokens

Source: Beyond the 80/20 Rule (arXiv 2506.01939, equation 6). Where this differs:
1. The top ρ is exact: max(1, ceil(ρ · n)) tokens, equal entropies by position. The authors' code does so too, without
   saying which of the equal ones; TRL keeps whatever reaches an interpolated quantile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def forking_token_mask(entropy: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The `fraction` of the tokens in `mask` with the highest entropy, over the whole batch.

    entropy: float, mask: bool or 0/1, both of one shape; returns bool of that shape with exactly
    max(1, ceil(fraction · mask.sum())) true, all within `mask`; none where `mask` is empty. Of equal entropies the
    first in memory order are taken. Source: arXiv 2506.01939, equation 6.
    """
    mask = mask.bool()
    chosen = torch.zeros_like(mask, memory_format=torch.contiguous_format)
    inside = mask.flatten().nonzero().squeeze(-1)
    if len(inside):
        order = entropy.flatten()[inside].argsort(descending=True, stable=True)
        chosen.view(-1)[inside[order[: forking_count(len(inside), fraction)]]] = True
    return chosen


def forking_count(tokens: int, fraction: float) -> int:
    """The number of `tokens` that are kept."""
    return min(tokens, max(1, math.ceil(fraction * tokens)))


def forking_token_mask_of_all_processes(accelerator: Any, entropy: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """This process's part of `forking_token_mask` over the tokens of all processes, in the order of their ranks.

    entropy, mask: [batch, time], of any shape on each process.
    """
    if accelerator.num_processes == 1:
        return forking_token_mask(entropy, mask, fraction)
    mask = mask.bool()
    own = entropy[mask].float()
    counts = accelerator.gather(torch.tensor([len(own)], device=own.device))
    width = int(counts.max())
    padded = torch.cat([own, own.new_zeros(width - len(own))])
    everyone = accelerator.gather(padded).view(len(counts), width)
    valid = torch.arange(width, device=own.device) < counts[:, None]
    kept = forking_token_mask(everyone, valid, fraction)[accelerator.process_index, : len(own)]
    chosen = torch.zeros_like(mask)
    chosen[mask] = kept
    return chosen


def token_entropy(logits: Tensor) -> Tensor:
    """−Σ p ln p in nats [...] of the distributions that `logits` [..., vocabulary] give; in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = logits.logsumexp(-1)
    # ln Z − Σ p·x; a word at −inf has p = 0 and counts nothing.
    return log_z - (logits.softmax(-1) * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(-1)
