"""What the families of models state each in its own way: the length of a text, its end, the scale of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.models.decoder import Decoder, context_length, end_tokens
from graftlm.proxy import ProxyTunedModel
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING

SIZES: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA: dict[str, Any] = {
    **SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
OPT: dict[str, Any] = {
    **SIZES, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "max_position_embeddings": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
MPT: dict[str, Any] = {**SIZES, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
MAMBA: dict[str, Any] = {**SIZES, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
GEMMA3: dict[str, Any] = {
    "text_config": {**LLAMA, "sliding_window": 8}, "mm_tokens_per_image": 4,
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
                      "image_size": 8, "patch_size": 4},
}  # fmt: skip


def family(name: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A tiny random model whose logits are large enough for a cap to show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).float().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


@pytest.mark.parametrize(
    ("name", "settings", "length"),
    [
        ("llama", LLAMA, 32),
        ("mistral", {**LLAMA, "sliding_window": 8}, 32),
        ("gemma3_text", {**LLAMA, "sliding_window": 8}, 32),
        ("gemma3", GEMMA3, 32),
        ("granite", LLAMA, 32),
        ("gpt2", GPT2, 32),
        ("opt", OPT, 32),
        ("mpt", MPT, 32),
        ("bloom", {**SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
        ("mamba", MAMBA, None),
    ],
)
def test_a_family_reads_texts_of_the_length_that_is_told_of_it(
    name: str, settings: dict[str, Any], length: int | None
) -> None:
    model = family(name, settings)
    assert context_length(model) == length
    with torch.no_grad():
        assert model(input_ids=torch.full((1, length or 40), 5)).logits.isfinite().all()
    if name in ("gpt2", "opt"):  # learned positions: there is no next one
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 33), 5))


@pytest.mark.filterwarnings(PEFT_WARNING)
def test_virtual_tokens_take_up_positions() -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(family("gpt2", GPT2), adapter)
    assert context_length(model) == 28
    model(input_ids=torch.full((1, 28), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 29), 5))


def test_a_composition_reads_what_all_of_its_models_read() -> None:
    small = [tiny_model(seed=seed, max_position_embeddings=64) for seed in (2, 3)]
    assert context_length(ProxyTunedModel(tiny_model(), *small)) == 64


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gemma2", {**LLAMA, "final_logit_softcapping": 2.0}),
        ("gemma3", GEMMA3),
        ("recurrent_gemma", {**LLAMA, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 2.0}),
        ("cohere", {**LLAMA, "logit_scale": 0.25}),
        ("granite", {**LLAMA, "logits_scaling": 4.0}),
        ("hyperclovax", {**LLAMA, "logits_scaling": 4.0}),
        ("falcon_h1", {**LLAMA, "lm_head_multiplier": 0.25, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
        ("mpt", {**MPT, "logit_scale": 0.25}),
        ("gpt2", GPT2),
        ("opt", OPT),
        ("mistral", {**LLAMA, "sliding_window": 2}),
    ],
)
def test_the_parts_of_a_family_compose_to_its_logits(name: str, settings: dict[str, Any]) -> None:
    model = family(name, settings)
    Decoder(model).verify()
    found = Decoder(model)
    found.logit_scale *= 1.5
    found.logit_softcap = None if found.logit_softcap is None else found.logit_softcap * 1.5
    with pytest.raises(InputError, match="that graftlm does not know"):
        found.verify()


class TestEndTokens:
    """The model's own in its order, then the tokenizer's."""

    def test_each_is_named_once_and_in_order(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        model.generation_config.eos_token_id = [9, 257, 3]
        assert end_tokens(model, tokenizer) == [9, 257, 3]
        model.generation_config.eos_token_id = [9, 3]
        assert end_tokens(model, tokenizer) == [9, 3, tokenizer.eos_token_id]
        assert end_tokens(model) == [9, 3]

    def test_the_config_stands_in_for_a_generation_config_without_any(self, model: PreTrainedModel) -> None:
        model.generation_config.eos_token_id = None
        assert end_tokens(model) == [257]
        model.config.eos_token_id = None
        assert end_tokens(model) == []

    def test_a_nested_config_is_looked_into(self) -> None:
        model = family("gemma3", GEMMA3)
        model.generation_config.eos_token_id = None
        assert end_tokens(model) == [2]
