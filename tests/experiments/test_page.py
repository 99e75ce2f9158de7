"""The page of an experiment, of trainings made up so that one arm differs and the others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.page import write_experiment_report
from graftlm.experiments.results import Result
from graftlm.tasks import Capitals
from graftlm.tasks.metric import NLL
from tests.experiments.made import result
from tests.report.browsing import draw

DECLARED = {"molecules": [NLL], "capitals": Capitals.metrics}


def training(arm: str, seed: int, nll: float, ranking: float) -> Result:
    values = {"molecules": {"nll_per_token": nll}, "capitals": {"ranking_accuracy": ranking}}
    cost = {} if arm == "untrained" else {"training_seconds": 100.0 - seed, "training_loss": nll}
    return result(arm, seed, values, DECLARED, **cost)


@pytest.fixture
def results() -> Results:
    arms = {name: arm for name, arm in StudyConfig().chosen_arms.items() if name != "importance-weights"}
    every = [training("untrained", 0, 3.9, 0.8)]
    for arm in arms:
        for seed in range(3):
            lost = 0.2 + 0.002 * seed if arm == "cold-heads" else 0.0
            every.append(training(arm, seed, 1.5 + 0.01 * seed + lost, 0.7 - lost + 0.02 * ((seed * len(arm)) % 3)))
    return Results(every=every, arms=arms, tasks=["molecules"], probes=["capitals"], baseline="next-token-lora")


@pytest.fixture
def page(results: Results, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_experiment_report(path, results, title="A study", facts={"settings": {"data": "<molecules>"}})
    return path


def test_the_page_has_the_verdict_each_arm_and_each_training_as_json(page: Path, results: Results) -> None:
    text = page.read_text("utf-8")
    root = ElementTree.fromstring(text.partition("\n")[2])
    data = json.loads(next(e for e in root.iter("script")).text or "")
    assert data[1]["scores"]["molecules"]["metrics"] == results.every[1].scores["molecules"].metrics
    assert len(data) == len(results.every)
    against = "cold-heads against next-token-lora (3 paired seeds): molecules NLL per token"
    assert f"{against} +0.202 [+0.197, +0.207] (worse)" in text
    assert "distilled-heads against next-token-lora (3 paired seeds): no difference shown" in text
    assert "differences looked at" in text and ">98<" in text  # the fastest of three trainings
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1 + 2


def test_retention_is_what_is_left_above_the_floor(results: Results) -> None:
    group = results.groups["cold-heads"]
    kept = results.retention(group)
    values = [each.value("capitals", "ranking_accuracy") for each in group]
    assert kept is not None and kept.value == pytest.approx(sum((v - 0.1) / 0.7 for v in values) / 3)
    assert kept.low < kept.value < kept.high


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
def test_a_browser_draws_every_plot_without_a_request_or_an_error(
    browser: Any, page: Path, scheme: str, width: int, tmp_path: Path
) -> None:
    sizes = draw(browser, page, scheme, width, tmp_path / "page.png")
    assert len(sizes) == 3
    assert all(len(shapes) >= 6 for shapes in sizes) and min(map(min, sizes)) > 0, sizes
