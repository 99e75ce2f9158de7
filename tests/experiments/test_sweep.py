"""`graftlm proxy sweep`, and what it says of the steered model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from transformers import PreTrainedTokenizerFast

from graftlm import ProxyTunedModel
from graftlm.decoding.batches import completion_log_likelihoods
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import SweepConfig
from graftlm.experiments.sweep import sweep
from graftlm.experiments.verdict import experiment_verdict
from graftlm.models.load import load_model
from graftlm.runs.run import Run
from graftlm.tasks import get_task
from graftlm.tasks.evaluation import evaluate
from tests.conftest import tiny_model
from tests.proxy.models import sharp
from tests.proxy.test_commands import run
from tests.proxy.test_model import folders
from tests.report.browsing import draw

__all__ = ["folders"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def tuned(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A model of the base model's size."""
    sharp(tiny_model(seed=5, layers=3)).save_pretrained(tmp_path / "direct")
    tokenizer.save_pretrained(tmp_path / "direct")
    return str(tmp_path / "direct")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A task, and a probe that asks facts."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a{i}", "completion": f" b{i}"}) + "\n" for i in range(6))
    )
    (tmp_path / "facts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"c{i}", "completion": f" {i}", "choices": [f" {i + 1}"]}) + "\n" for i in range(6)
        )
    )
    return {"task": str(tmp_path / "rows.jsonl"), "probe": str(tmp_path / "facts.jsonl")}


def swept(tmp_path: Path, **settings: Any) -> Results:
    config = SweepConfig(output=str(tmp_path / "sweep"), **settings)
    with Run.create(config.output, "proxy sweep", config, {}) as run:
        return sweep(config, run, progress=lambda what, done, total: None)


@pytest.mark.slow
def test_each_alpha_is_measured_as_the_steered_model_itself(
    folders: dict[str, str], files: dict[str, str], tuned: str, tmp_path: Path
) -> None:
    results = swept(
        tmp_path, base=folders["base"], expert=folders["adapter"], antiexpert=folders["antiexpert"], tuned=[tuned],
        alphas=[1.0, 0.0, 0.5], tasks=[files["task"]], probes=[files["probe"], "general-text"], limit=4,
    )  # fmt: skip
    assert list(results.groups) == ["steered, alpha 0.5", "steered, alpha 1", "expert alone", "direct"]

    def metrics(label: str) -> Any:
        return results.groups[label][0].scores["rows"].metrics

    rows = [get_task(files["task"])]
    for alpha in (0.5, 1.0):
        model = ProxyTunedModel(folders["base"], folders["adapter"], folders["antiexpert"], alpha)
        expected = evaluate(model, model.tokenizer, rows, limit=4)["rows"].metrics
        assert metrics(f"steered, alpha {alpha:g}") == pytest.approx(expected)
    base = evaluate(folders["base"], None, rows, limit=4)["rows"].metrics
    assert results.untrained.scores["rows"].metrics == pytest.approx(base), "alpha is 0"
    kept = results.retention([results.untrained])
    assert kept is not None and kept.value == pytest.approx(1)
    assert metrics("expert alone") == pytest.approx(evaluate(folders["adapter"], None, rows, limit=4)["rows"].metrics)
    assert metrics("direct") == pytest.approx(evaluate(tuned, None, rows, limit=4)["rows"].metrics)
    assert [(each.before, each.seeds) for each in results.comparisons] == [("untrained", 1)] * 4


@pytest.mark.slow
def test_an_expert_that_was_tuned_directly_closes_the_whole_gap(
    folders: dict[str, str], tmp_path: Path, files: dict[str, str]
) -> None:
    """base + (tuned - base) is the tuned model."""
    pairs = [(f"a{i}", f" {i * i}") for i in range(60)]
    (expert, tokenizer), (base, _) = load_model(folders["expert"]), load_model(folders["antiexpert"])
    scored = [completion_log_likelihoods(model, tokenizer, pairs) for model in (expert, base)]
    won = [pair for pair, ours, theirs in zip(pairs, *scored, strict=True) if ours > theirs]
    rows = tmp_path / "won.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in won))
    results = swept(
        tmp_path, base=folders["antiexpert"], expert=folders["expert"], antiexpert=folders["antiexpert"],
        tuned=[folders["expert"]], alphas=[1.0], tasks=[str(rows)], probes=[files["probe"]], limit=100,
    )  # fmt: skip
    [closed] = results.gaps_closed(results.groups["steered, alpha 1"]).values()
    assert closed is not None
    assert closed.value == pytest.approx(1, abs=1e-4) and closed.low == pytest.approx(closed.high, abs=1e-3)
    assert any("100% [100%, 100%] of the gap to expert closed" in line for line in experiment_verdict(results))


@pytest.fixture
def given(folders: dict[str, str], files: dict[str, str], tuned: str, tmp_path: Path) -> list[str]:
    """The command."""
    options = {
        "expert": folders["adapter"], "antiexpert": folders["antiexpert"], "task": files["task"],
        "probe": files["probe"], "limit": "4", "alphas": "0.5,1,2", "output": str(tmp_path / "out"),
    }  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    return ["proxy", "sweep", folders["base"], tuned, *flags, "--probe", "general-text"]


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json_and_a_page(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*given) == 0
    shown = capsys.readouterr()
    assert "steered, alpha 0.5" in shown.out and "expert alone" in shown.out and "alpha 2: rows" in shown.err
    document = json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))
    alphas = [each["strength"]["alpha"] for each in document if each["arm"] == "steered"]
    assert alphas == [0.5, 1.0, 2.0]
    value = document[1]["scores"]["rows"]["metrics"]["nll_per_token"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f"{value:.3f}" in shown.out and f"{value:.3f}" in page and page.count('class="frontier"') == 1
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert run(*given) == 2 and "holds a run" in capsys.readouterr().err


def test_a_browser_draws_the_frontier(given: list[str], tmp_path: Path, browser: Any) -> None:
    assert run(*given) == 0
    for scheme in ("light", "dark"):
        shapes = draw(browser, tmp_path / "out" / "report.html", scheme, 360, tmp_path / f"{scheme}.png")
        assert len(shapes) > 1 and len(shapes[0]) > 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--alphas", "0,half"], "--alphas is 'half'"),
        (["--alphas", "0,inf"], "--alphas is inf"),
        (["--alphas", "1,1.0"], "alpha 1.0 is given twice"),
        (["--alphas", "0"], "no alpha besides 0"),
        (["--expert", "absent"], "absent"),
        (["absent"], "absent"),
        (["--task", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    extra: list[str],
    message: str,
    folders: dict[str, str],
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["proxy", "sweep", folders["base"], "--expert", folders["adapter"], "--antiexpert", folders["antiexpert"]]
    given += ["--probe", files["probe"], "--output", str(tmp_path / "out")]
    given += [] if "--task" in extra else ["--task", files["task"]]
    assert run(*given, *extra) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()
