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

from graftlm.auditing.parts import gain_section
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
from graftlm.report.page import (
    captioned,
    data_section,
    facts_section,
    folded,
    panels,
    section,
    verdict_section,
    write_page,
)
from graftlm.report.plots import Dot, dot_plot
from graftlm.report.scatter import Point
from graftlm.report.tables import Row, arrow, capital, number_table
from graftlm.runs.console import signed


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
    write_page(path, title, sections)


def _gain_and_retention(measured: Sequence[Measured], tasks: Sequence[str], probes: Sequence[str]) -> Markup | None:
    if not tasks or not probes:
        return None
    task = tasks[0]
    metric = measured[0].result(task).gain_metric
    base = measured[0].metrics[task][metric.name]
    points = []
    for arm in trained_arms(measured):
        gain = spread([metric.sign * (e.metrics[task][metric.name] - base) for e in measured if e.arm == arm])
        retained = arm_retention(measured, arm, probes)
        if retained is None:
            continue
        low, high = (None, None) if gain.reach is None else (gain.mean - gain.reach, gain.mean + gain.reach)
        points.append(Point(label=arm, x=retained, y=gain.mean, low=low, high=high, model=family(arm)))
    note = f"Up: gain on {task}, mean over the seeds with its 95 % interval. Right: more of what the base model knew "
    note += "is left; the untrained model is at 100 % and 0."
    return gain_section(points, metric, note=note, near=True)


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
    figures = []
    for task, metric in metric_columns(measured):
        dots = []
        for arm in trained_arms(measured):
            found = arm_spread(measured, arm, task, metric.name)
            if math.isfinite(found.mean):
                dots.append(Dot(label=arm, value=found.mean, half_width=found.reach, model=family(arm)))
        if not dots:
            continue
        marks = {"untrained": measured[0].metrics[task][metric.name]}
        if metric.floor is not None:
            marks["floor"] = metric.floor
        shown = ", ".join(f"{dot.label} {dot.value:.3f}" for dot in dots)
        plot = dot_plot(f"{capital(metric.label)}, {task}", shown, dots, lines=marks)
        besides = "; ".join(f"{name} {value:.3f}" for name, value in marks.items())
        heading = join(
            element("b", capital(metric.label)),
            element("small", f" {task}, {metric.direction}"),
            element("small", element("br"), besides),
        )
        figures.append(captioned(heading, plot))
    return section(
        "Every measure, arm by arm",
        panels(figures, small=True),
        note="Mean over the seeds; the whisker is the 95 % interval of Student's t. The axis spans the arms and "
        "does not begin at 0.",
    )


def _ladder(measured: Sequence[Measured]) -> Markup | None:
    every = comparisons(measured)
    columns = metric_columns(measured)
    rows: list[Row] = []
    for (before, after), group in itertools.groupby(every, key=lambda each: (each.before, each.after)):
        found = {(each.task, each.metric): each for each in group}
        name = join(after, element("small", f"against {before}"))
        rows.append((name, [_difference(found.get(column)) for column in columns]))
    if not rows:
        return None
    legend = join(
        arrow(True, "better"), " better and ", arrow(False, "worse"),
        " worse: the 95 % interval of the difference, paired by seed, leaves out zero.",
    )  # fmt: skip
    headings = ["arms", *(f"{task}, {metric.label}" for task, metric in columns)]
    return section(
        "Rung by rung",
        number_table("Mean difference over the seeds", headings, rows),
        element("p", legend, class_="note"),
    )


def _difference(found: Comparison | None) -> Markup | None:
    if found is None:
        return None
    sign = join(" ", arrow(found.better, "better" if found.better else "worse")) if found.shown else None
    return join(signed(found.change.mean), sign, _half_width(found.change))


def _half_width(found: Spread) -> Markup | None:
    return None if found.reach is None else element("small", f"± {found.reach:.3f}")


def _arms(measured: Sequence[Measured]) -> Markup:
    columns = metric_columns(measured)
    rows: list[Row] = [("floor", [None, *(metric.floor for _, metric in columns), None])]
    for arm in (UNTRAINED, *trained_arms(measured)):
        spreads = [arm_spread(measured, arm, task, metric.name) for task, metric in columns]
        seconds = training_seconds(measured, arm)
        seeds = None if arm == UNTRAINED else str(spreads[0].seeds)
        means = [join(f"{found.mean:.3f}", _half_width(found)) for found in spreads]
        rows.append((arm, [seeds, *means, None if seconds is None else f"{seconds:.0f}"]))
    headings = ["arm", "seeds", *(f"{task}, {metric.label}" for task, metric in columns), "seconds, fastest"]
    return section("The numbers", number_table("Mean over the seeds", headings, rows), _trainings(measured))


def _trainings(measured: Sequence[Measured]) -> Markup:
    columns = metric_columns(measured)
    headings = ["training", *(f"{task}, {metric.label}" for task, metric in columns), "training loss"]
    rows: list[Row] = [
        (f"{each.arm}, seed {each.seed}", [*(each.metrics[t][m.name] for t, m in columns), each.training_loss])
        for each in measured
        if each.arm != UNTRAINED
    ]
    return folded("Each training", number_table("One row a training", headings, rows))
