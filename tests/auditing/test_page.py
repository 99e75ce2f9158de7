"""The audit's page: well-formed, honest, and drawn by a real browser without a request or an error."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from graftlm.auditing.intervals import bootstrap_change
from graftlm.auditing.page import write_audit_report
from graftlm.auditing.result import AuditResult, Diversity, LayerDrift, Restored, TunedAudit, TunedPair, WeightChange
from graftlm.auditing.retention import facts_changed, retention
from graftlm.auditing.summary import audit_table
from graftlm.auditing.verdict import audit_verdict
from graftlm.tasks import TaskResult
from graftlm.tasks.facts import GREEDY
from graftlm.tasks.metric import NLL
from tests.report.browsing import draw

LAYERS = 30
MODULES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


def task(nll: list[float]) -> TaskResult:
    examples = [{"prompt": f"p{i}", "reference": "r", "output": "o", "nll": n, "tokens": 4} for i, n in enumerate(nll)]
    value = sum(nll) / (4 * len(nll))
    return TaskResult(
        task="molecules", metrics={NLL.name: value}, declared=[NLL], examples=examples, count=len(nll), seconds=1
    )


def probe(right: list[int]) -> TaskResult:
    examples = [
        {"prompt": f"The <script> of {i} is", "reference": f"</script>&{i}", "output": "x\x00", "greedy_accuracy": r}
        for i, r in enumerate(right)
    ]
    share = sum(right) / len(right)
    return TaskResult(
        task="capitals", metrics={GREEDY.name: share}, declared=[GREEDY], floors={GREEDY.name: 0.01}, examples=examples,
        count=len(right), seconds=1,
    )  # fmt: skip


def tuned(base: dict[str, TaskResult], results: dict[str, TaskResult], **parts: Any) -> TunedAudit:
    changes = {n: {m: bootstrap_change(base[n], results[n], m) for m in base[n].metrics} for n in base}
    kept = retention(base["capitals"], results["capitals"])
    assert kept is not None
    return TunedAudit(
        results=results,
        changes=changes,  # type: ignore[arg-type]
        facts={"capitals": facts_changed(base["capitals"], results["capitals"])},
        retention={"capitals": kept},
        **parts,
    )


@pytest.fixture
def result() -> AuditResult:
    """One model that gained and forgot, one that did neither and of which only the results are known."""
    base = {"molecules": task([16.0 + i % 3 for i in range(40)]), "capitals": probe([1] * 30 + [0] * 10)}
    moved = {"molecules": task([8.0 + i % 5 for i in range(40)]), "capitals": probe([0] * 15 + [1] * 16 + [0] * 9)}
    groups = [(f"layer {layer}", module) for layer in range(LAYERS) for module in MODULES]
    diversity = Diversity(distinct=0.9, start_entropy=2.0, formats={"list": 0.25, "other": 0.75}, outputs=64)
    full = tuned(
        base,
        moved,
        divergence=0.2,
        divergence_error=0.02,
        weights=[WeightChange(group=g, module=m, relative=0.001 * (i % 37)) for i, (g, m) in enumerate(groups)],
        drift=[LayerDrift(layer=i, cka=1 - 0.003 * i, cosine=1 - 0.002 * i) for i in range(LAYERS)],
        restoration=[
            Restored(layers=(5 * i, 5 * i + 4), task={"molecules": 2.0}, probes={"capitals": 1.0},
                     task_share=1.02 - 0.02 * i, probe_share=0.4 + 0.13 * i)
            for i in range(6)
        ],
        diversity=diversity,
    )  # fmt: skip
    same = tuned(base, base)
    between = {n: {m: bootstrap_change(moved[n], base[n], m) for m in base[n].metrics} for n in base}
    return AuditResult(
        base="smollm2-135m",
        tasks=["molecules"],
        probes=["capitals"],
        base_results=base,
        base_diversity=diversity,
        tuned={"runs/multi-token/model": full, "same": same},
        between=[TunedPair(first="runs/multi-token/model", second="same", changes=between)],  # type: ignore[arg-type]
        seconds={"loading": 1.0, "restoration": 40.0},
        settings={"limit": 40, "seed": 0},
    )


@pytest.fixture
def page(result: AuditResult, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_audit_report(path, result, title="Audit <of> one")
    return path


def test_the_page_is_well_formed_and_holds_the_audit_as_json(page: Path, result: AuditResult) -> None:
    text = page.read_text("utf-8")
    root = ElementTree.fromstring(text.partition("\n")[2])
    data = json.loads(next(e for e in root.iter("script")).text or "")
    assert data["tuned"]["runs/multi-token/model"]["divergence"] == 0.2
    assert data["base_results"]["capitals"]["examples"][3]["prompt"] == "The <script> of 3 is"
    assert text.count("<script") == text.count("</script>") == 1
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 4
    assert not re.search(r"(?:src|href)=\"(?!data:)", text) and "url(" not in text


def test_the_verdict_claims_nothing_where_the_interval_holds_zero(result: AuditResult) -> None:
    lines = audit_verdict(result)
    of_same = " ".join(line for line in lines if "same" in line and "multi-token" not in line)
    assert "same on molecules (40 examples): no difference shown." in of_same
    assert "No difference shown for same on: capitals, retention 100%." in of_same
    assert "gained" not in of_same and "restoring" not in of_same
    moved = " ".join(line for line in lines if "multi-token" in line)
    assert "gained on molecules (40 examples): NLL per token 4.244 → 2.500" in moved
    assert "restoring layers 0–4 brings back most" in moved and "60% of it, and leaves 102% of the task's gain" in moved


def test_tuned_models_are_held_against_each_other(result: AuditResult) -> None:
    [line] = [line for line in audit_verdict(result) if line.startswith("Same against multi-token")]
    assert "molecules: NLL per token 4.244 against 2.500" in line and ": worse)" in line
    assert "capitals: greedy accuracy 0.750 against 0.400" in line and ": better)" in line


def test_a_trivial_answer_that_does_as_well_is_said(result: AuditResult) -> None:
    for audited in result.tuned.values():
        audited.results["molecules"] = dataclasses.replace(audited.results["molecules"], floors={NLL.name: 3.0})
    lines = [line for line in audit_verdict(result) if "trivial" in line]
    assert lines == ["same does not beat a trivial answer on molecules: NLL per token 4.244, floor 3.000."]


def test_a_steered_model_has_no_layers_to_restore_in_the_table(result: AuditResult) -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(audit_table(result))
    [line] = [line for line in text.getvalue().splitlines() if "layers 0–4 restored" in line]
    assert line.split()[-4:] == ["40%", "/", "102%", "-"]


def test_models_whose_folders_are_called_alike_keep_their_whole_names(result: AuditResult) -> None:
    tuned = result.tuned["same"]
    names = dataclasses.replace(
        result, tuned={"a/run/model": tuned, "b/run/model": tuned, "c/other": tuned}
    ).short_names
    assert names == {"a/run/model": "a/run/model", "b/run/model": "b/run/model", "c/other": "other"}
    steered = dataclasses.replace(result, tuned={"org/big + runs/expert/model": tuned}).short_names
    assert steered == {"org/big + runs/expert/model": "big + expert"}


def test_parts_that_were_not_measured_are_left_out(result: AuditResult, tmp_path: Path) -> None:
    bare = dataclasses.replace(result, tuned={"same": result.tuned["same"]}, between=[], base_diversity=None)
    write_audit_report(tmp_path / "bare.html", bare, title="Bare")
    text = (tmp_path / "bare.html").read_text("utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Verdict", "Gain against retention", "Every measure", "Facts lost and won: capitals",
        "10 molecules, as each model writes them", "How this was made",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_draws_every_plot_without_a_request_or_an_error(
    browser: Any, page: Path, scheme: str, width: int, tmp_path: Path
) -> None:
    sizes = draw(browser, page, scheme, width, tmp_path / "page.png")
    assert len(sizes) == 4
    assert all(len(shapes) >= 6 for shapes in sizes) and min(map(min, sizes)) > 0, sizes
