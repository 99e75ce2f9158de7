"""What a metric declares decides which way is better, wherever a change of it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from graftlm.cli import main
from graftlm.errors import InputError
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.page import write_experiment_report
from graftlm.experiments.results import Result
from graftlm.experiments.table import experiment_table
from graftlm.experiments.verdict import experiment_verdict
from graftlm.models.load import load_model
from graftlm.tasks import TASKS, Metric, Task, TaskResult
from graftlm.tasks.evaluation import evaluate
from tests.conftest import tiny_model

WER = Metric("wer", "word error rate", higher_is_better=False, floor=1.0, best=0.0)
ZEST = Metric("zest", "zest", higher_is_better=True)


class Dictation(Task):
    """Both metrics are what stands in the first weight of the model, so that a test can set them."""

    name = "dictation"
    description = "for tests"
    metrics: tuple[Metric, ...] = (WER, ZEST)

    def rows(self, split: Any) -> Dataset:
        return Dataset.from_list([{"prompt": f"say {n}", "completion": f" {n}"} for n in range(4)])

    def evaluate(self, model: Any, tokenizer: Any, **_: Any) -> TaskResult:
        value = model.get_output_embeddings().weight[0, 0].item()
        rows = [{"prompt": row["prompt"], "reference": row["completion"], "output": "?"} for row in self.rows("test")]
        examples = [row | {metric.name: value for metric in self.metrics} for row in rows]
        metrics = {metric.name: value for metric in self.metrics}
        return TaskResult(
            task=self.name, metrics=metrics, declared=self.metrics, examples=examples, count=4, seconds=0.1
        )


class Recital(Dictation):
    """A probe that is measured by its errors alone."""

    name = "recital"
    metrics = (WER,)


@pytest.fixture
def save(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def to_folder(value: float, name: str) -> str:
        model = tiny_model()
        with torch.no_grad():
            model.get_output_embeddings().weight[0, 0] = value
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return to_folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (Dictation, Recital):
        monkeypatch.setitem(TASKS, task.name, task)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def rows_of(page: Path) -> dict[str, str]:
    """First words of a table's row -> its whole markup."""
    root = ElementTree.fromstring(page.read_text("utf-8").partition("\n")[2])
    rows = [row for row in root.iter("tr") if row.find("th") is not None]
    return {"".join(row.find("th").itertext()): ElementTree.tostring(row, "unicode") for row in rows}  # type: ignore


def test_an_error_rate_that_rises_is_worse_in_the_audit_its_condition_and_its_page(
    known: None, save: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.auditing.measurement.WRITTEN_TOKENS", 20)
    monkeypatch.setattr("graftlm.auditing.measurement.general_text", lambda: ["A few words.", "And a few more."])
    monkeypatch.setattr("graftlm.auditing.measurement.Measurement.diversity", lambda *_: None)
    base, models, out = save(0.2, "base"), [save(0.3, "worse"), save(0.1, "better"), save(1.1, "awful")], tmp_path / "o"
    options = ["--task", "dictation", "--probe", "recital", "--limit", "4", "--layer-groups", "1", "--output", str(out)]
    assert run("audit", base, *models, *options, "--fail-if", "dictation.wer>0.25", "--fail-if", "retention<0.9") == 1
    shown = capsys.readouterr()
    failed = [line.split("/")[-1] for line in shown.err.splitlines() if "failed:" in line]
    assert failed[:2] == [
        "worse: dictation.wer is 0.300 (dictation.wer>0.25)",
        "worse: retention is 0.875 (retention<0.9)",
    ]
    assert {line.split(":")[0] for line in failed[2:]} == {"awful"} and len(failed) == 4
    words = " ".join(shown.out.split())
    for sentence in (
        "worse became worse on dictation (4 examples): word error rate 0.200 → 0.300",
        "worse gained on dictation (4 examples): zest 0.200 → 0.300",
        "better gained on dictation (4 examples): word error rate 0.200 → 0.100",
        "Better against worse on dictation: word error rate 0.100 against 0.300 (−0.200 [−0.200, −0.200]: better)",
        "awful does not beat a trivial answer on dictation: word error rate 1.100, floor 1.000",
    ):
        assert sentence in words
    rows = rows_of(out / "report.html")
    errors, zest = rows["Word error rate↓ lower is better"], rows["Zest↑ higher is better"]
    assert signs(errors) == ["worse than base", "better than base", "worse than base"] and "1.000" in errors
    assert signs(zest) == ["better than base", "worse than base", "better than base"]
    text = (out / "report.html").read_text("utf-8")
    assert re.search("worse: retention 8[78]%, gain -0.100; better: retention 11[23]%, gain 0.100", text)
    assert "gain: word error rate, how far it fell" in text
    document = json.loads((out / "audit.json").read_text("utf-8"))
    change = document["tuned"][models[0]]["changes"]["dictation"]["wer"]
    assert change["better"] is False and change["metric"]["label"] == "word error rate"
    assert document["base_results"]["recital"]["floors"] == {"wer": 1.0}


def signs(row: str) -> list[str]:
    """The words of a row's arrows, each of which points up in green or down in red."""
    arrows = [each for each in ElementTree.fromstring(row).iter("span") if each.text in ("▲", "▼")]
    for each in arrows:
        assert (each.text, each.get("class")) == (("▲", "good") if "better" in each.get("title", "") else ("▼", "bad"))
    return [each.get("title", "") for each in arrows]


def test_an_error_rate_that_rises_is_worse_in_a_study(save: Any, tmp_path: Path) -> None:
    def result(arm: str, seed: int, value: float) -> Result:
        model, tokenizer = load_model(save(value, f"{arm}-{seed}"))
        return Result(arm=arm, seed=seed, scores=evaluate(model, tokenizer, [Dictation(), Recital()], limit=4))

    every = [result("untrained", 0, 0.2)]
    for arm, value, step in (("cold-heads", 0.3, 0.0), ("distilled-heads", 0.4, 0.001)):
        every += [result(arm, seed, value + step * seed) for seed in range(3)]
    arms = StudyConfig(arms=["cold-heads,distilled-heads"]).chosen_arms
    results = Results(every=every, arms=arms, tasks=["dictation"], probes=["recital"])
    line = experiment_verdict(results)[0]
    assert "dictation word error rate +0.101 [+0.099, +0.103] (worse)" in line
    assert "dictation zest +0.101 [+0.099, +0.103] (better)" in line
    table = experiment_table(results)
    assert [str(cell) for cell in table.columns[2].cells][:2] == ["1.000", "0.200"]
    page = tmp_path / "report.html"
    write_experiment_report(page, results, title="t", facts={})
    text = page.read_text("utf-8")
    assert "dictation, lower is better" in text and "dictation, higher is better" in text
    assert "distilled-heads: retention 75%, gain -0.201" in text
    assert signs(rows_of(page)["distilled-headsagainst cold-heads"]) == ["worse", "better", "worse"]


def test_a_metric_that_is_not_declared_is_refused_in_one_line(save: Any) -> None:
    class Silent(Dictation):
        def evaluate(self, model: Any, tokenizer: Any, **_: Any) -> TaskResult:
            return TaskResult(task=self.name, metrics={"bleu": 1.0}, declared=self.metrics, count=4, seconds=0.1)

    with pytest.raises(InputError, match=r"task dictation measures 'bleu' but does not declare it: add Metric\('bleu'"):
        evaluate(*load_model(save(0.2, "base")), [Silent()])


def test_a_task_that_declares_no_metrics_cannot_be_made() -> None:
    class Bare(Task):
        name = description = "bare"

        def rows(self, split: Any) -> Any: ...

        def evaluate(self, model: Any, tokenizer: Any, **_: Any) -> Any: ...

    with pytest.raises(TypeError, match="metrics"):
        Bare()  # type: ignore[abstract]


@pytest.mark.parametrize(("kind", "higher"), [("accuracy", False), ("nll", True), ("perplexity", True)])
def test_a_kind_goes_one_way(kind: Any, higher: bool) -> None:
    with pytest.raises(InputError, match=f"metric 'x' is of the kind '{kind}'"):
        Metric("x", "x", higher_is_better=higher, kind=kind)
