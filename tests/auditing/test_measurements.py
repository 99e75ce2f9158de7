"""Weight change, drift, divergence and diversity against plain computations."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from graftlm.auditing.divergence import base_written_divergence
from graftlm.auditing.diversity import FORMATS, measure_diversity
from graftlm.auditing.representations import layer_drift
from graftlm.auditing.weights import weight_changes
from graftlm.data.written_text import WrittenText, write_texts
from graftlm.errors import InputError
from graftlm.models.pair import AdapterPair, ModelPair, WholePair
from graftlm.reinforce.formats import Format, format_of
from tests.auditing.models import adapted, merged, noisy
from tests.conftest import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXTS = ["The cat sat on the mat.", "Water boils at one hundred degrees.", "Paris", "Birds sing in spring, and fly."]


def noisy_pair(layers: range = range(1, 3)) -> ModelPair:
    base = tiny_model(layers=4)
    return WholePair(base, noisy(base, layers))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_against_itself_has_not_changed(architecture: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(architecture)
    pair = WholePair(model, copy.deepcopy(model))
    assert {change.relative for change in weight_changes(pair)} == {0.0}
    for drift in layer_drift(pair, tokenizer, TEXTS):
        assert drift.cka == pytest.approx(1, abs=1e-9) and drift.cosine == pytest.approx(1, abs=1e-9)
    written = [WrittenText("general", 2, list(range(10, 20)))]
    assert base_written_divergence(pair, written)[0] == pytest.approx(0, abs=1e-9)


def test_noise_in_two_layers_is_found_there_and_drifts_on_from_there(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = noisy_pair()
    changed = {change.group for change in weight_changes(pair) if change.relative > 0}
    assert changed == {"layer 1", "layer 2"}
    drift = layer_drift(pair, tokenizer, TEXTS)
    assert drift[0].cka == pytest.approx(1, abs=1e-9) and drift[0].cosine == pytest.approx(1, abs=1e-9)
    assert all(each.cka < 0.999 and each.cosine < 0.999 for each in drift[1:])


def test_the_relative_change_is_that_of_frobenius_norms() -> None:
    models = [tiny_model(layers=4), noisy(tiny_model(layers=4), range(1, 3))]
    base, tuned = (model.model.layers[1].mlp.up_proj.weight.detach().double() for model in models)
    pair = WholePair(*models)
    [found] = [c for c in weight_changes(pair) if c.group == "layer 1" and c.module == "mlp.up_proj"]
    expected = ((tuned - base) ** 2).sum().sqrt() / (base**2).sum().sqrt()
    assert found.relative == pytest.approx(float(expected), rel=1e-5)


def test_a_weight_that_is_not_finite_is_named() -> None:
    base, tuned = tiny_model(), tiny_model()
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"NaN or an infinity in model\.layers\.1\.mlp\.up_proj\.weight"):
        weight_changes(WholePair(base, tuned))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_is_measured_as_the_merged_model_is(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = [
        AdapterPair(adapted(tiny_model(layers=4), **settings)),
        WholePair(tiny_model(layers=4), merged(**settings)),
    ]
    changes = [{(c.group, c.module): c.relative for c in weight_changes(pair) if c.relative} for pair in pairs]
    assert changes[0] == pytest.approx(changes[1], rel=1e-4) and len(changes[0]) >= 28
    drifts = [[(d.cka, d.cosine) for d in layer_drift(pair, tokenizer, TEXTS)] for pair in pairs]
    for ours, theirs in zip(*drifts, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    written = [WrittenText("general", 2, list(range(10, 20)))]
    divergences = [base_written_divergence(pair, written)[0] for pair in pairs]
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-4) and divergences[0] > 0.01


def plain_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimate as a sum over quadruples of different positions (Song et al. 2012, section 2)."""
    ours, theirs = x @ x.T, y @ y.T
    count, total = len(x), 0.0
    for i in range(count):
        for j in range(count):
            for q in range(count):
                for r in range(count):
                    if len({i, j, q, r}) == 4:
                        total += float(ours[i, j] * (theirs[i, j] + theirs[q, r] - 2 * theirs[i, q]))
    return total / (count * (count - 1) * (count - 2) * (count - 3))


@pytest.mark.slow
def test_cka_is_the_plain_one(tokenizer: PreTrainedTokenizerFast) -> None:
    """One batch without padding: the ratio of plain HSICs of the hidden states, first position left out."""
    pair = noisy_pair()
    text = "Nine words."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    states = []
    for opened in (pair.base, pair.tuned):
        with opened() as model, torch.no_grad():
            states.append([s[0, 1:].double() for s in model(ids, output_hidden_states=True).hidden_states[1:-1]])
    for layer, drift in enumerate(layer_drift(pair, tokenizer, [text])[:3]):
        x, y = states[0][layer], states[1][layer]
        expected = plain_hsic(x, y) / math.sqrt(plain_hsic(x, x) * plain_hsic(y, y))
        assert drift.cka == pytest.approx(expected, rel=1e-6)
        assert drift.cosine == pytest.approx(float(torch.cosine_similarity(x, y, dim=1).mean()), rel=1e-6)


def test_padding_and_batches_make_no_difference_to_the_cosine(tokenizer: PreTrainedTokenizerFast) -> None:
    found = [
        [drift.cosine for drift in layer_drift(noisy_pair(), tokenizer, TEXTS, batch_size=size)] for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_drift_needs_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="too short"):
        layer_drift(noisy_pair(), tokenizer, ["abc"])


def test_the_divergence_is_the_plain_one(tokenizer: PreTrainedTokenizerFast) -> None:
    """Texts of different lengths, one by one and in float64, written positions only."""
    pair = noisy_pair()
    with pair.base() as model:
        written = write_texts(model, tokenizer, TEXTS, kind="general", tokens=60, max_new_tokens=9, temperature=1.0)
    sums, counts = [], []
    for text in written:
        ids = torch.tensor([text.input_ids])
        logs = []
        for opened in (pair.base, pair.tuned):
            with opened() as model, torch.no_grad():
                logs.append(torch.log_softmax(model(ids).logits[0].double(), -1)[text.prompt_length - 1 : -1])
        sums.append(float((logs[0].exp() * (logs[0] - logs[1])).sum()))
        counts.append(text.written)
    mean, error = base_written_divergence(pair, written)
    assert mean == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert 0 < error < mean
    with pytest.raises(InputError, match="wrote no text"):
        base_written_divergence(pair, [WrittenText("general", 3, [1, 2, 3])])


def test_diversity_of_a_model_that_knows_one_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights scaled up: one token has all the mass, so every sample is the same and no start has entropy."""
    model = tiny_model()
    varied = measure_diversity(model, tokenizer, ["ab", "a longer prompt"], samples=8, max_new_tokens=6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    single = measure_diversity(model, tokenizer, ["ab", "a longer prompt"], samples=8, max_new_tokens=6)
    assert single.distinct == pytest.approx(2 / 16) and single.start_entropy == pytest.approx(0, abs=1e-3)
    assert varied.distinct == 1 and varied.outputs == 16
    assert 0.5 * math.log(259) < varied.start_entropy <= math.log(259)
    assert sum(varied.formats.values()) == pytest.approx(1)


def test_sampling_leaves_the_callers_random_state_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = measure_diversity(tiny_model(), tokenizer, ["ab"], seed=1)
    torch.manual_seed(5)
    again = measure_diversity(tiny_model(), tokenizer, ["ab"], seed=1)
    assert first == again
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ('{"a": 1}', "JSON"),
        ("```python\nx = 1\n```", "code block"),
        ("- one\n- two", "list"),
        ("1. first\n2. second", "list"),
        ("so 3 + 4 = 7", "mathematics"),
        ("CCO", "one word"),
        ("The sky is blue today.", "sentences"),
        ("", "other"),
    ],
)
def test_formats_are_told_apart(output: str, name: str) -> None:
    assert format_of(output, [Format(key, value) for key, value in FORMATS.items()]) == name
