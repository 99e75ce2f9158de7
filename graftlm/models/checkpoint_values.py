"""Check the JSON files of a model or an adapter on disk before a library builds anything of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

from graftlm.errors import InputError
from graftlm.runs.config import describe
from graftlm.runs.ranges import Range
from graftlm.runs.typed_values import expected, fits

CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG = "config.json", "generation_config.json", "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTHS = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "num_attention_heads", "n_head",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
ONE_AT_LEAST = (*LAYERS, "vocab_size", "hidden_size", "n_embd", "d_model", "max_position_embeddings")

_COUNT, _FROM_ZERO, _PART = Range(at_least=1), Range(at_least=0), Range(at_least=0, at_most=1)
GENERATION: dict[str, tuple[Any, Range | None]] = {
    "temperature": (float | None, _FROM_ZERO),
    "typical_p": (float | None, Range(above=0, at_most=1)),
    "repetition_penalty": (float | None, Range(above=0)),
    "length_penalty": (float | None, None),
    "early_stopping": (bool | Literal["never"] | None, None),
    "bad_words_ids": (list[list[int]] | None, None),
    "stop_strings": (str | list[str] | None, None),
    "cache_implementation": (str | None, None),
    **dict.fromkeys(("top_p", "min_p"), (float | None, _PART)),
    **dict.fromkeys(("num_beams", "num_return_sequences", "max_length", "max_new_tokens"), (int | None, _COUNT)),
    **dict.fromkeys(("top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size"), (int | None, _FROM_ZERO)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool | None, None)),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), (int | list[int] | None, None)),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (list[int] | None, None)),
}
"""Type and range of the settings of a generation config."""


def read_object(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; InputError for a file that is damaged or holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({' '.join(str(error).split())}); copy it anew") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {describe(content)}, but a mapping is expected; copy it anew")
    return content


def check_model_values(folder: Path) -> None:
    """InputError for sizes that the weights in `folder` cannot have, and for a generation config that cannot be.

    A library would build a model of any size before it sees that the weights are others.
    """
    config = read_object(folder / CONFIG)
    check_number_format(folder / CONFIG, config)
    tensors, largest = weights_size(folder)
    for where, key, value in sizes(config):
        if type(value) is not int:
            continue  # transformers has a type for each
        most = tensors if key in LAYERS else largest
        if value > most or (key in ONE_AT_LEAST and value < 1):
            what = f"{tensors} tensors" if key in LAYERS else f"{largest} bytes"
            raise InputError(f"{folder / CONFIG}: {where}{key} is {value}, which does not fit weights of {what}")
    if (folder / GENERATION_CONFIG).exists():
        check_generation_values(folder / GENERATION_CONFIG)
    if (folder / TOKENIZER_CONFIG).exists():
        length = read_object(folder / TOKENIZER_CONFIG).get("model_max_length")
        if length is not None and type(length) not in (int, float):
            raise InputError(f"{folder / TOKENIZER_CONFIG}: model_max_length is {describe(length)}, but no number")


def sizes(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str, Any]]:
    """(where, key, value) of each size in a model's config and in the configs within it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from sizes(value, f"{where}{key}.")
        elif key in (*LAYERS, *WIDTHS, *ONE_AT_LEAST):
            yield where, key, value


def weights_size(folder: Path) -> tuple[int, int]:
    """How many tensors the folder's safetensors files hold, and in how many bytes."""
    from safetensors import SafetensorError, safe_open

    tensors = size = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                tensors += len(opened.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated or damaged ({error}); copy it anew") from error
        size += path.stat().st_size
    return tensors, size


def check_number_format(file: Path, config: Mapping[str, Any]) -> None:
    """InputError for a dtype or a quantization that torch or transformers does not have, and would leave aside."""
    import torch
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    for name in ("dtype", "torch_dtype"):
        if (value := config.get(name)) is None:
            continue
        known = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
        if not isinstance(known, torch.dtype):
            raise InputError(f"{file}: {name} is {describe(value)}, but a dtype of torch such as 'float32' is expected")
    if (quantization := config.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        if method is not None and (not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING):
            raise InputError(f"{file}: quantization_config is of {describe(method)}, which transformers does not know")


def check_generation_values(file: Path) -> None:
    """InputError for a value of a generation config that generation would stumble over, or leave aside unsaid."""
    content = read_object(file)
    for name, value in content.items():
        hint, allowed = GENERATION.get(name, (Any, None))
        if not fits(value, hint):
            raise InputError(f"{file}: {name} is {describe(value)}, but {expected(hint)} is expected")
        if allowed is not None:
            allowed.check(f"{file}: {name}", value)
        if name == "bad_words_ids" and value is not None and not (value and all(value)):
            raise InputError(f"{file}: bad_words_ids holds no ids; leave it out")


def check_adapter_values(folder: Path) -> dict[str, Any]:
    """The adapter's config; InputError for a value of a wrong type in it, or one that LoRA cannot have."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    file = folder / ADAPTER_CONFIG
    content = read_object(file)
    kind, kinds = content.get("peft_type"), {each.value: cls for each, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{file}: peft_type is {describe(kind)}, but one of {', '.join(sorted(kinds))} is expected")
    for name, hint in get_type_hints(kinds[kind]).items():
        if name in content and not fits(content[name], hint, lenient=True):
            raise InputError(f"{file}: {name} is {describe(content[name])}, but {expected(hint)} is expected")
    for name, allowed in (("r", _COUNT), ("lora_dropout", Range(at_least=0, below=1))):
        if isinstance(content.get(name), (int, float)):
            allowed.check(f"{file}: {name}", content[name])
    return content
