"""A damaged model, adapter or tokenizer on disk is bad input: one line names the file, before anything is built."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.checkpoints import explained_errors
from graftlm.models.load import load_model
from tests.conftest import byte_tokenizer, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(folder: Path) -> Path:
    model = tiny_model()
    model.name_or_path = str(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder.parent / "adapter")
    return folder.parent / "adapter"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


def refused(folder: Path, message: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_model(folder, device="cpu")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert time.perf_counter() - begun < 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 10**12}, "config.json: hidden_size is 1000000000000, which does not fit weights of "),
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers is 1000000000, which does not fit weights of"),
        ({"hidden_size": 0}, "config.json: hidden_size is 0"),
        ({"max_position_embeddings": -1}, "config.json: max_position_embeddings is -1"),
        ({"hidden_size": "x"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 33}, "cannot be loaded"),
        ({"num_attention_heads": 7}, "cannot be loaded"),
        ({"head_dim": 6}, "cannot be loaded"),
        ({"model_type": ["llama"]}, "cannot be loaded: a value in its files does not fit (TypeError"),
        ({"rope_parameters": {"rope_type": "x"}}, "cannot be loaded: a value in its files does not fit"),
        ({"rms_norm_eps": -1.0}, "gives no numbers (NaN)"),
        ({"dtype": "float7"}, "config.json: dtype is 'float7', but a dtype of torch"),
        ({"dtype": []}, "config.json: dtype is []"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config is of 'x', which transformers does not"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder / "config.json", **values)
    refused(folder, message)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "[1, 2]", '"x"', '{"a": 1', "\udcff", "[" * 100_000])
def test_a_damaged_json_file_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "x"}, "temperature is 'x', but a finite number or null is expected"),
        ({"top_k": -1}, "top_k is -1, but it must be at least 0"),
        ({"num_beams": 0}, "num_beams is 0, but it must be at least 1"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"suppress_tokens": ["a"]}, "suppress_tokens is ['a']"),
        ({"bad_words_ids": []}, "bad_words_ids holds no ids"),
        ({"do_sample": []}, "do_sample is []"),
    ],
)
def test_a_value_of_the_generation_config_that_cannot_be_is_named(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    change(folder / "generation_config.json", **values)
    refused(folder, f"generation_config.json: {message}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "x"}, "adapter_config.json: r is 'x', but a whole number is expected"),
        ({"r": 0}, "adapter_config.json: r is 0, but it must be at least 1"),
        ({"r": 3}, "cannot be loaded"),
        ({"lora_alpha": None}, "adapter_config.json: lora_alpha is null"),
        ({"lora_dropout": 1.5}, "adapter_config.json: lora_dropout is 1.5, but it must be at least 0 and below 1"),
        ({"use_rslora": "x"}, "adapter_config.json: use_rslora is 'x'"),
        ({"modules_to_save": 3}, "adapter_config.json: modules_to_save is 3, but a list or null is expected"),
        ({"peft_type": "x"}, "adapter_config.json: peft_type is 'x', but one of "),
        ({"base_model_name_or_path": 3}, "adapter_config.json: base_model_name_or_path is 3"),
        ({"target_modules": ["q_proj"]}, "has no place for (24 of 28 matrices)"),
        ({"target_modules": ["nothing"]}, "cannot be loaded"),
    ],
)
def test_a_value_of_an_adapters_config_that_cannot_be_is_named(
    adapter: Path, values: dict[str, Any], message: str
) -> None:
    change(adapter / "adapter_config.json", **values)
    refused(adapter, message)


def test_an_adapters_alpha_may_have_a_point_as_other_tools_write_it(adapter: Path) -> None:
    change(adapter / "adapter_config.json", lora_alpha=16.0)
    assert load_model(adapter, device="cpu")[0].active_peft_config.lora_alpha == 16.0


def test_weights_without_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "NaN or an infinity in model.norm.weight")


@pytest.mark.parametrize("length", [2**30, 2**62])
def test_a_header_of_any_length_is_refused_at_once(folder: Path, length: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])
    refused(folder, "model.safetensors is truncated or damaged")


@pytest.mark.parametrize(
    ("part", "value"),
    [("pre_tokenizer", 3), ("added_tokens", [3]), ("truncation", "x"), ("model", {"type": "Nothing"})],
)
def test_a_damaged_tokenizer_is_refused(folder: Path, part: str, value: object) -> None:
    change(folder / "tokenizer.json", **{part: value})
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 10**9}, "tells of more heads than model.safetensors holds"),
        ({"num_heads": "2"}, "num_heads is '2'"),
        ({"depth": -1}, "depth is -1"),
        ({"copy_layer": 5}, "copy_layer 5 with depth 1 lies outside"),
        ({"layer_class": None}, "layer_class is null"),
        ({"more": 1}, "is not a heads config (see more)"),
    ],
)
def test_a_value_of_a_heads_config_that_cannot_be_is_named(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    MultiTokenHeads.from_model(model := tiny_model(), 2).save_pretrained(tmp_path / "heads")
    change(tmp_path / "heads" / "config.json", **values)
    with pytest.raises(InputError) as caught:
        MultiTokenHeads.from_pretrained(tmp_path / "heads", model)
    assert message in str(caught.value) and str(tmp_path / "heads" / "config.json") in str(caught.value)


def test_what_the_machine_lacks_is_no_bad_input() -> None:
    for error in (MemoryError, torch.OutOfMemoryError):
        with pytest.raises(error), explained_errors("somewhere"):
            raise error("no memory")


def test_the_stack_of_a_libraries_own_language_is_left_out() -> None:
    stack = "Storage size overflowed\nException raised from f at a.h:1 (most recent call first):\nframe #0: g"
    with pytest.raises(InputError, match=r"cannot be loaded: Storage size overflowed$"), explained_errors("somewhere"):
        raise RuntimeError(stack)
