"""The L2 term: the squared distance of the trained weights from those of the base model (L2-SP, arXiv 1802.01483).

    l2_to_base = Σ (θ − θ_base)²,   of a LoRA layer ‖s · B · A‖² = s² · Σ (BᵀB) ∘ (AAᵀ)

The base of a LoRA adapter is the model without it; the base of a weight that is trained itself is its value before
training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from graftlm.runs.config import option
from graftlm.tuning.terms.base import Pass, Term, TermOutput
from graftlm.tuning.terms.settings import TermSettings


@dataclass(frozen=True, kw_only=True)
class L2ToBaseSettings(TermSettings):
    """Settings of the L2 term."""

    weight: float = option(0.01, "Weight of the trained weights' squared distance from the base model's.", at_least=0)


class L2ToBase(Term):
    """Squared distance of the trained weights from the base model's; it holds a copy of those not trained by LoRA."""

    name = "l2_to_base"
    Settings = L2ToBaseSettings
    needs_decoder = False
    when_sharded = False  # a device has a part of each weight only

    def prepare(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        factors = {id(factor) for a, b, _ in lora_factors(model) for factor in (a, b)}
        trained = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in factors]
        self.base = [(weight, weight.detach().clone()) for weight in trained]

    def forward(self, given: Pass) -> TermOutput:
        squares = [(weight - base).square().sum() for weight, base in self.base]
        squares += [scale**2 * ((b.T @ b) * (a @ a.T)).sum() for a, b, scale in lora_factors(given.model)]
        precision = torch.promote_types(squares[0].dtype, torch.float32)
        distance = torch.stack([square.to(precision) for square in squares]).sum()
        return TermOutput(distance, 1, {self.name: (distance.detach(), 1)})


def lora_factors(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, float]]:
    """A [r, in], B [out, r] and s of each LoRA layer's active adapters."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        for name in (name for name in layer.active_adapters if name in layer.lora_A):
            yield layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
