"""MultiTokenModel: one module whose forward pass is the whole loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.tuning.model import MultiTokenModel, TermsModel
from graftlm.tuning.terms.base import Step
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.terms.multi_token import MultiToken
from graftlm.tuning.terms.next_token import NextToken
from graftlm.tuning.terms.settings import KLAnchorSettings, MultiTokenSettings
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model
from tests.tuning.plain import PEFT_WARNING, LargestTensor, assert_same, gradients, terms_model

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
TEXTS = ["The cat sat on the mat.", "Water boils at 100 degrees.", "A short one", "B", "Paris is in France, they say."]


def tokens(batch: int = 2, time: int = 11) -> Tensor:
    return torch.randint(0, 256, (batch, time), generator=torch.Generator().manual_seed(1))


def lora_model(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(**settings), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def step(whole: TermsModel, **settings: object) -> Tensor:
    ids = tokens()
    return whole(input_ids=ids, labels=ids, step=Step(normaliser=20), **settings).loss


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_heads_lowers_their_loss(architecture: str) -> None:
    model = tiny_model(architecture).requires_grad_(False)
    heads = MultiTokenHeads.from_model(model, num_heads=2)
    whole = terms_model(model, heads, weight=1.0, decay=1.0)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    ids = tokens()
    sums = []
    for _ in range(20):
        output = whole(input_ids=ids, labels=ids, step=Step(normaliser=20))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sums.append({name: total.item() for name, (total, _) in output.log.items()})
    first, last = sums[0], sums[-1]
    assert last["next_token_loss"] == first["next_token_loss"]
    assert all(last[name] < 0.93 * first[name] for name in ("head_1_loss", "head_2_loss"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_no_gradient(architecture: str) -> None:
    model = tiny_model(architecture)
    whole = MultiTokenModel(model, MultiTokenHeads.from_model(model, num_heads=2)).train()
    step(whole).backward()
    expected = gradients(whole)
    whole.gradient_checkpointing_enable()
    step(whole).backward()
    assert_same(gradients(whole), expected, 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_in_a_head_is_the_same_forward_and_backward(checkpointing: bool) -> None:
    """Along a gradient the loss must fall as it says, with one draw of the dropout."""
    model = tiny_model("gpt2", resid_pdrop=0.3, attn_pdrop=0.3).double()
    heads = MultiTokenHeads.from_model(model, num_heads=2)
    whole = MultiTokenModel(model, heads).train()
    if checkpointing:
        whole.gradient_checkpointing_enable()
    torch.manual_seed(4)
    step(whole).backward()
    slope = sum(float((p.grad**2).sum()) for p in whole.parameters())
    losses = []
    for sign in (1, -2):
        for parameter in whole.parameters():
            parameter.data += sign * 1e-5 * parameter.grad
        torch.manual_seed(4)
        losses.append(float(step(whole).detach()))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-4)


def test_heads_with_weight_zero_are_not_run() -> None:
    model = tiny_model()
    heads = MultiTokenHeads.from_model(model, num_heads=2)
    calls: list[int] = []
    heads.layers[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    whole = terms_model(model, heads.requires_grad_(False), weight=0.0)
    assert torch.equal(step(whole), step(MultiTokenModel(model, None)))
    assert not calls


def test_a_frozen_head_is_computed_once_and_gives_the_gradient_of_one_computed_again() -> None:
    model = lora_model()
    heads = MultiTokenHeads.from_model(model, num_heads=2).requires_grad_(False)
    calls: list[int] = []
    heads.layers[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = {}
    for sharded in (False, True):
        whole = terms_model(model, heads, sharded=sharded)
        calls.clear()
        step(whole).backward()
        assert len(calls) == (2 if sharded else 1)
        found[sharded] = gradients(model)
    assert any(gradient.abs().max() > 0 for gradient in found[True].values())
    assert_same(found[False], found[True], atol=1e-6)


def test_trained_heads_with_weight_zero_still_get_a_gradient() -> None:
    """DDP waits for the gradient of every trained parameter."""
    model = tiny_model()
    whole = terms_model(model, MultiTokenHeads.from_model(model, num_heads=2), weight=0.0)
    step(whole).backward()
    assert all(p.grad is not None for p in whole.parameters())
    assert all(p.grad.abs().max() == 0 for p in whole.heads.parameters())


def test_attributes_fall_through_to_the_model() -> None:
    model = tiny_model()
    whole = MultiTokenModel(model, None)
    assert whole.config is model.config
    assert whole.device == model.device
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = whole.no_such_thing


def test_an_unembedding_trained_through_modules_to_save_gets_its_gradient() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    whole = terms_model(model, MultiTokenHeads.from_model(model, num_heads=1).requires_grad_(False), weight=0.0)
    ids = tokens()
    step(whole).backward()
    found = gradients(model)
    logits = model(input_ids=ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1)).backward()
    expected = gradients(model)
    assert any("lm_head" in name and g.abs().max() > 0 for name, g in expected.items())
    assert_same(found, expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "lora"])
def test_no_tensor_of_a_step_is_as_large_as_all_logits(
    trained: str, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.models.linear_cross_entropy.CHUNK_ROWS", 16)
    batch, time, vocabulary = 4, 64, 4096
    largest = {}
    for num_heads in (1, 4):
        model = tiny_model(vocab_size=vocabulary)
        if trained == "lora":
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        anchor, heads = anchored(model, tokenizer), MultiTokenHeads.from_model(model, num_heads)
        whole = TermsModel(model, [NextToken(), MultiToken(MultiTokenSettings(), heads), anchor])
        ids = tokens(batch, time)
        with LargestTensor() as seen:
            whole(input_ids=ids, labels=ids, step=Step(normaliser=batch * time)).loss.backward()
        largest[num_heads] = seen.elements
    weight = vocabulary * 32
    assert largest[1] <= max(weight, 16 * vocabulary) < batch * time * vocabulary
    assert largest[4] == largest[1]


def anchored(model: nn.Module, tokenizer: Any, weight: float = 0.1, **settings: Any) -> KLAnchor:
    anchor = KLAnchor(KLAnchorSettings(weight=weight), TEXTS, **settings)
    anchor.prepare(model, tokenizer)
    return anchor


class TestAnchor:
    def test_the_divergence_is_zero_at_the_start(self, tokenizer: object) -> None:
        for model in (tiny_model(), get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))):
            anchor = anchored(model, tokenizer)
            whole = TermsModel(model, [NextToken(), anchor])
            for number in range(len(anchor.batches)):
                output = whole(input_ids=tokens(), labels=tokens(), step=Step(normaliser=20, index=number))
                assert output.log["anchor_divergence"].tolist() == pytest.approx([0, 1], abs=1e-6)

    @pytest.mark.parametrize("trained", ["lora", "all", "tied"])
    def test_its_gradient_equals_that_of_the_plain_divergence(self, trained: str, tokenizer: object) -> None:
        model = (lora_model() if trained == "lora" else tiny_model(tie_word_embeddings=trained == "tied")).double()
        if trained == "lora":
            with model.disable_adapter():
                base = self.logits(model, tokenizer).detach()
            anchor = anchored(model, tokenizer, 0.7, batch_size=len(TEXTS))
        else:
            base = self.logits(model, tokenizer).detach()
            anchor = anchored(model, tokenizer, 0.7, batch_size=len(TEXTS))
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        whole = TermsModel(model, [NextToken(), anchor])
        divergence = torch.stack(
            [
                (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
                for p, q in zip(base, self.logits(model, tokenizer), strict=True)
            ]
        ).mean()
        (0.7 * divergence).backward()
        expected = gradients(whole)
        none = torch.full_like(tokens(), -100)
        output = whole(input_ids=tokens(), labels=none, step=Step())
        output.loss.backward()
        # RMSNorm works in float32 whatever the model's dtype.
        found = output.log["anchor_divergence"][0]
        torch.testing.assert_close(found, divergence.detach(), atol=1e-7, rtol=1e-6)
        assert found > 1e-5
        assert_same(gradients(whole), expected, 1e-7, 1e-5)

    def logits(self, model: nn.Module, tokenizer: object) -> Tensor:
        """[positions, vocabulary] of all texts."""
        rows = [model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in TEXTS]
        return torch.cat(rows)

    def test_batches_go_round(self, tokenizer: object) -> None:
        anchor = anchored(tiny_model(), tokenizer, batch_size=2)
        assert len(anchor.batches) == 3
        assert anchor.batch(4) is anchor.batch(1)

    def test_long_texts_are_cut(self, tokenizer: object) -> None:
        anchor = KLAnchor(texts=["x" * 300], max_length=20)
        anchor.prepare(tiny_model(), tokenizer)
        assert anchor.batch(0).input_ids.shape == (1, 20)

    @pytest.mark.parametrize("texts", [[], [""]])
    def test_no_text_is_refused(self, texts: list[str], tokenizer: object) -> None:
        with pytest.raises(InputError, match="text is empty"):
            KLAnchor(texts=texts).prepare(tiny_model(), tokenizer)


def test_without_a_step_it_is_the_model_whatever_it_is_asked_for() -> None:
    model = tiny_model()
    whole, ids = MultiTokenModel(model, MultiTokenHeads.from_model(model, 2)), tokens(1)
    calls: list[dict[str, Any]] = [
        {"attention_mask": torch.ones_like(ids), "labels": ids, "num_items_in_batch": 7, "output_hidden_states": True},
        {"position_ids": torch.arange(11)[None] + 2, "logits_to_keep": 3, "use_cache": False},
        {"past_key_values": DynamicCache(), "return_dict": False},
    ]
    for given in calls:
        own, theirs = (module(input_ids=ids, **copy.deepcopy(given)) for module in (whole, model))
        own, theirs = (each if isinstance(each, tuple) else each.to_tuple() for each in (own, theirs))
        pairs = zip(own, theirs, strict=True)
        assert all(torch.equal(ours, its) for ours, its in pairs if isinstance(ours, Tensor))
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(whole(inputs_embeds=embeddings).logits, model(ids).logits)
    cache = DynamicCache()
    whole(ids[:, :6], past_key_values=cache)
    torch.testing.assert_close(whole(ids[:, 6:], past_key_values=cache).logits, model(ids).logits[:, 6:])
    with pytest.raises(TypeError, match="positional"):
        whole(ids, torch.ones_like(ids))  # a mask, which is no labels
