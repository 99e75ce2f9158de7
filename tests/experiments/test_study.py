"""The ladder on a tiny model, and its figures against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from scipy.stats import t as student
from transformers import PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.experiments.study import kept, study
from graftlm.experiments.study_config import ARMS, StudyConfig
from graftlm.experiments.study_page import write_study_report
from graftlm.experiments.study_rows import (
    Measured,
    compared_arms,
    comparisons,
    paired_difference,
    quantile_975,
    spread,
    study_verdict,
)
from graftlm.runs.files import dump_json
from graftlm.runs.run import Run
from graftlm.tasks import Code, Metric, Molecules
from graftlm.tuning.config import TuneConfig
from tests.conftest import tiny_model

# What PEFT asks of transformers, and TRL of torch on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


SCORE = Metric("score", "score", higher_is_better=True)


def measured(arm: str, seed: int, value: float) -> Measured:
    return Measured(
        arm=arm, seed=seed, metrics={"t": {"score": value}}, declared={"t": [SCORE]}, floors={"t": {}}, counts={"t": 2}
    )


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path / "model"
    tiny_model(layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def small(model: str, **settings: object) -> StudyConfig:
    return StudyConfig(
        model=model, max_steps=2, seeds=2, limit=2, num_heads=2, probes="", domain_tokens=300, general_tokens=100,
        distillation_epochs=1, **settings,
    )  # fmt: skip


@pytest.mark.slow
def test_every_arm_is_trained_with_every_seed_and_a_stopped_study_goes_on(model: str, tmp_path: Path) -> None:
    asked: list[str] = []
    folder = tmp_path / "study"
    Molecules().rows("train").select(range(40)).to_json(tmp_path / "rows.jsonl")
    settings = replace(small(model), data=str(tmp_path / "rows.jsonl"))
    first = study(replace(settings, arms="next-token-lora"), folder, lambda what, done, total: asked.append(what))
    assert [(each.arm, each.seed) for each in first] == [
        ("untrained", 0),
        ("next-token-lora", 0),
        ("next-token-lora", 1),
    ]
    assert all(math.isfinite(each.metrics["molecules"]["nll_per_token"]) for each in first)
    kept = (folder / "next-token-lora" / "seed-1" / "result.json").read_bytes()
    asked.clear()
    every = study(replace(settings, seeds=1), folder, lambda what, done, total: asked.append(what))
    arms = [arm for arm in ARMS if arm != "importance-weights"]  # the rows have no weights of their tokens
    assert [(each.arm, each.seed) for each in every] == [("untrained", 0), *((arm, 0) for arm in arms)]
    assert (folder / "next-token-lora" / "seed-1" / "result.json").read_bytes() == kept
    assert not any("next-token-lora" in what or "untrained" in what for what in asked)
    values = {(each.arm, each.seed): each.metrics["molecules"]["nll_per_token"] for each in (*first, *every)}
    assert len({round(value, 6) for value in values.values()}) > len(arms)  # arms and seeds differ
    assert not list(folder.glob("*/*/run/checkpoints"))


@pytest.mark.slow
def test_a_file_is_a_probe_and_an_interrupt_is_the_studys(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "mine.jsonl"
    probe.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    settings = small(model, arms="next-token-lora", output=str(tmp_path / "study"))
    settings = replace(settings, seeds=1, probes=str(probe))
    folder = tmp_path / "study"

    def stopped(tuning: TuneConfig, run: Run) -> None:
        raise KeyboardInterrupt("continue with: graftlm tune")

    with monkeypatch.context() as patched:
        patched.setattr("graftlm.experiments.study.tune", stopped)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            study(settings, folder, lambda what, done, total: None)
    assert not str(interrupt.value)
    found = study(settings, folder, lambda what, done, total: None)
    assert set(found[0].metrics) == {"molecules", "mine"}
    assert found[1].training_seconds is None, "this session is only a part of it"


def test_rows_without_weights_are_noticed_before_anything_is_trained(model: str, tmp_path: Path) -> None:
    settings = small(model, arms="next-token-lora,importance-weights")
    with pytest.raises(InputError, match="have no column weights or importance"):
        study(settings, tmp_path / "study", lambda what, done, total: None)
    assert not (tmp_path / "study").exists()


def test_the_interval_is_students_t() -> None:
    """scipy.stats.t.interval(0.95, 2, 2, sem) of 1, 2, 3: 2 ± 2.484."""
    found = spread([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.reach == pytest.approx(2.4841, abs=1e-3)
    assert spread([1.0]).reach is None
    for freedom in (9, 10, 12, 30, 200):
        assert quantile_975(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=2e-3)


def test_a_rung_is_held_against_the_one_below_seed_by_seed() -> None:
    steady = [measured(arm, seed, 10.0 * seed + shift + 0.01 * seed * shift)
              for arm, shift in (("cold-heads", 0.0), ("distilled-heads", 1.0)) for seed in range(3)]  # fmt: skip
    change = paired_difference(steady, "cold-heads", "distilled-heads", "t", "score")
    assert change is not None and change.seeds == 3 and change.mean == pytest.approx(1.01)
    line, explained = study_verdict(steady)
    assert "t score +1.010 ± 0.025 (better)" in line and "Of the 1 differences" in explained
    noisy = [measured("cold-heads", s, v) for s, v in enumerate([0.0, 5.0, 1.0])]
    noisy += [measured("distilled-heads", s, v) for s, v in enumerate([4.0, 0.0, 2.0])]
    assert study_verdict(noisy)[0] == "distilled-heads against cold-heads (3 paired seeds): no difference shown."


def test_seeds_that_differ_by_the_same_number_of_answers_show_nothing() -> None:
    alike = [measured(arm, seed, 0.7 + 0.05 * seed - lost) for arm, lost in (("cold-heads", 0.0), ("kl-anchor", 0.01))
             for seed in range(3)]  # fmt: skip
    [found] = comparisons(alike)
    assert found.change.mean == pytest.approx(-0.01) and not found.shown


def test_arms_are_held_against_the_rung_below_and_against_plain_lora() -> None:
    every = compared_arms(list(ARMS))
    assert every[0] == ("next-token-full", "next-token-lora")
    assert ("kl-anchor", "entropy-weights") in every and ("kl-anchor", "importance-weights") in every
    assert ("next-token-lora", "importance-weights") in every and len(set(every)) == len(every)
    assert compared_arms(["cold-heads", "importance-weights"]) == [("cold-heads", "importance-weights")]


def test_results_of_an_older_graftlm_are_read_as_the_tasks_declare_them(tmp_path: Path) -> None:
    """Their metrics said nothing of themselves."""
    values = {"nll_per_token": 2.0, "perplexity": math.exp(2)}
    old = {"arm": "untrained", "seed": 0, "metrics": {"code": values}, "floors": {"code": {}}, "counts": {"code": 3}}
    (tmp_path / "result.json").write_text(json.dumps(old))
    found = kept(tmp_path, [Code()], pytest.fail)
    assert [metric.higher_is_better for metric in found.result("code").declared] == [False, False]
    (tmp_path / "result.json").write_text(dump_json(asdict(replace(found, metrics={"code": {"perplexity": math.inf}}))))
    assert math.isnan(kept(tmp_path, [], pytest.fail).metrics["code"]["perplexity"]), "null is not finite"


def test_a_value_that_is_not_finite_ends_no_study(tmp_path: Path) -> None:
    every = [measured("untrained", 0, 1.0), *(measured("cold-heads", seed, math.nan) for seed in range(2))]
    write_study_report(tmp_path / "page.html", every, title="t", tasks=["t"], probes=["t"], facts={})
    assert ">nan<" in (tmp_path / "page.html").read_text("utf-8")


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(InputError, match="--arms names 'warm-heads'"):
        StudyConfig(arms="cold-heads,warm-heads")
