"""Restoring layers against what was put into them."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from graftlm.auditing.restoration import layer_spans, nll_per_token, restore_each
from graftlm.auditing.result import Restored
from graftlm.models.pair import WholePair
from tests.auditing.models import noisy
from tests.conftest import tiny_model

PAIRS = {"task": [("one two", " three"), ("a", " b c")]}
PROBES = {"probe": [("The sky is", " blue"), ("Water is", " wet")], "other": [("x y", " z")]}


def test_restoring_exactly_the_noisy_layers_brings_the_base_model_back(tokenizer: PreTrainedTokenizerFast) -> None:
    base = tiny_model(layers=6)
    pair = WholePair(base, noisy(base, range(2, 4)))
    found = {each.layers: each for each in restore_each(pair, tokenizer, PAIRS, PROBES, groups=3)}
    expected = {name: nll_per_token(base, tokenizer, pairs, 8) for name, pairs in PROBES.items()}
    with pair.tuned() as model:
        tuned = {name: nll_per_token(model, tokenizer, pairs, 8) for name, pairs in PROBES.items()}
    assert tuned != pytest.approx(expected, abs=1e-3)
    assert found[(2, 3)].probes == pytest.approx(expected, abs=1e-6)
    for layers in ((0, 1), (4, 5)):
        assert found[layers].probes == pytest.approx(tuned, abs=1e-6)


def test_shares_run_from_the_tuned_model_to_the_base_model(tokenizer: PreTrainedTokenizerFast) -> None:
    """The same references as task and as probe: whichever way the noise moved them, one of the two has a share. With
    all layers restored nothing of the change is left, with layers 0 or 3, which were never changed, all of it."""
    base = tiny_model(layers=4)
    pair = WholePair(base, noisy(base, range(1, 3)))
    [whole] = restore_each(pair, tokenizer, PROBES, PROBES, groups=1)
    assert whole.layers == (0, 3)
    assert known_shares(whole) == pytest.approx([0.0], abs=1e-5)
    first, *_, last = restore_each(pair, tokenizer, PROBES, PROBES, groups=4)
    assert known_shares(first) == known_shares(last) == pytest.approx([1.0], abs=1e-5)


def known_shares(restored: Restored) -> list[float]:
    return [share for share in (restored.task_share, restored.probe_share) if share is not None]


def test_a_model_against_itself_has_nothing_to_restore(tokenizer: PreTrainedTokenizerFast) -> None:
    base = tiny_model(layers=4)
    for each in restore_each(WholePair(base, copy.deepcopy(base)), tokenizer, PAIRS, PROBES, groups=2):
        assert each.task_share is None and each.probe_share is None


@pytest.mark.parametrize(("layers", "groups"), [(30, 6), (4, 6), (7, 3), (1, 1)])
def test_spans_cover_every_layer_once(layers: int, groups: int) -> None:
    spans = layer_spans(layers, groups)
    assert [index for first, last in spans for index in range(first, last + 1)] == list(range(layers))
    assert len(spans) == min(layers, groups)
