"""The multi-token loss and its gradients against a plain float64 implementation."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import head_losses, shifted_targets
from graftlm.tuning.model import TermsModel
from graftlm.tuning.terms.base import Step
from graftlm.tuning.terms.settings import MultiTokenSettings, Schedule, Weighting, schedule_factor
from tests.conftest import ARCHITECTURES, tiny_model
from tests.tuning.plain import (
    PEFT_WARNING,
    assert_same,
    gradients,
    plain_logits,
    plain_loss,
    plain_nll,
    plain_schedule,
    terms_model,
)

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

EXACT = 1e-12  # float64 throughout
SINGLE = 1e-6  # what is left where a layer works in float32 whatever the model's dtype


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows of 12, one with padding, prompts unsupervised; (input_ids, labels, attention_mask)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 256, (3, 12), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :4] = -100
    labels[1, :7] = -100
    labels[1, 9:], mask[1, 9:] = -100, 0
    labels[2, [3, 5]] = -100
    return ids, labels, mask


def grown(model: nn.Module, num_heads: int = 3, depth: int = 1) -> MultiTokenHeads:
    """Heads that have drifted from the layers that they were copied from."""
    heads = MultiTokenHeads.from_model(model, num_heads, depth=depth)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return heads


def lora(model: nn.Module) -> nn.Module:
    """`model` with a LoRA adapter that does something."""
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(6)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return tuned


def double(architecture: str = "llama", **settings: object) -> nn.Module:
    """A model in float64, also in its norms, which transformers computes in float32."""
    model = tiny_model(architecture, **settings).double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm") and "Gemma" not in type(child).__name__:
                setattr(module, name, nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64))
    return model


def loss_of(whole: TermsModel, ids: Tensor, labels: Tensor, mask: Tensor | None, **inputs: object) -> Tensor:
    count = (labels[:, 1:] != -100).sum().clamp(min=1)
    return whole(input_ids=ids, labels=labels, attention_mask=mask, step=Step(normaliser=count), **inputs).loss


@pytest.mark.slow
@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("trained", ["all", "lora"])
def test_loss_and_gradients_equal_the_plain_implementation(weighting: Weighting, trained: str) -> None:
    model = double() if trained == "all" else lora(double())
    heads = grown(model)
    fraction = {"forking_fraction": 0.3} if weighting == "entropy" else {}
    whole = terms_model(model, heads, token_weights=weighting, **fraction)
    ids, labels, mask = batch()
    given = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    expected = plain_loss(
        model, heads, ids, labels, mask, coefficient=0.3, weighting=weighting, fraction=0.3, given=given
    )
    expected.backward()
    expected_gradients = gradients(whole)
    loss = loss_of(whole, ids, labels, mask, token_weights=given if weighting == "importance" else None)
    loss.backward()

    torch.testing.assert_close(loss, expected, atol=EXACT, rtol=0)
    assert any("lora" in name for name in expected_gradients) == (trained == "lora")
    assert all(g.abs().max() > 0 for n, g in expected_gradients.items() if n.startswith("heads."))
    assert_same(gradients(whole), expected_gradients, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        *((name, {}) for name in ARCHITECTURES),
        ("gemma3_text", {"final_logit_softcapping": 0.5}),  # as in Gemma 2
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("phi", {}),  # its unembedding has a bias
    ],
)
def test_loss_and_gradients_are_the_plain_ones_for_every_architecture(
    architecture: str, settings: dict[str, object]
) -> None:
    model = double(architecture, **settings)
    heads = grown(model)
    whole = terms_model(model, heads)
    ids, labels, mask = batch()
    plain_loss(model, heads, ids, labels, mask, coefficient=0.3).backward()
    expected = gradients(whole)
    loss_of(whole, ids, labels, mask).backward()
    single = architecture.startswith(("gemma", "cohere"))
    assert_same(gradients(whole), expected, SINGLE if single else EXACT)


def test_heads_of_depth_two_have_the_plain_loss_and_gradients() -> None:
    model = double(layers=3)
    heads = grown(model, depth=2)
    whole = terms_model(model, heads)
    ids, labels, mask = batch()
    plain_loss(model, heads, ids, labels, mask, coefficient=0.3).backward()
    expected = gradients(whole)
    loss_of(whole, ids, labels, mask).backward()
    assert_same(gradients(whole), expected, EXACT)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("step", [0, 3, 9])
def test_each_schedule_scales_the_auxiliary_terms_alone(schedule: Schedule, step: int) -> None:
    model = double()
    heads = grown(model)
    whole = terms_model(model, heads, decay=0.5, schedule=schedule)
    ids, labels, mask = batch()
    factor = schedule_factor(schedule, step, 10)
    assert factor == pytest.approx(plain_schedule(schedule, step, 10), abs=1e-15)
    count = (labels[:, 1:] != -100).sum()
    at_step = Step(number=step, total=10, normaliser=count)
    loss = whole(input_ids=ids, labels=labels, attention_mask=mask, step=at_step).loss
    expected = plain_loss(model, heads, ids, labels, mask, coefficient=0.3, decay=0.5, factor=factor)
    torch.testing.assert_close(loss, expected, atol=EXACT, rtol=0)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match=r"cosine.*rsine"):
        schedule_factor("cosine", 0, 1)  # type: ignore[arg-type]


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = MultiTokenSettings()
    assert (settings.weight, settings.decay, settings.schedule) == (0.01, 0.8, "rsine")


def test_gradients_of_lone_batches_add_up_to_those_of_all_at_once() -> None:
    model = double()
    whole = terms_model(model, grown(model))
    ids, labels, mask = batch()
    loss_of(whole, ids, labels, mask).backward()
    expected = gradients(whole)
    count = (labels[:, 1:] != -100).sum()
    for row in range(3):
        part = slice(row, row + 1)
        whole(
            input_ids=ids[part],
            labels=labels[part],
            attention_mask=mask[part],
            step=Step(normaliser=count),
        ).loss.backward()
    assert_same(gradients(whole), expected, EXACT)


def test_a_head_without_targets_contributes_zero() -> None:
    model = double()
    heads = grown(model, num_heads=6)
    whole = terms_model(model, heads)
    ids = batch()[0][:, :4]
    output = whole(input_ids=ids, labels=ids, step=Step(normaliser=9))
    output.loss.backward()
    found = gradients(whole)
    assert [output.log[f"head_{k}_loss"][1] for k in range(1, 7)] == [6, 3, 0, 0, 0, 0]
    assert [output.log[f"head_{k}_loss"][0] for k in range(3, 7)] == [0, 0, 0, 0]
    for name, gradient in found.items():
        if name.startswith(("heads.layers.2.", "heads.layers.5.")):
            assert gradient.abs().max() == 0, name
    losses = head_losses(model, heads, ids, None, ids)
    assert losses[3:].tolist() == [0, 0, 0, 0]
    plain_loss(model, heads, ids, ids, None, coefficient=0.3).backward()
    assert_same(found, gradients(whole), EXACT)


@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_an_all_masked_batch_gives_a_finite_zero_with_zero_gradients(weighting: Weighting) -> None:
    model = lora(tiny_model())
    heads = grown(model)
    whole = terms_model(model, heads, token_weights=weighting)
    ids, labels, mask = batch()
    loss = loss_of(whole, ids, torch.full_like(labels, -100), mask)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in whole.parameters() if p.requires_grad)
    losses = head_losses(model, heads, ids, mask, torch.full_like(labels, -100))
    assert losses.tolist() == [0, 0, 0, 0]


def test_a_row_of_one_token_gives_zero() -> None:
    model = tiny_model()
    heads = grown(model)
    one = torch.tensor([[7]])
    losses = head_losses(model, heads, one, None, one)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0, 0]


def test_head_losses_are_the_plain_means_and_differentiable() -> None:
    model = double()
    heads = grown(model)
    ids, labels, mask = batch()
    logits = plain_logits(model, heads, input_ids=ids, attention_mask=mask)
    expected = torch.stack(
        [torch.stack(list(plain_nll(of_head, labels, k, mask).values())).mean() for k, of_head in enumerate(logits)]
    )
    losses = head_losses(model, heads, ids, mask, labels)
    torch.testing.assert_close(losses, expected, atol=EXACT, rtol=0)
    scale = torch.tensor([1.0, 0.5, -2.0, 3.0], dtype=torch.float64)
    both = nn.ModuleList([model, heads])
    (expected * scale).sum().backward()
    expected_gradients = gradients(both)
    (losses * scale).sum().backward()
    assert_same(gradients(both), expected_gradients, EXACT)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", ["none", "block"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(attention: str, mask: str) -> None:
    model = double()
    model.set_attn_implementation(attention)
    heads = grown(model)
    whole = terms_model(model, heads)
    ids, labels, padding = batch()
    lengths = padding.sum(1).tolist()
    loss = loss_of(whole, ids, labels, padding)
    loss.backward()
    expected = gradients(whole)

    labels = labels.clone()
    labels[:, 0] = -100  # as TRL's collator does: no document predicts the next one's first token
    packed_ids = torch.cat([row[:n] for row, n in zip(ids, lengths, strict=True)])[None]
    packed_labels = torch.cat([row[:n] for row, n in zip(labels, lengths, strict=True)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    block = None
    if mask == "block":
        document = (positions == 0).cumsum(-1)[0]
        sees = (document[:, None] == document[None]) & torch.ones(len(document), len(document)).tril().bool()
        block = torch.zeros(1, 1, len(document), len(document), dtype=torch.float64)
        block.masked_fill_(~sees, torch.finfo(torch.float64).min)
    packed = loss_of(whole, packed_ids, packed_labels, block, position_ids=positions)
    packed.backward()
    accuracy = EXACT if attention == "sdpa" else SINGLE
    torch.testing.assert_close(packed, loss, atol=accuracy, rtol=0)
    assert_same(gradients(whole), expected, accuracy)
    torch.testing.assert_close(
        head_losses(model, heads, packed_ids, block, packed_labels, position_ids=positions),
        head_losses(model, heads, ids, padding, labels),
        atol=accuracy,
        rtol=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sdpa_and_eager_attention_have_the_same_loss_and_gradients(architecture: str) -> None:
    ids, labels, mask = batch()
    found = []
    for attention in ("sdpa", "eager"):
        model = double(architecture)
        model.set_attn_implementation(attention)
        whole = terms_model(model, grown(model))
        loss = loss_of(whole, ids, labels, mask)
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(whole)})
    assert_same(found[0], found[1], SINGLE)  # eager softmax is in float32


def test_left_padding_changes_no_loss() -> None:
    model = double()
    heads = grown(model)
    ids, labels, _ = batch()
    shifted = torch.nn.functional.pad(ids, (5, 0), value=258)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded_labels = torch.nn.functional.pad(labels, (5, 0), value=-100)
    torch.testing.assert_close(
        head_losses(model, heads, shifted, mask, padded_labels, position_ids=positions),
        head_losses(model, heads, ids, torch.ones_like(ids), labels),
        atol=1e-9,
        rtol=0,
    )


def test_targets_lie_within_the_mask_and_the_document() -> None:
    labels = torch.tensor([[10, 11, 12, 13, 14, 15]])
    assert shifted_targets(labels, 0).tolist() == [[11, 12, 13, 14, 15, -100]]
    assert shifted_targets(labels, 2).tolist() == [[13, 14, 15, -100, -100, -100]]
    assert shifted_targets(labels, 5).tolist() == [[-100] * 6]
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    assert shifted_targets(labels, 1, mask).tolist() == [[-100, 13, 14, 15, -100, -100]]
    documents = torch.tensor([[1, 1, 1, 2, 2, 2]])
    assert shifted_targets(labels, 1, None, documents).tolist() == [[12, -100, -100, 15, -100, -100]]
