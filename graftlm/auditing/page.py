"""The page of an audit: verdict on top, then gain and retention, where it changed, restoration, facts, diversity, and
what the models wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.examples import examples_sections, facts_sections
from graftlm.auditing.result import AuditResult, Change, TunedAudit
from graftlm.auditing.summary import describe_retention, percent
from graftlm.auditing.verdict import audit_verdict
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import (
    captioned,
    data_section,
    facts_section,
    folded,
    legend,
    panels,
    section,
    verdict_section,
    write_page,
)
from graftlm.report.plots import Bar, Line, bar_plot, heat_map, line_plot
from graftlm.report.scatter import Point, scatter_plot
from graftlm.report.tables import Row, arrow, capital, group_row, number_table
from graftlm.tasks import Metric


def write_audit_report(
    path: Path,
    result: AuditResult,
    *,
    title: str,
    extra: Sequence[Markup | None] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file).

    `extra`: further sections, before the last one. `facts`: how the models were made, for the last one. The audit
    itself lies in the page as JSON (element `audit`).
    """
    made = {
        "base model": result.base,
        "tuned models": ", ".join(result.tuned),
        "settings": result.settings,
        "seconds": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        **(facts or {}),
    }
    sections = [
        verdict_section(audit_verdict(result)),
        _gain_and_retention(result),
        _measures(result),
        *_places(result),
        *_restorations(result),
        *facts_sections(result),
        _diversity(result),
        *examples_sections(result),
        *extra,
        facts_section(made),
        data_section("audit", asdict(result)),
    ]
    write_page(path, title, sections)


def _gain_and_retention(result: AuditResult) -> Markup | None:
    """The scatter: only where there is a task and a probe."""
    if not result.tasks or not result.probes:
        return None
    task = result.tasks[0]
    metric = result.base_results[task].gain_metric
    points = []
    for place, (name, audited) in enumerate(result.named.items(), start=1):
        change, retention = audited.changes[task].get(metric.name), audited.mean_retention
        if change is not None and retention is not None:
            gain, low, high = change.gain
            points.append(Point(label=name, x=retention, y=gain, low=low, high=high, model=min(place, 5)))
    note = f"Up: gain on {task}, with its 95 % interval. Right: more of what the base model knew is left. Retention is "
    note += "what is left above a guess, or for text the ratio of the perplexities; see docs/auditing.md."
    return gain_section(points, metric, note=note)


def gain_section(points: Sequence[Point | None], metric: Metric, *, note: str, near: bool = False) -> Markup | None:
    """Gain on `metric` (y) against retention (x), a point a model; None where no model has both."""
    shown = [point for point in points if point is not None and math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown:
        return None
    plot = scatter_plot(
        "Gain against retention",
        "; ".join(f"{point.label}: retention {point.x:.0%}, gain {point.y:.3f}" for point in shown),
        shown,
        x_label="retention (mean over the probes)",
        y_label=f"gain: {metric.gain_words}",
        near=near,
    )
    return section("Gain against retention", element("figure", plot), note=note)


def _measures(result: AuditResult) -> Markup:
    headings = ["metric", "floor", "base", *result.columns]
    rows: list[Row | Markup] = []
    for task, first in result.base_results.items():
        kind = "task" if task in result.tasks else "probe"
        rows.append(group_row(join(f"{task} ", element("small", f"{kind}, {first.count} examples")), len(headings)))
        for metric in first.declared:
            direction = f"{'↑' if metric.higher_is_better else '↓'} {metric.direction}"
            changes, between = result.changes(task, metric.name)
            cells = [*map(_change, changes), *map(_difference, between)]
            name = join(capital(metric.label), element("small", direction))
            rows.append((name, [metric.floor, first.metrics[metric.name], *cells]))
    if any(audited.retention for audited in result.tuned.values()):
        shares = [describe_retention(audited) for audited in result.tuned.values()]
        name = join("Retention", element("small", "mean over the probes"))
        rows.append((name, [None, "100 %", *shares, *[None] * len(result.between)]))
    return section(
        "Every measure",
        number_table("Mean over the examples; below it the difference to the base model", headings, rows),
        element(
            "p",
            *(arrow(True, "better"), " better and ", arrow(False, "worse"), " worse than the base model: the 95 % "),
            "interval of the difference leaves out zero. Floor: what a trivial answer reaches.",
            class_="note",
        ),
    )


def _change(change: Change | None) -> Markup | None:
    """The tuned model's value, an arrow where the difference counts as one, and below it the difference."""
    if change is None:
        return None
    sign = join(" ", arrow(change.better, f"{change.word} than base")) if change.shown else None
    return join(f"{change.tuned:.3f}", sign, element("small", change.difference))


def _difference(change: Change | None) -> Markup | None:
    """One tuned model against the other."""
    if change is None:
        return None
    return join(change.difference, element("small", change.word if change.shown else "no difference shown"))


def _places(result: AuditResult) -> Iterator[Markup]:
    for name, audited in result.named.items():
        if figures := [plot for plot in (_heat(audited), _drift(audited)) if plot is not None]:
            yield section(
                f"Where {name} changed",
                panels(figures),
                _weights_table(audited),
                note="Left: the change of each weight relative to its norm. Right: how far the output of each layer "
                "drifts on general text; 0 where nothing changed.",
            )


def _heat(audited: TunedAudit) -> Markup | None:
    cells = {(c.module, c.group): c.relative for c in audited.weights if c.group.startswith("layer ")}
    if not cells:
        return None
    modules = list(dict.fromkeys(module for module, _ in cells))
    layers = sorted({group for _, group in cells}, key=lambda group: int(group.split()[1]))
    plot = heat_map(
        "Relative weight change",
        f"{len(modules)} modules by {len(layers)} layers, largest {max(cells.values()):.4f}",
        [module.rsplit(".", 1)[-1][:14] for module in modules],
        layers,
        [[cells.get((module, layer)) for layer in layers] for module in modules],
        unit="of the base weight's norm",
    )
    return captioned("Weights, layer by module", plot)


def _drift(audited: TunedAudit) -> Markup | None:
    if not audited.drift:
        return None
    cka = [(each.layer, max(1 - each.cka, 0.0)) for each in audited.drift]
    cosine = [(each.layer, max(1 - each.cosine, 0.0)) for each in audited.drift]
    lines = [
        Line(label="1 − CKA", tag="CKA", colour="--model-1", points=cka),
        Line(label="1 − cos", tag="cos", colour="--model-2", points=cosine),
    ]
    plot = line_plot("Drift of representations", lines, x_label="layer", y_label="1 − similarity")
    return captioned("Representations, by layer", plot)


def _weights_table(audited: TunedAudit) -> Markup | None:
    if not audited.weights:
        return None
    rows = [(change.group, [change.module, f"{change.relative:.5f}"]) for change in audited.weights]
    return folded("The numbers", number_table("‖tuned − base‖ / ‖base‖", ["group", "module", "change"], rows))


def _restorations(result: AuditResult) -> Iterator[Markup]:
    meanings = {"lost knowledge brought back": "--model-3", "gain on the task kept": "--model-1"}
    for name, audited in result.named.items():
        groups, described = [], []
        for each in audited.restoration:
            label = each.span.split()[1]
            bars = [
                Bar(share=share, colour=colour, tip=f"{label}, {words}: {share:.0%}")
                for (words, colour), share in zip(meanings.items(), (each.brought_back, each.task_share), strict=True)
                if share is not None
            ]
            if bars:
                groups.append((label, bars))
                described.append(f"{each.span}: {percent(each.brought_back)} back, {percent(each.task_share)} kept")
        if groups:
            yield section(
                f"Layers of {name} put back",
                element("figure", bar_plot("Restoration of layers", "; ".join(described), groups, top=1.2)),
                legend(meanings),
                note="The base model's weights in one group of layers, all others as tuned. Read from the likelihood "
                "of the reference answers (nats per token), so small changes count too.",
            )


def _diversity(result: AuditResult) -> Markup | None:
    measured = {"base": result.base_diversity, **{name: audited.diversity for name, audited in result.named.items()}}
    models = {name: diversity for name, diversity in measured.items() if diversity is not None}
    if not models:
        return None
    each = list(models.values())
    rows: list[Row] = [
        ("Distinct outputs", [percent(d.distinct) for d in each]),
        ("Entropy at the start (nats)", [d.start_entropy for d in each]),
        *((f"Format: {name}", [percent(d.formats[name]) for d in each]) for name in each[0].formats),
    ]
    caption = f"{each[0].outputs} outputs a model, sampled at temperature 1"
    return section(
        "Diversity",
        number_table(caption, ["", *models], rows, cells=3),
        note="A share of formats that swallows the others, or few distinct outputs, are signs of collapse.",
    )
