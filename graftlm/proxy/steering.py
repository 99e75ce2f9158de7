"""Load a model as the command line names it: steered by an expert, a saved composition, or plain."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graftlm.decoding.config import Drafting, Steering
from graftlm.errors import InputError
from graftlm.proxy.alpha import check_alpha
from graftlm.proxy.model import ProxyTunedConfig, ProxyTunedModel
from graftlm.proxy.opening import load_part


def is_composition(folder: str | os.PathLike[str]) -> bool:
    """Whether `save_pretrained` of a ProxyTunedModel wrote the folder."""
    file = Path(folder) / "config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("model_type") == ProxyTunedConfig.model_type)
    except (OSError, ValueError, AttributeError):
        return False


def steered(
    base: str, expert: str | None, antiexpert: str | None, alpha: float | None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load `base` and its tokenizer, steered where an expert is named or `base` is the folder of a composition.

    alpha: None for 1, or for what the composition was saved with. InputError for an anti-expert or an alpha where there
    is no expert.
    """
    if _is_steered(expert, antiexpert):
        model = ProxyTunedModel(base, expert, antiexpert, 1.0 if alpha is None else alpha)
    elif is_composition(base):
        model = ProxyTunedModel.from_pretrained(base, **({} if alpha is None else {"alpha": alpha}))
    else:
        _check_no_alpha(alpha)
        return load_part(base, None)
    assert model.tokenizer is not None  # it was loaded by name
    return model, model.tokenizer


def load_steered(name: str, config: Steering) -> tuple[Any, PreTrainedTokenizerBase]:
    """`steered` with the options of a config; InputError for heads beside an expert."""
    model, tokenizer = steered(name, config.expert, config.antiexpert, config.alpha)
    if isinstance(config, Drafting) and config.heads is not None and isinstance(model, ProxyTunedModel):
        raise InputError("--heads: heads know one model, and this is a base model with its expert")
    return model, tokenizer


def steering(
    base: str, expert: str | None, antiexpert: str | None, alpha: float | None
) -> dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase], ProxyTunedModel]]:
    """Name -> function that steers the base model, loaded with its tokenizer, for an audit; empty without an expert."""
    if not _is_steered(expert, antiexpert):
        _check_no_alpha(alpha)
        return {}
    strength = check_alpha(1.0 if alpha is None else alpha)

    def steer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ProxyTunedModel:
        return ProxyTunedModel(model, expert, antiexpert, strength, tokenizer=tokenizer)

    return {f"{base} + {expert}": steer}


def _check_no_alpha(alpha: float | None) -> None:
    if alpha is not None:
        raise InputError("--alpha is given without --expert or a saved composition: there is nothing to steer")


def _is_steered(expert: str | None, antiexpert: str | None) -> bool:
    if expert is None and antiexpert is not None:
        raise InputError("--antiexpert is given without --expert: proxy-tuning needs both, or an expert's adapter")
    return expert is not None
