"""`graftlm study` on a tiny model: the ladder, arms of one's own, strengths, and going on after a stop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.run import run_experiment
from graftlm.experiments.study import experiment_of
from graftlm.runs.config import load_config
from graftlm.runs.run import Run
from graftlm.tasks import Molecules
from graftlm.tuning.config import TuneConfig
from tests.conftest import tiny_model

# What PEFT asks of transformers, and TRL of torch on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path / "model"
    tiny_model(layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def small(model: str, **settings: Any) -> StudyConfig:
    return StudyConfig(
        model=model, max_steps=2, limit=2, num_heads=2, domain_tokens=300, general_tokens=100, distillation_epochs=1,
        **{"seeds": 2, "probes": [], **settings},
    )  # fmt: skip


def made(config: StudyConfig, folder: Path, asked: list[str] | None = None) -> Results:
    return run_experiment(experiment_of(config, folder), folder, lambda what, done, total: (asked or []).append(what))


@pytest.mark.slow
def test_every_arm_is_trained_with_every_seed_and_a_stopped_study_goes_on(model: str, tmp_path: Path) -> None:
    asked = [""]
    folder = tmp_path / "study"
    Molecules().rows("train").select(range(40)).to_json(tmp_path / "rows.jsonl")
    settings = replace(small(model), data=str(tmp_path / "rows.jsonl"))
    first = made(replace(settings, arms=["next-token-lora"]), folder, asked).every
    assert [(e.arm, e.seed) for e in first] == [("untrained", 0), ("next-token-lora", 0), ("next-token-lora", 1)]
    assert all(math.isfinite(each.value("molecules", "nll_per_token")) for each in first)
    kept = (folder / "next-token-lora" / "seed-1" / "result.json").read_bytes()
    asked[:] = [""]
    every = made(replace(settings, seeds=1), folder, asked).every
    arms = [arm for arm in settings.chosen_arms if arm != "importance-weights"]  # the rows have no weights
    assert [(each.arm, each.seed) for each in every] == [("untrained", 0), *((arm, 0) for arm in arms)]
    assert (folder / "next-token-lora" / "seed-1" / "result.json").read_bytes() == kept
    assert len(asked) > 1 and not any("next-token-lora" in what or "untrained" in what for what in asked)
    values = {(each.arm, each.seed): each.value("molecules", "nll_per_token") for each in (*first, *every)}
    assert len({round(value, 6) for value in values.values()}) > len(arms)  # arms and seeds differ
    assert not list(folder.glob("*/*/run/checkpoints"))
    assert not (folder / "next-token-full" / "seed-0" / "run" / "model").exists(), "half a gigabyte"


@pytest.mark.slow
def test_a_file_is_a_probe_and_an_interrupt_is_the_studys(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "mine.jsonl"
    probe.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    settings = small(model, arms=["next-token-lora"], seeds=1, probes=[str(probe)])

    def stopped(tuning: TuneConfig, run: Run) -> None:
        raise KeyboardInterrupt("continue with: graftlm tune")

    with monkeypatch.context() as patched:
        patched.setitem(run_experiment.__globals__["TRAINERS"], "tune", stopped)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            made(settings, tmp_path / "study")
    assert not str(interrupt.value)
    every = made(settings, tmp_path / "study").every
    assert set(every[0].scores) == {"molecules", "mine"}
    assert every[1].training_seconds is None, "this session is only a part of it"


@pytest.mark.slow
def test_three_lines_add_an_arm_and_a_strength_is_a_curve(model: str, tmp_path: Path) -> None:
    Molecules().rows("train").select(range(40)).to_json(tmp_path / "rows.jsonl")
    (tmp_path / "mine.yaml").write_text(f"""
model: {model}
data: {tmp_path / "rows.jsonl"}
measure: {{gain: [molecules], retention: [capitals]}}
seeds: 1
max_steps: 4
limit: 2
arms:
  anchored: {{from: next-token-lora, tune: {{anchor: kl, anchor_weight: 1.0}}}}
  restored: {{from: next-token-lora, after: {{restore: {{layers: 0-1}}}}, strengths: {{scale: [0, 1]}}}}
""")
    config, sources = load_config(StudyConfig, tmp_path / "mine.yaml", {})
    assert sources["tasks"] == "config file" and config.probes == ["capitals"]
    folder = tmp_path / "study"
    results = made(config, folder)
    labels = ["next-token-lora", "anchored", "restored, scale 0", "restored, scale 1"]
    assert list(results.groups) == labels
    values = [results.groups[name][0].value("molecules", "nll_per_token") for name in labels]
    assert len({round(value, 9) for value in values[:3]}) == 3
    assert values[3] == pytest.approx(values[0], abs=1e-6), "scale 1 undoes nothing"
    assert len(list(folder.rglob("run.yaml"))) == 2, "what comes after shares its arm's training"
    assert [(each.before, each.after) for each in results.comparisons] == [
        ("next-token-lora", "anchored"), ("next-token-lora", "restored, scale 0"),
        ("next-token-lora", "restored, scale 1"),
    ]  # fmt: skip
    assert json.loads((folder / "restored" / "scale-0" / "seed-0" / "result.json").read_text())["strength"] == {
        "scale": 0.0
    }


def test_rows_without_weights_are_noticed_before_anything_is_trained(model: str, tmp_path: Path) -> None:
    settings = small(model, arms=["next-token-lora,importance-weights"])
    with pytest.raises(InputError, match="have no column weights or importance"):
        made(settings, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("measure", "names", "problem"), [("tasks", "nothing", "unknown task 'nothing'"), ("probes", " ", "names of tasks")]
)
def test_what_is_measured_is_known_before_any_work(measure: str, names: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"--{measure}.*{problem}"):
        StudyConfig(**{measure: [names]})
