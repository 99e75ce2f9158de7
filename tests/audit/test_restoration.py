"""Restoring layers against what was put into them."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftlm.audit.pair import WholePair
from graftlm.audit.restoration import layer_spans, nll_per_token, restore_each
from tests.conftest import tiny_model

PAIRS = {"task": [("one two", " three"), ("a", " b c")]}
PROBES = {"probe": [("The sky is", " blue"), ("Water is", " wet")], "other": [("x y", " z")]}


def noisy(model: PreTrainedModel, layers: range, scale: float = 0.5) -> PreTrainedModel:
    """A copy with noise in the weights of `layers` only."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers:
            for parameter in changed.model.layers[layer].parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return changed


def test_restoring_exactly_the_noisy_layers_brings_the_base_model_back(tokenizer: PreTrainedTokenizerFast) -> None:
    base = tiny_model(layers=6)
    pair = WholePair(base, noisy(base, range(2, 4)))
    found = {each.layers: each for each in restore_each(pair, tokenizer, PAIRS, PROBES, groups=3)}
    expected = {name: nll_per_token(base, tokenizer, pairs, 8) for name, pairs in PROBES.items()}
    tuned = {name: nll_per_token(pair._tuned, tokenizer, pairs, 8) for name, pairs in PROBES.items()}
    assert tuned != pytest.approx(expected, abs=1e-3)
    assert found[(2, 3)].probes == pytest.approx(expected, abs=1e-6)
    for layers in ((0, 1), (4, 5)):
        assert found[layers].probes == pytest.approx(tuned, abs=1e-6)


def test_shares_run_from_the_tuned_model_to_the_base_model(tokenizer: PreTrainedTokenizerFast) -> None:
    """One group of all layers is the base model; the noise makes one of the two fall and the other rise, or swaps."""
    base = tiny_model(layers=4)
    changed = noisy(base, range(1, 3))
    [whole] = restore_each(WholePair(base, changed), tokenizer, PAIRS, PROBES, groups=1)
    back = restore_each(WholePair(changed, base), tokenizer, PAIRS, PROBES, groups=4)
    assert whole.layers == (0, 3)
    shares = [share for share in (whole.task_share, whole.probe_share) if share is not None]
    assert shares and shares == pytest.approx([0.0] * len(shares), abs=1e-5)
    for each in back:  # layers 0 and 3 were never changed
        if each.layers in ((0, 0), (3, 3)):
            assert [s for s in (each.task_share, each.probe_share) if s is not None] == pytest.approx([1.0], abs=1e-5)


def test_a_model_against_itself_has_nothing_to_restore(tokenizer: PreTrainedTokenizerFast) -> None:
    base = tiny_model(layers=4)
    for each in restore_each(WholePair(base, copy.deepcopy(base)), tokenizer, PAIRS, PROBES, groups=2):
        assert each.task_share is None and each.probe_share is None


@pytest.mark.parametrize(("layers", "groups"), [(30, 6), (4, 6), (7, 3), (1, 1)])
def test_spans_cover_every_layer_once(layers: int, groups: int) -> None:
    spans = layer_spans(layers, groups)
    assert [index for first, last in spans for index in range(first, last + 1)] == list(range(layers))
    assert len(spans) == min(layers, groups)
