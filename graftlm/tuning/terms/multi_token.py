"""The multi-token term: the losses of auxiliary heads, which predict tokens further ahead.

    multi_token = Σ_{k=1..K} d^k · Σ_i w_i · NLL(token i, predicted by head k from k + 1 tokens before)

Its weight is c · s(t). Source: CAFT (arXiv 2506.07833), section 3; c = 0.01, d = 0.8 and s = "rsine" are its code's
defaults.

Where this differs from the authors' code:
1. Sums are divided once by N, the supervised tokens of the optimizer step; theirs are means per batch, so that
   accumulation changes the gradient.
2. A head without a target (all masked, or a row shorter than k + 2) contributes zero; theirs gives NaN.
3. A head never predicts across the end of a packed row, nor from a padding position.
4. The tokens may be weighted (w); those of the next-token loss never are, so that c = 0 is plain fine-tuning.

One head is computed after another. Where the heads, the final norm and the unembedding are all frozen (LoRA, mostly),
the one gradient that is needed is that of the hidden states that every head reads. It is then taken head by head while
the loss is computed, and summed: nothing of a head is computed twice or kept, so memory does not grow with the number
of heads. Otherwise each head is recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import IGNORE, rows_loss
from graftlm.models.forking import forking_token_mask
from graftlm.models.linear_cross_entropy import LinearCrossEntropy
from graftlm.tuning.terms.base import Pass, Term, TermOutput
from graftlm.tuning.terms.settings import MultiTokenSettings, Weighting


class MultiToken(Term):
    """The losses of `heads`; frozen ones whose weight is 0 are not run in training."""

    name = "multi_token"
    Settings = MultiTokenSettings
    per = "token"
    needs_labels = True
    when_evaluating = True
    settings: MultiTokenSettings

    def __init__(self, settings: MultiTokenSettings | None, heads: MultiTokenHeads) -> None:
        super().__init__(settings)
        self.heads = heads

    @property
    def tap(self) -> int:
        return self.heads.tap

    @property
    def has_trained_weights(self) -> bool:
        return any(parameter.requires_grad for parameter in self.heads.parameters())

    def forward(self, given: Pass) -> TermOutput:
        assert given.call is not None
        hidden_states = given.call.hidden_states
        early = hidden_states.requires_grad and self._gradients_come_early(given)
        gradient = torch.zeros_like(hidden_states) if early else None
        weight_of_token = self._token_weights(given)
        losses, log = [], {}
        for k in range(1, self.heads.num_heads + 1):
            factor, target = self.settings.decay**k, given.targets(k)
            predicted = target != IGNORE
            row_weights = ahead(weight_of_token, k)[predicted]
            if gradient is None:
                rows = self.heads.rows(k, given.call, given.decoder.final_norm, predicted)
                head = rows_loss(given.decoder, rows, target[predicted], row_weights)
                losses.append(factor * head.loss)
            else:
                leaf = hidden_states.detach().requires_grad_()
                layers: Any = self.heads.layers[k - 1]
                rows = given.decoder.final_norm(given.call.through(layers, leaf)[predicted])
                head = rows_loss(given.decoder, rows, target[predicted], row_weights)
                # c and 1/N come after: half precision sees gradients of ordinary size.
                gradient += factor * torch.autograd.grad(head.loss, leaf)[0]
                losses.append(factor * head.loss.detach())
            log[f"head_{k}_loss"] = (head.nll.sum(), len(rows))
        loss = torch.stack(losses).sum()
        if gradient is not None:
            loss = _WithGradient.apply(hidden_states, loss, gradient)
        return TermOutput(loss, sum(count for _, count in log.values()), log)

    def _gradients_come_early(self, given: Pass) -> bool:
        """Whether only the hidden states need a gradient. Hooks on sharded weights allow gradients in the backward
        pass only."""
        used = nn.ModuleList([self.heads, given.decoder.final_norm, given.decoder.unembedding])
        return torch.is_grad_enabled() and not given.sharded and not any(p.requires_grad for p in used.parameters())

    def _token_weights(self, given: Pass) -> Tensor:
        """Weight [batch, time] of each token as a target."""
        weighting, own, predicted = self.settings.token_weights, given.next_token, given.predicted
        if weighting == "importance" and given.token_weights is not None:
            return given.token_weights
        if weighting in ("uniform", "importance"):
            return torch.ones_like(predicted, dtype=own.nll.dtype)
        weights = torch.zeros_like(predicted, dtype=own.nll.dtype)
        weights[predicted] = self_weights(weighting, own, self.settings.forking_fraction)
        # A position's row predicts the token after it.
        return nn.functional.pad(weights[:, :-1], (1, 0))


def self_weights(weighting: Weighting, own: LinearCrossEntropy, forking_fraction: float) -> Tensor:
    """Weights [rows] of the supervised tokens, from the model's own predictions of them (detached).

    entropy: 1/fraction for the forking tokens, else 0. surprisal: the token's own NLL in nats.
    """
    if weighting == "entropy":
        forking = forking_token_mask(own.entropy, torch.ones_like(own.correct), forking_fraction)
        return forking.to(own.nll.dtype) / forking_fraction
    return own.nll.detach()


def ahead(weights: Tensor, head: int) -> Tensor:
    """`weights` [batch, time] of tokens, seen from the position k + 1 before each."""
    shift = head + 1
    return nn.functional.pad(weights[:, shift:], (0, min(shift, weights.shape[1])))


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
