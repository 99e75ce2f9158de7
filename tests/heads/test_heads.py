from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model
from tests.tuning.plain import PEFT_WARNING, plain_logits

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


def tokens(batch: int = 2, time: int = 9) -> Tensor:
    return torch.randint(0, 256, (batch, time), generator=torch.Generator().manual_seed(1))


def model_with(architecture: str, attention: str, **settings: object) -> nn.Module:
    model = tiny_model(architecture, **settings)
    model.set_attn_implementation(attention)
    return model


def padding() -> Tensor:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return mask


def same_logits(heads: MultiTokenHeads, model: nn.Module, atol: float = 0.0) -> None:
    mask = padding()
    with torch.no_grad():
        expected = model(input_ids=tokens(), attention_mask=mask).logits
        logits = heads.eval()(model, tokens(), mask)
    assert logits.shape == (heads.num_heads, 2, 9, VOCABULARY)
    for head in logits:
        torch.testing.assert_close(head[mask.bool()], expected[mask.bool()], rtol=0, atol=atol)


@ATTENTIONS
@EVERY_ARCHITECTURE
def test_a_fresh_head_reproduces_the_models_own_logits(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    # Two identical calls of GPT-2's eager attention differ by 6e-8 themselves.
    atol = 1e-6 if (architecture, attention) == ("gpt2", "eager") else 0.0
    same_logits(MultiTokenHeads.from_model(model, num_heads=2), model, atol)


@ATTENTIONS
@EVERY_ARCHITECTURE
def test_a_fresh_head_of_two_layers_reproduces_the_models_own_logits(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention, layers=3)
    atol = 1e-6 if (architecture, attention) == ("gpt2", "eager") else 0.0
    same_logits(MultiTokenHeads.from_model(model, num_heads=1, depth=2), model, atol)


@pytest.mark.parametrize("first", ["sliding_attention", "full_attention"])
@ATTENTIONS
def test_each_layer_of_a_deep_head_keeps_its_own_kind_of_attention(first: str, attention: str) -> None:
    second = "full_attention" if first == "sliding_attention" else "sliding_attention"
    model = model_with("gemma3_text", attention, layer_types=[first, second], sliding_window=3)
    same_logits(MultiTokenHeads.from_model(model, num_heads=1, depth=2), model)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gemma3_text", {"final_logit_softcapping": 0.5}),
        ("granite", {"logits_scaling": 4.0}),  # it divides and we multiply: alike to the bit for powers of two
        ("cohere", {"logit_scale": 0.3}),
    ],
)
def test_a_fresh_head_scales_and_caps_its_logits_as_the_model_does(
    architecture: str, settings: dict[str, object]
) -> None:
    model = tiny_model(architecture, **settings)
    same_logits(MultiTokenHeads.from_model(model, num_heads=1), model)


def test_a_tied_unembedding_is_shared() -> None:
    model = tiny_model(tie_word_embeddings=True)
    same_logits(MultiTokenHeads.from_model(model, num_heads=1), model)


@ATTENTIONS
@EVERY_ARCHITECTURE
def test_an_edited_later_token_changes_no_earlier_output_of_any_head(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    heads = MultiTokenHeads.from_model(model, num_heads=2).eval()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        edited = tokens()
        edited[:, 5] = (edited[:, 5] + 7) % 256
        before, after = heads(model, tokens(), padding()), heads(model, edited, padding())
    torch.testing.assert_close(after[:, :, :5], before[:, :, :5], rtol=0, atol=1e-6)
    assert (after[:, :, 5:] - before[:, :, 5:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@EVERY_ARCHITECTURE
def test_a_head_computes_what_the_model_would_with_the_head_as_its_last_layer(architecture: str) -> None:
    model = tiny_model(architecture)
    heads = MultiTokenHeads.from_model(model, num_heads=2).eval()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        expected = torch.stack(plain_logits(model, heads, input_ids=tokens(), attention_mask=padding())[1:])
        found = heads(model, tokens(), padding())
    kept = padding().bool()
    torch.testing.assert_close(found[:, kept], expected[:, kept], rtol=0, atol=1e-6)


def test_heads_of_a_peft_model_copy_its_base_layers_without_adapters() -> None:
    base = MultiTokenHeads.from_model(tiny_model(), num_heads=2)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    heads = MultiTokenHeads.from_model(model, num_heads=2)
    assert heads.state_dict().keys() == base.state_dict().keys()
    for name, weight in base.state_dict().items():
        torch.testing.assert_close(heads.state_dict()[name], weight, rtol=0, atol=0)
    assert all(p.requires_grad for p in heads.parameters())
    # The head sees the adapted layers below it.
    with torch.no_grad(), model.disable_adapter():
        plain = heads(model, tokens())
    assert (heads(model, tokens()) - plain).abs().max() > 1e-3


def test_growing_heads_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads = MultiTokenHeads.from_model(model, num_heads=1)
    for parameter in heads.parameters():
        parameter.data.zero_()
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_which_layer_is_copied_is_configurable() -> None:
    model = tiny_model(layers=3)
    heads = MultiTokenHeads.from_model(model, num_heads=1, copy_layer=0)
    expected = model.model.layers[0].state_dict()
    found = heads.layers[0][0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"depth": 3}, "depth 3"),
        ({"depth": 0}, "depth 0"),
        ({"copy_layer": 2}, "copy_layer 2"),
        ({"copy_layer": -1}, "copy_layer -1"),
    ],
)
def test_impossible_heads_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        MultiTokenHeads.from_model(tiny_model(), **settings)


def test_a_model_that_is_no_decoder_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
    with pytest.raises(InputError, match="heads cannot be grown on BertModel"):
        MultiTokenHeads.from_model(BertModel(config))


def test_an_adapter_on_the_unembedding_is_refused() -> None:
    """The loss reads the unembedding's weight and would pass such an adapter by."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match="adapter on its unembedding"):
        Decoder(model)


class TestFiles:
    def heads(self, model: nn.Module) -> MultiTokenHeads:
        heads = MultiTokenHeads.from_model(model, num_heads=2)
        for parameter in heads.parameters():
            parameter.data += torch.randn_like(parameter)
        return heads

    def test_saved_heads_load_as_they_were(self, model: nn.Module, tmp_path: Path) -> None:
        heads = self.heads(model)
        heads.save_pretrained(tmp_path / "heads")
        loaded = MultiTokenHeads.from_pretrained(tmp_path / "heads", model)
        assert loaded.config == heads.config
        assert loaded.state_dict().keys() == heads.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[n], w) for n, w in heads.state_dict().items())
        assert sorted(p.name for p in (tmp_path / "heads").iterdir()) == ["config.json", "model.safetensors"]

    def test_saving_again_replaces_and_a_failed_save_leaves_the_old_heads(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        first, second = self.heads(model), self.heads(model)
        first.save_pretrained(tmp_path)
        weights = second.state_dict()
        with pytest.raises(RuntimeError):  # two names of one memory cannot be written; this stands for a full disk
            second.save_pretrained(tmp_path, {**weights, "again": next(iter(weights.values()))})
        loaded = MultiTokenHeads.from_pretrained(tmp_path, model)
        assert all(torch.equal(loaded.state_dict()[n], w) for n, w in first.state_dict().items())
        second.save_pretrained(tmp_path)
        loaded = MultiTokenHeads.from_pretrained(tmp_path, model)
        assert all(torch.equal(loaded.state_dict()[n], w) for n, w in second.state_dict().items())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]

    @pytest.mark.parametrize(
        ("other", "says"),
        [
            (("llama", {"vocab_size": 300}), "vocabulary size"),
            (("llama", {"hidden_size": 64}), "hidden size"),
            (("qwen3", {}), "layer class"),
            (("llama", {"intermediate_size": 48}), "unembedding's hash"),
        ],
    )
    def test_heads_of_another_model_are_refused(
        self, model: nn.Module, tmp_path: Path, other: tuple[str, dict[str, object]], says: str
    ) -> None:
        self.heads(model).save_pretrained(tmp_path)
        self.refuses(tmp_path, tiny_model(other[0], **other[1]), says)

    @pytest.mark.parametrize("kept", [0, 7, 100, 5000])
    def test_a_truncated_file_is_refused(self, model: nn.Module, tmp_path: Path, kept: int) -> None:
        self.heads(model).save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        self.refuses(tmp_path, model, "model.safetensors is truncated")

    def test_a_pickle_is_refused(self, model: nn.Module, tmp_path: Path) -> None:
        torch.save(self.heads(model).state_dict(), tmp_path / "pytorch_model.bin")
        self.refuses(tmp_path, model, "pytorch_model.bin is a pickle")

    def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused(self, model: nn.Module, tmp_path: Path) -> None:
        heads = self.heads(model)
        heads.save_pretrained(tmp_path)
        torch.save(heads.state_dict(), tmp_path / "model.safetensors")
        self.refuses(tmp_path, model, "not a safetensors file")

    def test_a_folder_without_heads_is_refused(self, model: nn.Module, tmp_path: Path) -> None:
        self.refuses(tmp_path, model, "holds no heads")
        self.refuses(tmp_path / "nowhere", model, "holds no heads")

    @pytest.mark.parametrize("content", ["{", '{"num_heads": 2}', "[]", '"x"'])
    def test_a_broken_config_is_refused(self, model: nn.Module, tmp_path: Path, content: str) -> None:
        self.heads(model).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(content)
        self.refuses(tmp_path, model, "config.json (is|holds) ")

    def test_a_missing_weight_is_refused(self, model: nn.Module, tmp_path: Path) -> None:
        heads = self.heads(model)
        weights = heads.state_dict()
        weights.pop(next(iter(weights)))
        heads.save_pretrained(tmp_path, weights)
        self.refuses(tmp_path, model, "do not fit")

    def test_the_config_says_which_model_the_heads_belong_to(self, model: nn.Module, tmp_path: Path) -> None:
        self.heads(model).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["num_heads"] == 2
        assert config["vocabulary_size"] == VOCABULARY
        assert config["layer_class"] == "LlamaDecoderLayer"

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("adapted", [False, True])
    def test_they_belong_to_a_model_whose_weights_are_gathered(self, tied: bool, adapted: bool) -> None:
        plain: Any = tiny_model(tie_word_embeddings=tied)
        heads = self.heads(plain)
        before = heads.config.unembedding_hash
        with torch.no_grad():
            plain.get_output_embeddings().weight.mul_(2)
        model = get_peft_model(plain, LoraConfig(target_modules="all-linear")) if adapted else plain
        gathered = {name: weight.clone() for name, weight in model.state_dict().items()}
        unembedding = plain.get_output_embeddings().weight
        whole, unembedding.data = unembedding.data, unembedding.data[:0]  # as ZeRO leaves it
        heads.belong_to(model, {})
        assert heads.config.unembedding_hash == before
        heads.belong_to(model, gathered)
        found = heads.config.unembedding_hash
        unembedding.data = whole
        heads.belong_to(model)
        assert found == heads.config.unembedding_hash != before

    def refuses(self, folder: Path, model: nn.Module, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            MultiTokenHeads.from_pretrained(folder, model)
        assert "\n" not in str(error.value)
