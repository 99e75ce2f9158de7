"""Compositions of tiny models that the tests of proxy-tuning share."""

from __future__ import annotations

import copy
from typing import Any

import torch

from graftlm.proxy import ProxyTunedModel
from tests.auditing.models import adapted
from tests.conftest import tiny_model


def sharp(model: Any, scale: float = 6.0) -> Any:
    """With logits so far apart that no token is a near tie."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def parts(architecture: str = "llama", **settings: Any) -> tuple[Any, Any, Any]:
    """Base model, expert and anti-expert: three random models."""
    return tuple(sharp(tiny_model(architecture, seed=seed, layers=2 + (seed == 0), **settings)) for seed in range(3))  # type: ignore[return-value]


def with_adapter() -> tuple[Any, Any, Any]:
    """Base model, a PeftModel on a small one, and that small one merged with its adapter and without."""
    base, small = sharp(tiny_model(layers=3)), sharp(tiny_model(seed=1))
    merged = adapted(copy.deepcopy(small)).merge_and_unload()
    return ProxyTunedModel(base, adapted(copy.deepcopy(small))), base, (merged, small)
