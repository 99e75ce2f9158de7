"""Bootstrap intervals against simulation and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graftlm.auditing.intervals import bootstrap_change, bootstrap_gap_closed, bootstrap_retention
from graftlm.auditing.retention import facts_changed, retention
from graftlm.tasks import Metric, TaskResult
from graftlm.tasks.facts import GREEDY, RANKING
from graftlm.tasks.metric import NLL, PERPLEXITY

SCORES = (Metric("score", "score", higher_is_better=True), Metric("other", "other", higher_is_better=True))
DECLARED = (*SCORES, GREEDY, RANKING, NLL, PERPLEXITY)


def result(metric: str, value: float, examples: list[dict[str, Any]], floor: float = 0.0) -> TaskResult:
    named = [{"prompt": str(place), "reference": "r", **example} for place, example in enumerate(examples)]
    return TaskResult(
        task="t",
        metrics={metric: value},
        declared=DECLARED,
        floors={metric: floor},
        examples=named,
        count=len(named),
        seconds=0.0,
    )


def means(metric: str, values: Any, floor: float = 0.0) -> TaskResult:
    return result(metric, float(np.mean(values)), [{metric: float(value)} for value in values], floor)


def likelihoods(metric: str, nll: Any, tokens: Any) -> TaskResult:
    value = float(np.sum(nll) / np.sum(tokens))
    examples = [{"nll": float(n), "tokens": int(t)} for n, t in zip(nll, tokens, strict=True)]
    return result(metric, math.exp(value) if metric == "perplexity" else value, examples)


@pytest.mark.slow
def test_intervals_cover_the_true_difference_in_a_simulation() -> None:
    """95 % of 400 paired samples, the examples' difficulty shared by both models: 93 to 97 %."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        difficulty = generator.normal(size=80)
        before = means("score", difficulty + 0.3 * generator.normal(size=80))
        after = means("score", difficulty + 0.1 + 0.3 * generator.normal(size=80))
        change = bootstrap_change(before, after, "score", resamples=500)
        assert change is not None and change.low is not None and change.high is not None
        covered += change.low <= 0.1 <= change.high
    assert 0.92 <= covered / 400 <= 0.975


def test_pairing_by_example_takes_out_their_difficulty() -> None:
    difficulty = 10 * np.random.default_rng(1).normal(size=50)
    change = bootstrap_change(means("score", difficulty), means("score", difficulty + 0.5), "score")
    assert change is not None and change.low == pytest.approx(0.5) and change.high == pytest.approx(0.5)
    assert change.shown and change.better


@pytest.mark.parametrize("metric", ["nll_per_token", "perplexity"])
def test_a_ratio_is_drawn_with_its_tokens(metric: str) -> None:
    """Twice the nats on every example: the ratio doubles in each draw, however the tokens fall."""
    tokens = np.array([1, 5, 20, 3])
    before, after = likelihoods(metric, 1.0 * tokens, tokens), likelihoods(metric, 2.0 * tokens, tokens)
    expected = math.e**2 - math.e if metric == "perplexity" else 1.0
    change = bootstrap_change(before, after, metric)
    assert change is not None and change.value == pytest.approx(expected)
    assert change.low == pytest.approx(expected) and change.high == pytest.approx(expected)
    assert change.shown and not change.better


def test_a_model_against_itself_shows_no_difference() -> None:
    scores = means("score", np.random.default_rng(2).normal(size=30))
    change = bootstrap_change(scores, scores, "score")
    assert change is not None and (change.value, change.low, change.high, change.shown) == (0, 0, 0, False)


def test_without_common_examples_there_is_no_interval() -> None:
    before = means("score", [0.0, 1.0, 0.0])
    after = means("score", [1.0, 1.0])
    change = bootstrap_change(before, after, "score")
    assert change is not None and change.low is None and change.high is None and not change.shown
    assert bootstrap_change(before, means("other", [1.0, 1.0]), "score") is None


def test_retention_is_corrected_for_guessing() -> None:
    before = means("greedy_accuracy", [1, 1, 1, 1, 0], floor=0.2)
    assert retention(before, before) == pytest.approx(1)
    assert retention(before, means("greedy_accuracy", [1, 0, 1, 0, 0], floor=0.2)) == pytest.approx(1 / 3)
    assert retention(before, means("greedy_accuracy", [0, 0, 0, 0, 1], floor=0.2)) == pytest.approx(0)
    guess = means("greedy_accuracy", [1, 0, 0, 0, 0], floor=0.2)
    assert retention(guess, before) is None


def test_retention_of_likelihoods_is_the_ratio_of_perplexities() -> None:
    tokens = np.array([4, 6])
    before, after = likelihoods("nll_per_token", tokens, tokens), likelihoods("nll_per_token", 2 * tokens, tokens)
    assert retention(before, after) == pytest.approx(1 / math.e)


def test_where_nothing_is_answered_right_the_likelihoods_tell() -> None:
    def wrong(nll: float) -> TaskResult:
        examples = [{"prompt": str(n), "greedy_accuracy": 0.0, "nll": nll, "tokens": 1} for n in range(3)]
        metrics = {"greedy_accuracy": 0.0, "nll_per_token": nll}
        return TaskResult(task="t", metrics=metrics, declared=DECLARED, examples=examples, count=3, seconds=0.0)

    assert retention(wrong(1.0), wrong(2.0)) == pytest.approx(1 / math.e)
    assert bootstrap_retention([(wrong(1.0), wrong(2.0))]) == pytest.approx([1 / math.e] * 2)


def test_facts_lost_won_and_kept_are_counted() -> None:
    before, after = means("greedy_accuracy", [1, 1, 0, 0, 1]), means("greedy_accuracy", [1, 0, 1, 0, 1])
    changed = facts_changed(before, after)["greedy_accuracy"]
    assert [example["prompt"] for example in changed.lost] == ["1"]
    assert [example["prompt"] for example in changed.won] == ["2"]
    assert changed.kept == 2


def test_an_accuracy_near_its_floor_counts_for_little() -> None:
    """Greedy 0.02 above its floor doubles, ranking 0.6 above its floor halves: (0.04 + 0.3) / (0.02 + 0.6)."""

    def both(greedy: float, ranking: float) -> TaskResult:
        return TaskResult(
            task="t",
            metrics={"greedy_accuracy": greedy, "ranking_accuracy": ranking},
            declared=DECLARED,
            floors={"greedy_accuracy": 0.0, "ranking_accuracy": 0.1},
            count=2,
            seconds=0.0,
        )

    assert retention(both(0.02, 0.7), both(0.04, 0.4)) == pytest.approx(0.34 / 0.62)


def test_the_gap_closed_is_the_same_share_of_every_draw() -> None:
    """Steered models that win a fixed share of what each example gains: the interval has no width."""
    base = np.random.default_rng(3).normal(size=60)
    gain = 1 + np.random.default_rng(4).random(60)
    before, tuned = means("score", base), means("score", base + gain)
    found = bootstrap_gap_closed(before, means("score", base + 0.7 * gain), tuned, "score")
    assert found is not None and found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7) and found.high == pytest.approx(0.7)
    noisy = bootstrap_gap_closed(before, means("score", base + gain[::-1]), tuned, "score")
    assert noisy is not None and noisy.low < noisy.value < noisy.high
    assert bootstrap_gap_closed(before, tuned, means("score", base), "score") is None, "there is no gap to close"


@pytest.mark.slow
def test_retention_bounds_cover_the_true_retention_in_a_simulation() -> None:
    """Of 1,000 facts known to 80 % one in ten is lost; a guess reaches 25 %: retention (0.72 - 0.25) / (0.8 - 0.25)."""
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        known = generator.random(100) < 0.8
        left = known & (generator.random(100) < 0.9)
        pair = means("ranking_accuracy", known, 0.25), means("ranking_accuracy", left, 0.25)
        bounds = bootstrap_retention([pair], resamples=400, seed=seed)
        assert bounds is not None
        covered += bounds[0] <= 0.47 / 0.55 <= bounds[1]
    assert 0.91 <= covered / 300 <= 0.98


def test_retention_bounds_hold_the_mean_over_the_probes() -> None:
    text = likelihoods("nll_per_token", [2.0, 4.0], [1, 2]), likelihoods("nll_per_token", [2.1, 4.2], [1, 2])
    same = means("greedy_accuracy", [1, 0, 1, 1])
    unknown = means("greedy_accuracy", [0, 0, 0, 0])
    bounds = bootstrap_retention([text, (same, same), (unknown, same)])
    assert bounds is not None and bounds == pytest.approx([(math.exp(-0.1) + 1) / 2] * 2)
    assert bootstrap_retention([(unknown, same)]) is None, "nothing was known"
    bare = TaskResult(task="t", metrics={"greedy_accuracy": 0.5}, declared=DECLARED, count=4, seconds=0.0)
    assert bootstrap_retention([(bare, bare)]) is None, "no values by example"


WER = Metric("wer", "word error rate", higher_is_better=False, floor=1.0)


def errors(values: Any, value: float | None = None, metric: Metric = WER) -> TaskResult:
    examples = [{"prompt": str(n), metric.name: float(each)} for n, each in enumerate(values)]
    found = float(np.mean(values)) if value is None else value
    metrics = {metric.name: found}
    return TaskResult(task="t", metrics=metrics, declared=[metric], examples=examples, count=len(values), seconds=0.0)


def test_where_lower_is_better_a_floor_is_an_upper_bound() -> None:
    before, after = errors([0.2, 0.4]), errors([0.4, 0.6])
    change = bootstrap_change(before, after, "wer")
    assert change is not None and change.shown and not change.better and change.gain[0] == pytest.approx(-0.2)
    assert retention(before, after) == pytest.approx((1 - 0.5) / (1 - 0.3))
    bounds = bootstrap_retention([(before, after)])
    assert bounds is not None and bounds == pytest.approx([(1 - 0.6) / (1 - 0.4), (1 - 0.4) / (1 - 0.2)])
    assert retention(errors([1.0, 1.2]), after) is None, "the base model is no better than a trivial answer"
    closed = bootstrap_gap_closed(errors([1.0, 0.8]), errors([0.7, 0.5]), errors([0.4, 0.2]), "wer")
    assert closed is not None and (closed.value, closed.low, closed.high) == pytest.approx([0.5] * 3)
    assert retention(errors([0.2], metric=replace(WER, floor=None)), after) is None, "no floor, nothing to hold it to"


def test_facts_that_become_errors_are_lost() -> None:
    changed = facts_changed(errors([0, 0, 1, 1]), errors([0, 1, 0, 1]))["wer"]
    assert [example["prompt"] for example in changed.lost] == ["1"]
    assert [example["prompt"] for example in changed.won] == ["2"] and changed.kept == 1


def test_there_is_no_interval_where_the_examples_do_not_give_the_metric() -> None:
    """Such as a median, or lm-eval's perplexity, whose examples hold log-likelihoods."""
    median = bootstrap_change(errors([0.0, 0.1, 0.9], 0.1), errors([0.1, 0.2, 0.9], 0.2), "wer")
    assert median is not None and median.value == pytest.approx(0.1) and median.low is None and not median.shown
    named = Metric("perplexity", "perplexity", higher_is_better=False)
    change = bootstrap_change(errors([3.0, 5.0], metric=named), errors([2.0, 4.0], metric=named), "perplexity")
    assert change is not None and change.low == pytest.approx(-1) and change.better, "its name alone says nothing"


def test_a_value_that_is_not_finite_is_no_change_and_no_silent_retention() -> None:
    nothing = errors([math.nan, 0.5])
    assert bootstrap_change(errors([0.2, 0.4]), nothing, "wer") is None
    kept = retention(errors([0.2, 0.4]), nothing)
    assert kept is not None and math.isnan(kept)
    assert bootstrap_retention([(errors([0.2, 0.4]), nothing)]) is None
