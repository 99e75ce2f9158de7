"""Cross-entropy straight from hidden states, without holding the logits.

    loss = Σ_i w_i · (logsumexp(U h_i) − (U h_i)[y_i])

The logits of a few rows exist at a time; their gradient is taken while they are there and reduced to the hidden
states' (and the unembedding's) gradient at once, so the backward pass recomputes nothing: two matrix products a row
(three where the unembedding is trained). `trl.kernels.ChunkedLogProbFunction` does the same job but recomputes the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ROWS = 256
"""Rows whose logits exist at once on a CPU: 256 × 49,152 words × 4 bytes = 50 MB. Fewer are slower (128: 1.13 times the
two bare products, 256: 1.00, on two cores)."""
ACCELERATOR_CHUNK_ROWS = 1024
"""On an H100 with 128,256 words: 256 rows 1.15 times as long, 4096 0.98 times and four times the memory."""


def chunk_rows(device: torch.device) -> int:
    return CHUNK_ROWS if device.type == "cpu" else ACCELERATOR_CHUNK_ROWS


class LinearCrossEntropy(NamedTuple):
    """`loss` carries the gradient; the rest are per row, without gradient."""

    loss: Tensor  # scalar: Σ weights · nll, nats
    nll: Tensor  # [rows], nats
    entropy: Tensor  # [rows], nats; zeros unless asked for
    correct: Tensor  # [rows], bool: the target is the most likely word


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    with_entropy: bool = False,
) -> LinearCrossEntropy:
    """Weighted cross-entropy of `targets` [rows] (int64) under `hidden_states` [rows, hidden] times `weight`
    [vocabulary, hidden] plus `bias` [vocabulary], with `row_weights` [rows].

    Zero rows give a zero that still has a gradient. Computed in float32 at least.
    """
    options = _Options(logit_scale, logit_softcap, with_entropy, torch.is_grad_enabled())
    return LinearCrossEntropy(*_Function.apply(hidden_states, weight, bias, targets, row_weights, options))


class _Options(NamedTuple):
    """How logits are computed from hidden states, and what is computed from them."""

    scale: float
    softcap: float | None
    with_entropy: bool
    with_gradients: bool


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, device = hidden_states.shape[0], hidden_states.device
        precision = torch.promote_types(hidden_states.dtype, torch.float32)
        row_weights = row_weights.to(precision)
        nll, entropy = (torch.zeros(rows, dtype=precision, device=device) for _ in range(2))
        correct = torch.zeros(rows, dtype=torch.bool, device=device)
        needed = [options.with_gradients and need for need in ctx.needs_input_grad[:3]]
        gradients = _Gradients((hidden_states, weight, bias), needed, row_weights * options.scale)
        hidden_states, weight, bias = _autocast(hidden_states, weight, bias, precision)
        for start in range(0, rows, step := chunk_rows(device)):
            chunk = slice(start, start + step)
            hidden, target = hidden_states[chunk], targets[chunk, None]
            logits = torch.nn.functional.linear(hidden, weight, bias).to(precision)
            slope = _scale_and_cap(logits, options)
            target_logit = logits.gather(1, target)[:, 0]
            probabilities, top, log_normaliser = _softmax(logits, in_place=not options.with_entropy)
            nll[chunk] = log_normaliser - target_logit
            correct[chunk] = top == target[:, 0]
            if options.with_entropy:
                entropy[chunk] = log_normaliser - torch.linalg.vecdot(probabilities, logits)
            if any(needed):
                by_logits = probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=precision))
                gradients.add(chunk, by_logits if slope is None else by_logits.mul_(slope), hidden, weight)
        ctx.save_for_backward(*gradients.sums)
        ctx.mark_non_differentiable(nll, entropy, correct)
        return (row_weights * nll).sum(), nll, entropy, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*grads, None, None, None)


class _Gradients:
    """Gradients of the loss with respect to hidden states, weight and bias, summed up chunk by chunk."""

    def __init__(self, inputs: Sequence[Tensor | None], needed: Sequence[bool], factors: Tensor) -> None:
        """`inputs`: those three; `needed`: which of them get a gradient; `factors` [rows]: what each row's gradient
        with respect to its logits is multiplied by."""
        pairs = zip(inputs, needed, strict=True)
        self.sums = [torch.zeros_like(each) if each is not None and need else None for each, need in pairs]
        self.factors = factors[:, None]
        # A factor of one in 100,000 is nothing in float16: rows are multiplied by their share of the largest one.
        smallest = torch.finfo(factors.dtype).tiny
        self.largest = factors.abs().max().clamp(min=smallest) if len(factors) else factors.new_ones(())

    def add(self, chunk: slice, by_logits: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """`by_logits` [chunk, vocabulary]: gradients of the rows' cross-entropies; hidden [chunk, hidden]."""
        by_hidden, by_weight, by_bias = self.sums
        by_logits, factors = by_logits.to(hidden.dtype), self.factors[chunk]
        relative = (factors / self.largest).to(hidden.dtype)
        if by_hidden is not None:
            by_hidden[chunk] = (by_logits @ weight) * factors
        if by_weight is not None:
            if hidden.dtype == by_weight.dtype:
                by_weight.addmm_(by_logits.t(), hidden * factors.to(hidden.dtype))
            else:  # summed up in the wider type
                by_weight += (by_logits.t() @ (hidden * relative)).to(factors.dtype) * self.largest
        if by_bias is not None:
            by_bias += (relative.t() @ by_logits)[0].to(factors.dtype) * self.largest


def _autocast(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in the type of autocast, if that is on: once, or each chunk would cast the whole unembedding."""
    kind = hidden_states.device.type
    if not torch.is_autocast_enabled(kind) or precision != torch.float32:
        return hidden_states, weight, bias
    narrow = torch.get_autocast_dtype(kind)
    return hidden_states.to(narrow), weight.to(narrow), None if bias is None else bias.to(narrow)


def _scale_and_cap(logits: Tensor, options: _Options) -> Tensor | None:
    """Scale and soft-cap logits in place; returns the slope of the cap, where gradients need it."""
    if options.scale != 1.0:
        logits *= options.scale
    if options.softcap is None:
        return None
    logits.div_(options.softcap).tanh_()
    slope = 1 - logits**2 if options.with_gradients else None
    logits *= options.softcap
    return slope


def _softmax(logits: Tensor, *, in_place: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [rows, vocabulary], the most likely word [rows] and the logarithm of the normaliser [rows]."""
    top_logit, top = logits.max(dim=1)
    probabilities = torch.softmax(logits, dim=1, out=logits if in_place else None)
    # The most likely word's probability never underflows, so it gives the normaliser exactly.
    return probabilities, top, top_logit - probabilities.gather(1, top[:, None])[:, 0].log()


def linear_kl_divergence(
    reference: Tensor,
    reference_weight: Tensor,
    hidden_states: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> Tensor:
    """Σ_i KL(softmax(reference_weight · reference_i) ‖ softmax(weight · hidden_i)), scalar, nats.

    reference, hidden_states: [rows, hidden]; the weights: [vocabulary, hidden]; the biases, if any: [vocabulary].
    The reference gets no gradient.
    Recomputed by chunks in the backward pass, so that one chunk's logits exist at a time.
    """

    precision = torch.promote_types(hidden_states.dtype, torch.float32)

    def log_probabilities(hidden: Tensor, unembedding: Tensor, offset: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, unembedding, offset).to(precision) * logit_scale
        if logit_softcap is not None:
            logits = logit_softcap * torch.tanh(logits / logit_softcap)
        return torch.log_softmax(logits, dim=-1)

    def divergence(reference_rows: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            target = log_probabilities(reference_rows, reference_weight, reference_bias)
        return torch.nn.functional.kl_div(
            log_probabilities(hidden, weight, bias), target, reduction="sum", log_target=True
        )

    total = hidden_states.sum() * 0.0
    step = chunk_rows(hidden_states.device)
    for rows, hidden in zip(reference.split(step), hidden_states.split(step), strict=True):
        total = total + checkpoint(divergence, rows, hidden, use_reentrant=False, preserve_rng_state=False)
    return total
