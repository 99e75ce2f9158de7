"""Adapters of every kind: merged, trained on, with embeddings of another size, and what of them stays when off."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration, merged
from graftlm.models.load import adapter_on, load_model
from graftlm.models.pair_loading import opened_pair
from graftlm.models.restore import restore
from graftlm.proxy.experts import not_switchable
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.training import trained_part
from tests.conftest import byte_tokenizer, tiny_model

# What PEFT says of tied embeddings, trained biases and embeddings that it saves.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.arange(40, 60)[None]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})


def noised(model: PeftModel) -> PeftModel:
    """With all that it trains moved by random amounts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits.clone()


class Saved:
    """A base model's folder, a copy of it, and a function that saves an adapter on it."""

    def __init__(self, folder: Path, architecture: str = "llama", **settings: Any) -> None:
        self.base, self.copy, self.folder = str(folder / "base"), str(folder / "copy"), folder / "adapter"
        for name in (self.base, self.copy):
            tiny_model(architecture, **settings).save_pretrained(name)
            byte_tokenizer().save_pretrained(name)

    def adapter(self, config: Any, rows: int | None = None, new_tokens: int = 0) -> PeftModel:
        """Trained by random amounts, with an embedding of `rows`, and saved with its tokenizer."""
        base, tokenizer = load_model(self.base)
        tokenizer.add_tokens([f"<new {index}>" for index in range(new_tokens)])
        if rows is not None:
            base.resize_token_embeddings(rows)
        model = noised(get_peft_model(base, config))
        model.save_pretrained(str(self.folder))
        if new_tokens:
            tokenizer.save_pretrained(str(self.folder))
        return model


EMBEDDINGS = {
    "llama": ("embed_tokens", "lm_head"),
    "gemma3_text": ("embed_tokens", "lm_head"),
    "gpt2": ("wte", "lm_head"),
}


@pytest.mark.parametrize("on", [(0,), (1,), (0, 1)], ids=["embedding", "unembedding", "both"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", EMBEDDINGS)
def test_a_merged_model_is_the_adapted_one_also_where_embeddings_were_tied(
    architecture: str, tied: bool, on: tuple[int, ...], tmp_path: Path
) -> None:
    names = [EMBEDDINGS[architecture][index] for index in on]
    base = tiny_model(architecture, tie_word_embeddings=tied)
    expected = logits(model := noised(get_peft_model(base, lora(target_modules=names))))
    whole = merged(model)
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    whole.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(whole), rtol=1e-5, atol=1e-5
    )


def test_an_adapter_that_cannot_be_merged_is_refused() -> None:
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="PROMPT_TUNING, which cannot be merged"):
        merged(get_peft_model(tiny_model(), prompt))
    with pytest.raises(InputError, match=r"LORA, which cannot be merged.*aLoRA"):
        merged(get_peft_model(tiny_model(), lora(alora_invocation_tokens=[5])))


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "bias of LoRA": {"lora_bias": True},
    "all biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "rows of tokens": {"trainable_token_indices": [45, 50]},
    "modules whole": {"modules_to_save": ["lm_head", "norm"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "on the unembedding": {"target_modules": ["q_proj", "lm_head"]},
    "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "principal components": {"init_lora_weights": "pissa"},
    "orthonormal": {"init_lora_weights": "olora"},
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_an_adapter_trains_is_trained_on(kind: str, tied: bool, tmp_path: Path) -> None:
    """As PEFT marks it in a fresh one."""
    saved = Saved(tmp_path, attention_bias=True, tie_word_embeddings=tied)
    fresh = saved.adapter(lora(**KINDS[kind]))
    model, _ = trained_part(load_model(str(saved.folder))[0], "lora", 2, 4, 0.0)
    expected = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_audits_base_is_the_base_beside_itself_and_beside_a_copy(kind: str, tied: bool, tmp_path: Path) -> None:
    saved = Saved(tmp_path, attention_bias=True, tie_word_embeddings=tied)
    after, before = logits(saved.adapter(lora(**KINDS[kind]))), logits(load_model(saved.base)[0])
    changes = []
    for name in (saved.base, saved.copy):
        base, tokenizer = load_model(name)
        with opened_pair(base, tokenizer, name, str(saved.folder)) as pair:
            with pair.base() as model:
                torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
            with pair.tuned() as model:
                torch.testing.assert_close(logits(model), after, rtol=1e-4, atol=1e-4)
            changes.append({w.name: (w.tuned - w.base).norm() for w in pair.weights()})
        torch.testing.assert_close(logits(base), before, rtol=1e-5, atol=1e-5)
    assert sum(bool(change > 1e-4) for change in changes[0].values()) > 1
    for weight in {*changes[0], *changes[1]}:
        own, beside = (float(each.get(weight, 0)) for each in changes)
        assert own == pytest.approx(beside, abs=1e-4), weight


LASTING = ["all biases", "biases of its layers", "principal components", "orthonormal"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_when_an_adapter_is_off_is_known_and_no_anchor_or_expert_takes_it_for_the_base(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    saved = Saved(tmp_path, attention_bias=True)
    saved.adapter(lora(**KINDS[kind]))
    model, _ = load_model(str(saved.folder))
    with model.disable_adapter():
        undone = torch.equal(logits(model), logits(load_model(saved.base)[0]))
    assert undone == (lasting_alteration(model) is None) == (kind not in LASTING)
    if not undone:
        assert not_switchable(model) is not None
        with pytest.raises(InputError, match="the anchor does not know the base model"):
            KLAnchor(texts=["a text"]).prepare(model, tokenizer)


def test_biases_that_no_layer_has_are_no_reason_to_load_a_second_model(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.adapter(lora(bias="all"))
    base, tokenizer = load_model(saved.base)
    assert adapter_on(base, tokenizer, saved.base, str(saved.folder)) is not None


VOCABULARIES: dict[str, tuple[dict[str, Any], int | None, int]] = {
    "as many rows as tokens": ({}, 262, 3),
    "rows padded to a multiple of 64": ({}, 320, 3),
    "padded without new tokens": ({}, 320, 0),
    "embeddings trained whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 320, 3),
    "fewer rows than the base model": ({}, 264, 0),
    "fewer, trained whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 264, 3),
    "LoRA on both embeddings": ({"target_modules": ["embed_tokens", "lm_head"]}, 320, 3),
    "rows of the new tokens": ({"trainable_token_indices": [259, 260, 261]}, 320, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_an_adapters_file_says_how_many_rows_its_embedding_has(kind: str, tied: bool, tmp_path: Path) -> None:
    settings, rows, new_tokens = VOCABULARIES[kind]
    size = 288 if kind.startswith("fewer") else 259
    saved = Saved(tmp_path, vocab_size=size, tie_word_embeddings=tied)
    tokens = torch.cat([TOKENS, torch.arange(259, 259 + new_tokens)[None]], dim=1)
    expected = logits(saved.adapter(lora(**settings), rows, new_tokens), tokens)
    model, _ = load_model(str(saved.folder))
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(merged(model), tokens), expected, rtol=1e-4, atol=1e-4)


def test_gpt2_with_padded_embeddings_loads(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "gpt2")
    expected = logits(saved.adapter(lora(target_modules=["c_attn"], fan_in_fan_out=True), 320, 3))
    torch.testing.assert_close(logits(load_model(str(saved.folder))[0]), expected, rtol=1e-5, atol=1e-5)


def test_rows_that_are_nowhere_saved_are_not_made_up(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    model = saved.adapter(lora(target_modules=["lm_head"]), 320)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(saved.folder), save_embedding_layers=False)
    with pytest.raises(InputError, match="trained with 320 rows of embedding, its base model has 259"):
        load_model(str(saved.folder))


def test_gpt2s_trained_biases_are_part_of_what_an_audit_compares(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "gpt2")
    after = logits(saved.adapter(lora(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")))
    base, tokenizer = load_model(saved.base)
    before = logits(base)
    with opened_pair(base, tokenizer, saved.base, str(saved.folder)) as pair:
        with pair.base() as model:
            torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
        with pair.tuned() as model:
            torch.testing.assert_close(logits(model), after, rtol=1e-5, atol=1e-5)
        moved = {weight.name for weight in pair.weights() if not torch.equal(weight.base, weight.tuned)}
    assert moved == {name for name, _ in base.named_parameters() if name.endswith((".bias", "c_attn.weight"))}


def test_restore_refuses_an_adapter_that_brings_biases(tmp_path: Path) -> None:
    saved = Saved(tmp_path, attention_bias=True)
    saved.adapter(lora(bias="all"))
    with pytest.raises(
        InputError, match=r"the adapter has a model.layers.0.self_attn.*bias of its own: merge it first"
    ):
        restore(str(saved.folder), tmp_path / "out", layers="0")
