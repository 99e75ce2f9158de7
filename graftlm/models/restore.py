"""Undo part of a tuning after the fact, in chosen layers:

    W = W_base + scale · (W_tuned - W_base)

scale 0 puts the base model's weights back, 1 changes nothing. This is interpolation of weights (WiSE-FT, arXiv
2109.01903) by layer; which layers to choose is what an audit's restoration shows.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.utils import AuxiliaryTrainingWrapper
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.models.given import Given, given_model, name_of
from graftlm.models.load import load_model
from graftlm.models.pair import AdapterPair, ModelPair, WholePair
from graftlm.models.pair_loading import check_vocabulary
from graftlm.models.restore_config import RestoreConfig, parse_layers
from graftlm.runs.files import written_together
from graftlm.runs.run import Run, call_verb


def restore(
    tuned: Given,
    output: str | os.PathLike[str] | None = None,
    *,
    layers: str,
    scale: float = 0.0,
    base: Given | None = None,
    overwrite: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> int:
    """Leave only `scale` of the tuning's change in some layers of a tuned model.

    Args:
        tuned: the model by name, or loaded, and then changed in place. A LoRA adapter stays an adapter.
        output: run folder in which the model is saved; may be left out where `tuned` is loaded.
        layers: which layers, such as "0-14" or "0-4,9".
        scale: share of the change that is left, from 0 (all undone) to 1 (nothing undone).
        base: the model that a whole `tuned` was tuned from, by name or loaded; an adapter knows its own.
        overwrite: replace an earlier run in `output`.
        tokenizer: that of a loaded `tuned`, to be saved with it.

    Returns the number of weights changed. Raises InputError for layers that the model lacks, a scale outside [0, 1],
    another kind of adapter, models that do not fit together, or an output folder in use.
    """
    named_base = None if base is None else name_of(base)
    settings: dict[str, Any] = {"tuned": name_of(tuned), "layers": layers, "scale": scale, "base": named_base}
    if output is None:
        if isinstance(tuned, (str, os.PathLike)):
            raise InputError(f"no output folder is given for {tuned}; give one, or pass the loaded model")
        return scale_layers(tuned, tokenizer, RestoreConfig(**settings, output=""), base)
    return call_verb(
        "restore", RestoreConfig, run, {**settings, "output": output}, overwrite=overwrite, tuned=tuned, base=base,
        tokenizer=tokenizer,
    )  # fmt: skip


def run(
    config: RestoreConfig,
    run: Run,
    *,
    tuned: Given | None = None,
    base: Given | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> int:
    """Restore layers as `config` says, and save the model in the run's folder; loaded models may be given in the place
    of the config's names. Returns the number of weights changed."""
    model, tokenizer = given_model(config.tuned if tuned is None else tuned, tokenizer)
    changed = scale_layers(model, tokenizer, config, config.base if base is None else base)
    with written_together(run.folder) as scratch:
        model.save_pretrained(str(scratch))
        tokenizer.save_pretrained(str(scratch))
    return changed


@torch.no_grad()
def scale_layers(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, config: RestoreConfig, base: Given | None
) -> int:
    """Scale the change of the config's layers in place; returns the number of weights changed."""
    if isinstance(model, PeftModel):
        return _scale_adapter(model, config)
    if base is None:
        raise InputError(f"{config.tuned} is a whole model: give --base, the model that it was tuned from")
    if isinstance(base, (str, os.PathLike)):
        base, base_tokenizer = load_model(base)
        if tokenizer is not None:
            check_vocabulary(base_tokenizer, tokenizer, config.tuned)
    pair = WholePair(base, model)
    groups = _groups(config, pair)
    chosen = [weight for weight in pair.weights() if pair.group(weight.name) in groups]
    for weight in chosen:
        weight.tuned.copy_(torch.lerp(weight.base, weight.tuned, config.scale))
    return len(chosen)


def _groups(config: RestoreConfig, pair: ModelPair) -> set[str]:
    chosen = parse_layers(config.layers)
    if (highest := max(chosen)) >= pair.layers:
        raise InputError(f"--layers names layer {highest}, but the model's layers are 0 to {pair.layers - 1}")
    return {f"layer {index}" for index in chosen}


def _scale_adapter(model: Any, config: RestoreConfig) -> int:
    """Scale B: the change of LoRA is B A."""
    adapter = model.active_peft_config
    if adapter.peft_type != PeftType.LORA or adapter.use_dora:
        kind = "DoRA" if getattr(adapter, "use_dora", False) else str(adapter.peft_type.value)
        raise InputError(f"restore scales LoRA adapters, but this is {kind}: merge it into a whole model first")
    if (altered := lasting_alteration(model)) is not None:
        raise InputError(f"restore scales LoRA weights, but the adapter has {altered}: merge it first")
    pair = AdapterPair(model)
    groups, changed = _groups(config, pair), 0
    for name, module in model.get_base_model().named_modules():
        if pair.group(name) not in groups:
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(f"restore scales LoRA weights, but {name} was trained whole: merge the adapter first")
        if model.active_adapter in getattr(module, "lora_B", {}):
            for parameter in module.lora_B[model.active_adapter].parameters():  # a bias too, where it has one
                parameter.mul_(config.scale)
            changed += 1
    return changed
