"""The study's page, of trainings made up so that one rung differs and the others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from graftlm.experiments.study_config import ARMS
from graftlm.experiments.study_page import arm_retention, write_study_report
from graftlm.experiments.study_rows import Measured
from graftlm.tasks import Capitals
from graftlm.tasks.metric import NLL
from tests.report.browsing import draw

DECLARED = {"molecules": [NLL], "capitals": Capitals.metrics}


def training(arm: str, seed: int, nll: float, ranking: float) -> Measured:
    return Measured(
        arm=arm,
        seed=seed,
        metrics={"molecules": {"nll_per_token": nll}, "capitals": {"ranking_accuracy": ranking}},
        declared=DECLARED,
        floors={"molecules": {}, "capitals": {}},
        counts={"molecules": 100, "capitals": 100},
        training_seconds=None if arm == "untrained" else 100.0 - seed,
        training_loss=None if arm == "untrained" else nll,
    )


@pytest.fixture
def measured() -> list[Measured]:
    arms = [arm for arm in ARMS if arm != "importance-weights"]
    found = [training("untrained", 0, 3.9, 0.8)]
    for arm in arms:
        for seed in range(3):
            lost = 0.2 + 0.002 * seed if arm == "cold-heads" else 0.0
            found.append(training(arm, seed, 1.5 + 0.01 * seed + lost, 0.7 - lost + 0.02 * ((seed * len(arm)) % 3)))
    return found


@pytest.fixture
def page(measured: list[Measured], tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    facts = {"settings": {"data": "<molecules>"}}
    write_study_report(path, measured, title="A study", tasks=["molecules"], probes=["capitals"], facts=facts)
    return path


def test_the_page_has_the_verdict_each_arm_and_each_training_as_json(page: Path, measured: list[Measured]) -> None:
    text = page.read_text("utf-8")
    root = ElementTree.fromstring(text.partition("\n")[2])
    data = json.loads(next(e for e in root.iter("script")).text or "")
    assert data[1]["metrics"] == measured[1].metrics and len(data) == len(measured)
    assert "cold-heads against next-token-lora (3 paired seeds): molecules NLL per token +0.202 ± 0.005 (worse)" in text
    assert "distilled-heads against next-token-lora (3 paired seeds): no difference shown" in text
    assert "differences looked at" in text and ">98<" in text  # the fastest of three trainings
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1 + 2


def test_retention_is_what_is_left_above_the_floor(measured: list[Measured]) -> None:
    kept = arm_retention(measured, "cold-heads", ["capitals"])
    values = [e.metrics["capitals"]["ranking_accuracy"] for e in measured if e.arm == "cold-heads"]
    assert kept == pytest.approx(sum((v - 0.1) / 0.7 for v in values) / 3)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
def test_a_browser_draws_every_plot_without_a_request_or_an_error(
    browser: Any, page: Path, scheme: str, width: int, tmp_path: Path
) -> None:
    sizes = draw(browser, page, scheme, width, tmp_path / "page.png")
    assert len(sizes) == 3
    assert all(len(shapes) >= 6 for shapes in sizes) and min(map(min, sizes)) > 0, sizes
