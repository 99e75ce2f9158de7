"""Undo part of a tuning after the fact, in chosen layers:

    W = W_base + scale · (W_tuned - W_base)

scale 0 puts the base model's weights back, 1 changes nothing. This is interpolation of weights (WiSE-FT, arXiv
2109.01903) by layer; which layers to choose is what an audit's restoration shows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.utils import AuxiliaryTrainingWrapper
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.models.load import load_model
from graftlm.models.pair import AdapterPair, WholePair
from graftlm.models.pair_loading import check_vocabulary
from graftlm.runs.config import require
from graftlm.runs.files import claimed, written_folder

SPAN = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


def restore(
    tuned: Any,
    output: Path | str | None = None,
    *,
    layers: str,
    scale: float = 0.0,
    base: Any = None,
    overwrite: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> int:
    """Leave only `scale` of the tuning's change in some layers of a tuned model.

    Args:
        tuned: the model's name, or the model itself (PreTrainedModel or PeftModel), which is then changed in place. A
            LoRA adapter stays an adapter.
        output: folder for the model, complete or not there; may be left out where `tuned` is loaded.
        layers: which layers, such as "0-14" or "0-4,9".
        scale: share of the change that is left, from 0 (all undone) to 1 (nothing undone).
        base: the model that a whole `tuned` was tuned from, by name or loaded; an adapter knows its own.
        overwrite: replace a model's folder at `output`.
        tokenizer: that of a loaded `tuned`, which is saved with it.

    Returns the number of weights changed. Raises InputError for layers that the model lacks, a scale outside [0, 1],
    another kind of adapter, models that do not fit together, or an output folder in use.
    """
    require(0 <= scale <= 1, "scale", scale, "a share from 0 (all undone) to 1 (nothing undone) is expected")
    chosen = parse_layers(layers)
    if output is None:
        if isinstance(tuned, str):
            raise InputError(f"no output folder is given for {tuned}; give one, or pass the loaded model")
        return _scale(tuned, tokenizer, chosen, scale, base)
    output = Path(output)
    check_output(output, [name for name in (tuned, base) if isinstance(name, str)], overwrite=overwrite)
    with claimed(output):
        if isinstance(tuned, str):
            model, tokenizer = load_model(tuned)
            if isinstance(model, PeftModel) and (under := model.active_peft_config.base_model_name_or_path):
                check_output(output, [under], overwrite=overwrite)
        else:
            model = tuned
        changed = _scale(model, tokenizer, chosen, scale, base)
        with written_folder(output) as scratch:
            model.save_pretrained(str(scratch))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(scratch))
    return changed


def check_output(output: Path, models: Sequence[str], *, overwrite: bool) -> None:
    """InputError for a folder in use; `overwrite` replaces a model's folder, and none that holds one of `models`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"output folder {output} is in use; give another --output, or --overwrite")
    if not any((output / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"output folder {output} holds other things than a model: give another --output")
    for name in models:
        if Path(name).exists() and output.resolve() in (Path(name).resolve(), *Path(name).resolve().parents):
            raise InputError(f"output folder {output} holds {name}, which is read: give another --output")


def parse_layers(text: str) -> set[int]:
    """ "0-2,5" -> {0, 1, 2, 5}; InputError for anything else."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = SPAN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(f"--layers is {text!r}, but layers such as 0-14 or 0-4,9 are expected")
        chosen.update(range(first, last + 1))
    return chosen


def _check_layers(chosen: Collection[int], count: int) -> set[str]:
    if (highest := max(chosen)) >= count:
        raise InputError(f"--layers names layer {highest}, but the model's layers are 0 to {count - 1}")
    return {f"layer {index}" for index in chosen}


@torch.no_grad()
def _scale(model: Any, tokenizer: PreTrainedTokenizerBase | None, chosen: set[int], scale: float, base: Any) -> int:
    if isinstance(model, PeftModel):
        return _scale_adapter(model, chosen, scale)
    return _scale_whole(model, tokenizer, chosen, scale, base)


def _scale_adapter(model: Any, chosen: set[int], scale: float) -> int:
    """The change of LoRA is B A: scaling B scales it."""
    config = model.active_peft_config
    if config.peft_type != PeftType.LORA or config.use_dora:
        kind = "DoRA" if getattr(config, "use_dora", False) else str(config.peft_type.value)
        raise InputError(f"restore scales LoRA adapters, but this is {kind}: merge it into a whole model first")
    if (altered := lasting_alteration(model)) is not None:
        raise InputError(f"restore scales LoRA weights, but the adapter has {altered}: merge it first")
    pair = AdapterPair(model)
    groups = _check_layers(chosen, pair.layers)
    adapter, changed = model.active_adapter, 0
    for name, module in model.get_base_model().named_modules():
        if pair.group(name) not in groups:
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(f"restore scales LoRA weights, but {name} was trained whole: merge the adapter first")
        if adapter in getattr(module, "lora_B", {}):
            module.lora_B[adapter].weight.mul_(scale)
            if (bias := module.lora_B[adapter].bias) is not None:
                bias.mul_(scale)
            changed += 1
    return changed


def _scale_whole(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, chosen: set[int], scale: float, base: Any
) -> int:
    if base is None:
        raise InputError(f"{model.name_or_path} is a whole model: give --base, the model that it was tuned from")
    if isinstance(base, str):
        base, base_tokenizer = load_model(base)
        if tokenizer is not None:
            check_vocabulary(base_tokenizer, tokenizer, model.name_or_path)
    pair = WholePair(base, model)
    groups, changed = _check_layers(chosen, pair.layers), 0
    for weight in pair.weights():
        if pair.group(weight.name) in groups:
            weight.tuned.copy_(torch.lerp(weight.base, weight.tuned, scale))
            changed += 1
    return changed
