"""What a PEFT adapter needs of its base model, what it does to it for good, what it trains, and merging it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn

from graftlm.errors import InputError

PREFIX = "base_model.model."
VOCABULARY_AXES = {"weight": 0, "modules_to_save.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
"""Of what an adapter saves for an embedding, the axis along which the tokens lie."""
KEEPING_STARTS = ("gaussian", "eva", "orthogonal")
"""Of LoRA's ways to begin (init_lora_weights), those that take nothing out of the base model's weights."""


def embedding_rows(base: Any, tokens: int, folder: Path, config: PeftConfig) -> int:
    """How many rows the embedding of `base` needs for the adapter in `folder`, whose tokenizer has so many `tokens`.

    The adapter's file says so where it has an embedding, whole or in part. InputError where it needs rows that neither
    the base model nor the file has.
    """
    rows: int = base.get_input_embeddings().num_embeddings
    modules: dict[int, str] = {id(module): name for name, module in base.named_modules()}
    embeddings = [modules.get(id(each)) for each in (base.get_input_embeddings(), base.get_output_embeddings())]
    found: set[int] = set()
    whole = False
    for name, saved in _saved(folder):
        for embedding in filter(None, embeddings):
            part = name.removeprefix(f"{embedding}.")
            if part != name and part in VOCABULARY_AXES:
                found.add(saved.get_shape()[VOCABULARY_AXES[part]])
                whole = whole or "lora" not in part
    trained = _trained_tokens(config)
    if not found:
        return max(rows, tokens, *(index + 1 for index in trained))
    wanted = max(found)
    if wanted > rows and not whole and not trained >= set(range(rows, wanted)):
        raise InputError(
            f"adapter {folder} was trained with {wanted} rows of embedding, its base model has {rows}, and the rows "
            "between are not saved with it: save it with save_embedding_layers=True"
        )
    return wanted


def alteration(base: Any, rows: int, folder: Path, config: PeftConfig) -> str | None:
    """What the adapter in `folder` does to `base`, whose embedding it wants to have `rows`, that switching it off does
    not undo."""
    if (known := _start_of(config)) is not None:
        return known
    if rows != base.get_input_embeddings().num_embeddings:
        return "another size of vocabulary"
    own = dict(base.named_parameters(remove_duplicate=False))
    copies = getattr(config, "modules_to_save", None) or ()  # in whose place the base model's own are put back
    for name, saved in _saved(folder):
        if name not in own or any(f"{module}." in name for module in copies):
            continue
        if not torch.equal(saved[:].to(own[name]), own[name]):
            return f"a {name} of its own"
    return None


def lasting_alteration(model: PeftModel) -> str | None:
    """What of the adapter stays when it is switched off, so that the base model is not had back; None if nothing."""
    found: str | None = getattr(model, "base_alteration", None)  # left by load_model, which compared all weights
    if found is not None:
        return found or None
    return alteration_of(model.active_peft_config)


def alteration_of(config: PeftConfig) -> str | None:
    """What of any adapter with this config stays when it is switched off."""
    return "trained biases" if getattr(config, "bias", "none") != "none" else _start_of(config)


def train_adapter(model: PeftModel) -> None:
    """Let gradients flow to all that the active adapter trains, and to nothing else."""
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
    """Take the adapter off its base model, which is then the plain one that it was."""
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


def _start_of(config: Any) -> str | None:
    """What was done to the base model before the adapter was trained."""
    if getattr(config, "layer_replication", None):
        return "repeated layers"
    start = getattr(config, "init_lora_weights", True)
    return f"a start by {start}" if isinstance(start, str) and start not in KEEPING_STARTS else None


def _trained_tokens(config: Any) -> set[int]:
    """Tokens of which the adapter trains a row of the embedding."""
    given = config.token_indices if config.peft_type == PeftType.TRAINABLE_TOKENS else None
    given = given or getattr(config, "trainable_token_indices", None) or []
    return {index for each in (given.values() if isinstance(given, dict) else [given]) for index in each}


def _saved(folder: Path) -> Iterator[tuple[str, Any]]:
    """The tensors in an adapter's file, still to be read, those of the base model by their names there."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # it is no dictionary
            name = key.removeprefix(PREFIX).replace(".token_adapter.", ".").replace(".base_layer.", ".")
            yield name, file.get_slice(key)
