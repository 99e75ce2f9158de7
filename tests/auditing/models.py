"""Pairs of tiny models that the audit's tests share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.conftest import tiny_model


def noisy(model: PreTrainedModel, layers: range, scale: float = 0.5) -> PreTrainedModel:
    """A copy with noise in the weights of `layers` only."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers:
            for parameter in changed.model.layers[layer].parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return changed


def adapted(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """`model`, in place, with a LoRA adapter of random weights on all linear layers."""
    config = LoraConfig(
        **{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    )
    torch.manual_seed(3)
    tuned = get_peft_model(model, config).eval()
    with torch.no_grad():  # a module trained whole is a copy until it is trained
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return tuned.requires_grad_(False)


def merged(**settings: Any) -> PreTrainedModel:
    """The same adapter merged into a model of its own."""
    return adapted(tiny_model(layers=4), **settings).merge_and_unload()
