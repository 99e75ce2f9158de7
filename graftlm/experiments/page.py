"""The page of an experiment: verdict, gain against retention, every measure by arm, arm against arm, the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.page import gain_section
from graftlm.auditing.result import Change
from graftlm.experiments.arms import UNTRAINED
from graftlm.experiments.comparison import Results, change_of
from graftlm.experiments.results import Result, spread
from graftlm.experiments.table import headings, number_rows
from graftlm.experiments.verdict import experiment_verdict
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
from graftlm.tasks import Metric


def write_experiment_report(path: Path, results: Results, *, title: str, facts: Mapping[str, Any]) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file). The results lie in it as JSON (element
    `results`), without the examples."""
    sections = [
        verdict_section(experiment_verdict(results)),
        _gain_and_retention(results),
        _panels(results),
        _comparisons(results),
        _numbers(results),
        facts_section(facts),
        data_section("results", [without_examples(each) for each in results.every]),
    ]
    write_page(path, title, sections)


def without_examples(result: Result) -> dict[str, Any]:
    """The result as JSON, without what is large."""
    return {**asdict(result), "scores": {task: {**asdict(s), "examples": []} for task, s in result.scores.items()}}


def family(results: Results, group: Sequence[Result]) -> int:
    """Colour and shape of an arm, which it shares with those that it is from."""
    roots = list(dict.fromkeys(arm.root for arm in results.arms.values()))
    return min(roots.index(results.arms[group[0].arm].root) + 1, 5)


def _gain_and_retention(results: Results) -> Markup | None:
    if results.gain is None:
        return None
    note = (
        f"Up: gain on {results.gain[0]} with its 95 % interval. Right: more of what the untrained model knew is left; "
    )
    note += "that model is at 100 % and 0. A line joins the strengths of an arm. Retention: docs/auditing.md."
    points = [_point(results, name, group) for name, group in results.groups.items()]
    return gain_section(points, results.gain[1], note=note, near=True)


def _point(results: Results, name: str, group: Sequence[Result]) -> Point | None:
    assert results.gain is not None
    retention = results.retention(group)
    change = change_of([(results.untrained, each) for each in group], *results.gain)
    if retention is None or change is None:
        return None
    gain, low, high = change.gain
    curve = group[0].arm if group[0].strength else None
    return Point(label=name, x=retention.value, y=gain, low=low, high=high, model=family(results, group), curve=curve)


def _panels(results: Results) -> Markup:
    figures = []
    for task, metric in results.columns:
        dots = []
        for name, group in results.groups.items():
            mean = spread([each.value(task, metric.name) for each in group])
            if math.isfinite(mean.mean):
                model = family(results, group)
                dots.append(Dot(label=name, value=mean.mean, half_width=mean.half_width, model=model))
        if dots:
            figures.append(_panel(task, metric, dots, results.untrained.value(task, metric.name)))
    return section(
        "Every measure, arm by arm",
        panels(figures, small=True),
        note="Mean over the seeds; the whisker is the 95 % interval of Student's t. The axis spans the arms and "
        "does not begin at 0.",
    )


def _panel(task: str, metric: Metric, dots: Sequence[Dot], untrained: float) -> Markup:
    marks = {UNTRAINED: untrained, **({} if metric.floor is None else {"floor": metric.floor})}
    shown = ", ".join(f"{dot.label} {dot.value:.3f}" for dot in dots)
    plot = dot_plot(f"{capital(metric.label)}, {task}", shown, dots, lines=marks)
    heading = join(
        element("b", capital(metric.label)),
        element("small", f" {task}, {metric.direction}"),
        element("small", element("br"), "; ".join(f"{name} {value:.3f}" for name, value in marks.items())),
    )
    return captioned(heading, plot)


def _comparisons(results: Results) -> Markup | None:
    rows: list[Row] = []
    for each in results.comparisons:
        name = join(each.after, element("small", f"against {each.before}"))
        rows.append((name, [_difference(each.changes[task].get(metric.name)) for task, metric in results.columns]))
    if not rows:
        return None
    columns = ["arms", *(f"{task}, {metric.label}" for task, metric in results.columns)]
    legend = join(arrow(True, "better"), " better and ", arrow(False, "worse"), " worse: the interval leaves out zero.")
    numbers = number_table("Difference with its 95 % interval", columns, rows)
    return section("Arm against arm", numbers, element("p", legend, class_="note"))


def _difference(change: Change | None) -> Markup | None:
    if change is None:
        return None
    sign = arrow(change.better, change.word) if change.shown else None
    return join(change.difference, " ", sign)


def _numbers(results: Results) -> Markup:
    every = {f"{each.label}, seed {each.seed}": [each] for each in results.every[1:]}
    singly = folded("Each training", _number_table(results, every)) if len(every) > len(results.groups) else None
    return section("The numbers", _number_table(results, results.groups), singly)


def _number_table(results: Results, groups: Mapping[str, Sequence[Result]]) -> Markup:
    caption = "Mean over the seeds ± half the 95 % interval; *: differs from the untrained model"
    return number_table(caption, headings(results), list(number_rows(results, groups).items()))
