"""Cross-entropy straight from hidden states, without holding the logits.

    loss = Σ_i w_i · (logsumexp(U h_i) − (U h_i)[y_i])

The logits of a few rows exist at a time; their gradient is taken while they are there and reduced to the hidden
states' (and the unembedding's) gradient at once, so the backward pass recomputes nothing: two matrix products a row
(three where the unembedding is trained). `trl.kernels.ChunkedLogProbFunction` does the same job but recomputes the
logits.
"""

from __future__ import annotations

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
    want_grad = torch.is_grad_enabled()
    outputs = _Function.apply(
        hidden_states, weight, bias, targets, row_weights, logit_scale, logit_softcap, with_entropy, want_grad
    )
    return LinearCrossEntropy(*outputs)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor,
        scale: float,
        softcap: float | None,
        with_entropy: bool,
        want_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = hidden_states.shape[0]
        accumulate = torch.promote_types(hidden_states.dtype, torch.float32)
        nll = hidden_states.new_zeros(rows, dtype=accumulate)
        entropy = torch.zeros_like(nll)
        correct = torch.zeros(rows, dtype=torch.bool, device=hidden_states.device)
        need_hidden, need_weight, need_bias = (want_grad and need for need in ctx.needs_input_grad[:3])
        grad_hidden = torch.zeros_like(hidden_states) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias and bias is not None else None
        kind = hidden_states.device.type
        if torch.is_autocast_enabled(kind) and accumulate == torch.float32:
            narrow = torch.get_autocast_dtype(kind)  # once, or each chunk would cast the whole unembedding
            hidden_states, weight = hidden_states.to(narrow), weight.to(narrow)
            bias = None if bias is None else bias.to(narrow)
        factors = row_weights.to(accumulate) * scale
        if rows and (need_weight or need_bias):  # a weight of one in 100,000 is nothing in float16
            largest = factors.abs().max().clamp(min=torch.finfo(accumulate).tiny)
            relative = (factors / largest).to(hidden_states.dtype)[:, None]

        step = chunk_rows(hidden_states.device)
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            hidden, target = hidden_states[chunk], targets[chunk, None]
            logits = torch.nn.functional.linear(hidden, weight, bias).to(accumulate)
            if scale != 1.0:
                logits *= scale
            slope = None
            if softcap is not None:
                squashed = logits.div_(softcap).tanh_()
                slope = 1 - squashed**2 if want_grad else None
                logits = squashed * softcap
            target_logit = logits.gather(1, target)[:, 0]
            top_logit, top = logits.max(dim=1)
            probabilities = torch.softmax(logits, dim=1, out=None if with_entropy else logits)
            # The most likely word's probability never underflows, so it gives the normaliser exactly.
            log_normaliser = top_logit - probabilities.gather(1, top[:, None])[:, 0].log()
            nll[chunk] = log_normaliser - target_logit
            correct[chunk] = top == target[:, 0]
            if with_entropy:
                entropy[chunk] = log_normaliser - torch.linalg.vecdot(probabilities, logits)
            if not (need_hidden or need_weight or need_bias):
                continue
            gradient = probabilities
            gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=accumulate))
            if slope is not None:
                gradient *= slope
            factor = factors[chunk, None]
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (gradient @ weight) * factor
            if grad_weight is not None:
                if hidden.dtype == grad_weight.dtype:
                    grad_weight.addmm_(gradient.t(), hidden * factor.to(hidden.dtype))
                else:  # summed up in the wider type
                    grad_weight += (gradient.t() @ (hidden * relative[chunk])).to(accumulate) * largest
            if grad_bias is not None:
                grad_bias += (relative[chunk].t() @ gradient)[0].to(accumulate) * largest

        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll, entropy, correct)
        loss = (row_weights.to(accumulate) * nll).sum()
        return loss, nll, entropy, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*grads, None, None, None, None, None, None)


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
