"""The figures of an experiment against closed forms."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from scipy.stats import t as student

from graftlm.experiments.comparison import Results, compared_arms
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.page import write_experiment_report
from graftlm.experiments.results import quantile_975, read_result, spread
from graftlm.experiments.verdict import experiment_verdict
from graftlm.runs.files import dump_json
from tests.experiments.made import ladder, scored


def test_the_interval_is_students_t() -> None:
    """scipy.stats.t.interval(0.95, 2, 2, sem) of 1, 2, 3: 2 ± 2.484."""
    found = spread([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half_width == pytest.approx(2.4841, abs=1e-3)
    assert spread([1.0]).half_width is None
    for freedom in (9, 10, 12, 30, 200):
        assert quantile_975(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=2e-3)


def test_an_arm_is_compared_with_the_one_below_seed_by_seed() -> None:
    steady = [*scored("cold-heads", 0.0, 10.0, 20.0), *scored("distilled-heads", 1.0, 11.01, 21.02)]
    results = ladder(steady)
    [found] = results.comparisons
    assert found.seeds == 3 and found.changes["t"]["score"].value == pytest.approx(1.01)
    line, _, explained = experiment_verdict(results)
    assert "t score +1.010 [+0.985, +1.035] (better)" in line and "Of the 1 differences" in explained
    noisy = ladder([*scored("cold-heads", 0.0, 5.0, 1.0), *scored("distilled-heads", 4.0, 0.0, 2.0)])
    assert experiment_verdict(noisy)[0] == "distilled-heads against cold-heads (3 paired seeds): no difference shown."


def test_seeds_that_differ_by_the_same_number_of_answers_show_nothing() -> None:
    alike = ladder([*scored("cold-heads", 0.7, 0.75, 0.8), *scored("kl-anchor", 0.69, 0.74, 0.79)])
    change = alike.comparisons[0].changes["t"]["score"]
    assert change.value == pytest.approx(-0.01) and not change.shown


def test_one_seed_is_compared_example_by_example() -> None:
    def with_examples(arm: str, values: list[float]) -> list[object]:
        [each] = scored(arm, sum(values) / len(values))
        examples = [{"prompt": str(i), "reference": "", "score": value} for i, value in enumerate(values)]
        return [replace(each, scores={"t": replace(each.scores["t"], examples=examples)})]

    results = ladder([*with_examples("cold-heads", [0.0, 1.0] * 50), *with_examples("distilled-heads", [1.0] * 100)])  # type: ignore[list-item]
    [found] = results.comparisons
    assert found.seeds == 1 and found.changes["t"]["score"].shown and found.changes["t"]["score"].low is not None
    assert "(one seed, paired by example): t score +0.500" in experiment_verdict(results)[0]


def test_arms_are_compared_with_what_they_are_from_and_with_the_baseline() -> None:
    every = compared_arms(StudyConfig().chosen_arms, "next-token-lora")
    assert every[0] == ("next-token-full", "next-token-lora")
    assert ("kl-anchor", "entropy-weights") in every and ("kl-anchor", "importance-weights") in every
    assert ("next-token-lora", "importance-weights") in every and len(set(every)) == len(every)
    some = StudyConfig(arms=["cold-heads,importance-weights"]).chosen_arms
    assert compared_arms(some, "next-token-lora") == [("cold-heads", "importance-weights")]
    alone = StudyConfig(arms=["cold-heads"]).chosen_arms
    assert compared_arms(alone) == [("untrained", "cold-heads")]


def test_strengths_are_compared_with_their_like_or_else_with_the_untrained_model() -> None:
    rates = [{"learning_rate": 1e-4}, {"learning_rate": 2e-4}]
    own = {
        "plain": {"tune": {"objective": "next-token"}, "strengths": {"learning_rate": [1e-4, 2e-4]}},
        "anchored": {"from": "plain"},
        "restored": {"from": "plain", "after": {"restore": {"layers": "0"}}, "strengths": {"scale": [0.5]}},
    }
    arms = StudyConfig(own_arms=own).chosen_arms
    made: list[tuple[str, dict[str, float]]] = [("plain", rate) for rate in rates]
    made += [("anchored", rates[1]), ("restored", {"scale": 0.5})]
    every = [replace(each, strength=strength) for name, strength in made for each in scored(name, 1.0, 2.0)]
    results = Results(every=[*scored("untrained", 0.0), *every], arms=arms, tasks=["t"], probes=[])
    assert [(each.before, each.after) for each in results.comparisons] == [
        ("plain, learning_rate 0.0002", "anchored, learning_rate 0.0002"), ("untrained", "restored, scale 0.5"),
    ]  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    [written] = scored("cold-heads", math.inf)
    (tmp_path / "result.json").write_text(dump_json(asdict(replace(written, strength={"scale": 0.5}))))
    read = read_result(tmp_path / "result.json")
    assert read.label == "cold-heads, scale 0.5" and read.scores["t"].declared == written.scores["t"].declared
    assert math.isnan(read.value("t", "score")), "null is not finite"


def test_a_value_that_is_not_finite_ends_no_study(tmp_path: Path) -> None:
    results: Results = ladder(scored("cold-heads", math.nan, math.nan), probes=["t"])
    write_experiment_report(tmp_path / "page.html", results, title="t", facts={})
    assert ">nan<" in (tmp_path / "page.html").read_text("utf-8")
