"""An adapter on a model: what it does to its base model for good, training it, merging it, taking it off."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from graftlm.errors import InputError

KEEPING_STARTS = ("gaussian", "eva", "orthogonal")
"""Ways to begin with LoRA (init_lora_weights) that take nothing out of the base model's weights."""


def lasting_alteration(model: PeftModel) -> str | None:
    """The change of the base model that stays when the adapter is switched off; None without one."""
    noted: str | None = getattr(model, "base_alteration", None)  # left by load_model, which compared all weights
    if noted is not None:
        return noted or None
    return alteration_of(model.active_peft_config)


def alteration_of(config: PeftConfig) -> str | None:
    """The change of the base model that stays when any adapter with this config is switched off; None without one."""
    return "trained biases" if getattr(config, "bias", "none") != "none" else start_alteration(config)


def train_adapter(model: PeftModel) -> None:
    """Require gradients of all that the active adapter trains, and of nothing else."""
    saved = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in saved.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.data_ptr() in places)


def merged(model: Any) -> Any:
    """The base model with its adapter merged into it; a model without an adapter as it is.

    Where an adapter is on one of two tied embeddings they are untied first. InputError for an adapter that changes no
    weights.
    """
    if not isinstance(model, PeftModel):
        return model
    kind: Any = model.active_peft_config.peft_type
    refusal = f"the adapter is {kind.value}, which cannot be merged into its base model"
    if not hasattr(model, "merge_and_unload"):
        raise InputError(refusal)
    base: Any = model.get_base_model()
    if any(isinstance(each, BaseTunerLayer) for each in (base.get_input_embeddings(), base.get_output_embeddings())):
        untie(base)
    try:
        return model.merge_and_unload()
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"{refusal}: {' '.join(str(error).split())}") from error


def take_off(model: PeftModel) -> None:
    """Take the adapter off its base model, which is then as it was before."""
    tuner: Any = model.base_model
    tuner.delete_adapter(model.active_adapter)  # or PEFT (0.21) would leave what was trained whole in its place
    tuner.unload()


def untie(model: Any) -> None:
    """Give the unembedding a weight of its own, a copy, where it shares the embedding's."""
    first, last = (_under(each) for each in (model.get_input_embeddings(), model.get_output_embeddings()))
    if last is None or last.weight is not first.weight:
        return
    last.weight = nn.Parameter(first.weight.detach().clone(), requires_grad=first.weight.requires_grad)
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def _under(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def start_alteration(config: Any) -> str | None:
    """The change of the base model before an adapter with this config was trained; None without one."""
    if getattr(config, "layer_replication", None):
        return "repeated layers"
    start = getattr(config, "init_lora_weights", True)
    return f"a start by {start}" if isinstance(start, str) and start not in KEEPING_STARTS else None
