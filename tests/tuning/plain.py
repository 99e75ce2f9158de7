"""The multi-token loss written out plainly, in float64 and with loops, to hold the real one against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graftlm.heads.heads import MultiTokenHeads
from graftlm.tuning.model import TermsModel
from graftlm.tuning.terms.multi_token import MultiToken
from graftlm.tuning.terms.next_token import NextToken
from graftlm.tuning.terms.settings import MultiTokenSettings

# PEFT 0.21 and TRL 1.16 use names that transformers 5.23 has replaced.
PEFT_WARNING = "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"


def last_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a tiny model of any architecture, PEFT or not."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = plain.base_model
    for name in ("layers", "h"):
        if hasattr(backbone, name):
            return getattr(backbone, name)
    raise AssertionError(f"{type(plain).__name__} has no layers")


def terms_model(
    model: nn.Module, heads: MultiTokenHeads, *, weight: float = 0.3, decay: float = 0.8, sharded: bool = False,
    **settings: Any,
) -> TermsModel:  # fmt: skip
    """The next-token loss and that of heads, whose weight does not change over the steps unless asked to."""
    given = MultiTokenSettings(**{"weight": weight, "decay": decay, "schedule": "constant", **settings})
    return TermsModel(model, [NextToken(), MultiToken(given, heads)], sharded=sharded)


@contextmanager
def with_head_in_place(model: nn.Module, head: nn.ModuleList) -> Iterator[None]:
    """The model whose last layers are the head's."""
    layers, depth = last_layers(model), len(head)
    own = list(layers[-depth:])
    try:
        for i, layer in enumerate(head):
            layers[len(layers) - depth + i] = layer
        yield
    finally:
        for i, layer in enumerate(own):
            layers[len(layers) - depth + i] = layer


def plain_logits(model: nn.Module, heads: MultiTokenHeads, **inputs: Tensor | None) -> list[Tensor]:
    """Logits [batch, time, vocabulary] of the model and of each head: the model with the head as its last layer."""
    logits = [model(**inputs, use_cache=False).logits]
    for head in heads.layers:
        with with_head_in_place(model, head):  # type: ignore[arg-type]
            logits.append(model(**inputs, use_cache=False).logits)
    return logits


def plain_nll(logits: Tensor, labels: Tensor, head: int, mask: Tensor | None) -> dict[tuple[int, int], Tensor]:
    """(row, index of the predicted token) -> NLL in nats, for every target of head `head`."""
    found = {}
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1] - 1 - head):
            index = position + 1 + head
            if labels[row, index] == -100 or (mask is not None and mask[row, position] == 0):
                continue
            log_probabilities = logits[row, position] - torch.logsumexp(logits[row, position], 0)
            found[row, index] = -log_probabilities[labels[row, index]]
    return found


def plain_weights(
    weighting: str, logits: Tensor, labels: Tensor, mask: Tensor | None, fraction: float, given: Tensor | None
) -> dict[tuple[int, int], float]:
    """(row, index of a token) -> its weight in the auxiliary losses; 1 for `uniform`."""
    own = plain_nll(logits.detach(), labels, 0, mask)
    if weighting == "surprisal":
        return {at: float(nll) for at, nll in own.items()}
    if weighting == "entropy":
        entropies = {}
        for row, index in own:
            probabilities = torch.softmax(logits[row, index - 1].detach(), 0)
            entropies[row, index] = float(-(probabilities * probabilities.log()).sum())
        kept = sorted(entropies, key=entropies.__getitem__, reverse=True)[: math.ceil(fraction * len(entropies))]
        return {at: 1 / fraction if at in kept else 0.0 for at in entropies}
    if weighting == "importance":
        assert given is not None
        return {(r, i): float(given[r, i]) for r in range(labels.shape[0]) for i in range(labels.shape[1])}
    return {(r, i): 1.0 for r in range(labels.shape[0]) for i in range(labels.shape[1])}


def plain_schedule(schedule: str, step: int, total: int) -> float:
    if schedule == "rsine":
        return math.sin((total - step) / total * math.pi / 2)
    if schedule == "sine":
        return math.sin(step / total * math.pi / 2)
    return step / total if schedule == "linear" else 1.0


def plain_loss(
    model: nn.Module,
    heads: MultiTokenHeads,
    input_ids: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    *,
    coefficient: float = 0.01,
    decay: float = 0.8,
    factor: float = 1.0,
    weighting: str = "uniform",
    fraction: float = 0.2,
    given: Tensor | None = None,
) -> Tensor:
    """L = L_0 + c · s · Σ d^k · L_k, every L_k divided by the number of supervised tokens."""
    logits = plain_logits(model, heads, input_ids=input_ids, attention_mask=mask)
    weights = plain_weights(weighting, logits[0], labels, mask, fraction, given)
    count = int((labels[:, 1:] != -100).sum())
    loss = logits[0].sum() * 0.0
    for head, of_head in enumerate(logits):
        strength = 1.0 if head == 0 else coefficient * factor * decay**head
        for at, nll in plain_nll(of_head, labels, head, mask).items():
            weight = 1.0 if head == 0 else weights[at]
            loss = loss + strength * weight * nll / max(count, 1)
    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """name -> gradient (zero where there is none) of the trainable parameters; they are cleared."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    module.zero_grad(set_to_none=True)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float, rtol: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output
