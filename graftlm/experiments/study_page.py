"""The page of a study: verdict on top, then gain against retention, every measure by arm, rung by rung, and each
training."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.plots import Point, scatter_plot
from graftlm.auditing.retention import retention
from graftlm.experiments.study_config import ARMS
from graftlm.experiments.study_rows import (
    UNTRAINED,
    Comparison,
    Measured,
    Spread,
    arm_spread,
    comparisons,
    metric_columns,
    spread,
    study_verdict,
    trained_arms,
    training_seconds,
)
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import data_section, facts_section, page, section, verdict_section
from graftlm.report.plots import Dot, dot_plot
from graftlm.report.tables import arrow, capital, cell, number_cell, row, table
from graftlm.runs.console import signed
from graftlm.runs.files import write_text


def write_study_report(
    path: Path,
    measured: Sequence[Measured],
    *,
    title: str,
    tasks: Sequence[str],
    probes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file).

    `measured` begins with the untrained model; `tasks` show the gain, `probes` what is left of what was known. What was
    measured lies in the page as JSON (element `study`).
    """
    sections = [
        verdict_section(study_verdict(measured)),
        _gain_and_retention(measured, tasks, probes),
        _panels(measured),
        _ladder(measured),
        _arms(measured),
        facts_section(facts),
        data_section("study", [asdict(each) for each in measured]),
    ]
    write_text(path, page(title, sections))


def _gain_and_retention(measured: Sequence[Measured], tasks: Sequence[str], probes: Sequence[str]) -> Markup | None:
    if not tasks or not probes:
        return None
    task = tasks[0]
    metric = measured[0].result(task).gain_metric
    base = measured[0].metrics[task][metric.name]
    points = []
    for arm in trained_arms(measured):
        gain = spread([metric.sign * (e.metrics[task][metric.name] - base) for e in measured if e.arm == arm])
        kept = arm_retention(measured, arm, probes)
        if kept is None or not math.isfinite(kept + gain.mean):
            continue
        low, high = (None, None) if gain.reach is None else (gain.mean - gain.reach, gain.mean + gain.reach)
        points.append(Point(label=arm, x=kept, y=gain.mean, low=low, high=high, model=family(arm)))
    if not points:
        return None
    shown = "; ".join(f"{p.label}: retention {p.x:.0%}, gain {p.y:.3f}" for p in points)
    plot = scatter_plot(
        "Gain against retention",
        shown,
        points,
        x_label="retention (mean over the probes)",
        y_label=f"gain: {metric.gain_words}",
        near=True,
    )
    return section(
        "Gain against retention",
        element("figure", plot),
        note=f"Up: gain on {task}, mean over the seeds with its 95 % interval. Right: more of what the base model knew "
        "is left; the untrained model is at 100 % and 0.",
    )


def arm_retention(measured: Sequence[Measured], arm: str, probes: Sequence[str]) -> float | None:
    """Mean over the probes and the arm's seeds; None where the untrained model knows nothing of any."""
    base = measured[0]
    kept = [retention(base.result(p), each.result(p)) for each in measured if each.arm == arm for p in probes]
    known = [share for share in kept if share is not None]
    return statistics.fmean(known) if known else None


def family(arm: str) -> int:
    """Which of the --model colours: next-token, cold heads, or distilled heads."""
    settings = ARMS[arm]
    return 1 if settings["objective"] == "next-token" else 2 if settings.get("heads") == "cold" else 3


def _panels(measured: Sequence[Measured]) -> Markup:
    panels = []
    for task, metric in metric_columns(measured):
        dots = []
        for arm in trained_arms(measured):
            found = arm_spread(measured, arm, task, metric.name)
            if math.isfinite(found.mean):
                dots.append(Dot(label=arm, value=found.mean, reach=found.reach, model=family(arm)))
        if not dots:
            continue
        marks = {"untrained": measured[0].metrics[task][metric.name]}
        if metric.floor is not None:
            marks["floor"] = metric.floor
        shown = ", ".join(f"{dot.label} {dot.value:.3f}" for dot in dots)
        plot = dot_plot(f"{capital(metric.label)}, {task}", shown, dots, lines=marks)
        besides = "; ".join(f"{name} {value:.3f}" for name, value in marks.items())
        heading = element(
            "figcaption",
            element("b", capital(metric.label)),
            element("small", f" {task}, {metric.direction}"),
            element("small", element("br"), besides),
        )
        panels.append(element("figure", heading, plot))
    return section(
        "Every measure, arm by arm",
        element("div", panels, class_="panels small"),
        note="Mean over the seeds; the whisker is the 95 % interval of Student's t. The axis spans the arms and "
        "does not begin at 0.",
    )


def _ladder(measured: Sequence[Measured]) -> Markup | None:
    every = comparisons(measured)
    columns = metric_columns(measured)
    headings = ["arms", *(f"{task}, {metric.label}" for task, metric in columns)]
    rows = []
    for (before, after), group in itertools.groupby(every, key=lambda each: (each.before, each.after)):
        found = {(each.task, each.metric): each for each in group}
        cells = [_difference(heading, found.get(column)) for heading, column in zip(headings[1:], columns, strict=True)]
        rows.append(row(join(after, element("small", f"against {before}")), cells))
    if not rows:
        return None
    legend = join(
        arrow(True, "better"), " better and ", arrow(False, "worse"),
        " worse: the 95 % interval of the difference, paired by seed, leaves out zero.",
    )  # fmt: skip
    return section(
        "Rung by rung",
        element(
            "div", table("Mean difference over the seeds", headings, rows, class_="numbers", cells=2), class_="scroll"
        ),
        element("p", legend, class_="note"),
    )


def _difference(heading: str, found: Comparison | None) -> Markup:
    if found is None:
        return cell(heading, "–")
    sign = join(" ", arrow(found.better, "better" if found.better else "worse")) if found.shown else None
    reach = None if found.change.reach is None else element("small", f"± {found.change.reach:.3f}")
    return cell(heading, signed(found.change.mean), sign, reach)


def _arms(measured: Sequence[Measured]) -> Markup:
    columns = metric_columns(measured)
    headings = ["arm", "seeds", *(f"{task}, {metric.label}" for task, metric in columns), "seconds, fastest"]
    blank = cell("seeds", "–")
    floors = [number_cell(heading, metric.floor) for heading, (_, metric) in zip(headings[2:-1], columns, strict=True)]
    rows = [row("floor", [blank, *floors, cell(headings[-1], "–")])]
    for arm in (UNTRAINED, *trained_arms(measured)):
        spreads = [arm_spread(measured, arm, task, metric.name) for task, metric in columns]
        seconds = training_seconds(measured, arm)
        values = [_spread_cell(heading, s) for heading, s in zip(headings[2:-1], spreads, strict=True)]
        seeds = "–" if arm == UNTRAINED else str(spreads[0].seeds)
        cost = cell(headings[-1], "–" if seconds is None else f"{seconds:.0f}")
        rows.append(row(arm, [cell("seeds", seeds), *values, cost]))
    numbers = table("Mean over the seeds", headings, rows, class_="numbers", cells=2)
    return section("The numbers", element("div", numbers, class_="scroll"), _trainings(measured))


def _spread_cell(heading: str, found: Spread) -> Markup:
    return cell(heading, f"{found.mean:.3f}", None if found.reach is None else element("small", f"± {found.reach:.3f}"))


def _trainings(measured: Sequence[Measured]) -> Markup:
    columns = metric_columns(measured)
    headings = ["training", *(f"{task}, {metric.label}" for task, metric in columns), "training loss"]
    rows = []
    for each in measured:
        if each.arm == UNTRAINED:
            continue
        cells = [
            cell(heading, f"{each.metrics[task][metric.name]:.3f}")
            for heading, (task, metric) in zip(headings[1:-1], columns, strict=True)
        ]
        loss = cell(headings[-1], "–" if each.training_loss is None else f"{each.training_loss:.3f}")
        rows.append(row(f"{each.arm}, seed {each.seed}", [*cells, loss]))
    numbers = table("One row a training", headings, rows, class_="numbers", cells=2)
    return element("details", element("summary", "Each training"), element("div", numbers, class_="scroll"))
