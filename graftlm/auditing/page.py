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
    for place, (name, audited) in enumerate(result.tuned.items(), start=1):
        change, retention = audited.changes[task].get(metric.name), audited.mean_retention
        if change is not None and retention is not None:
            gain, low, high = change.gain
            label, model = result.short_names[name], min(place, 5)
            points.append(Point(label=label, x=retention, y=gain, low=low, high=high, model=model))
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
    names = result.short_names
    pairs = [f"{names[pair.second]} − {names[pair.first]}" for pair in result.between]
    headings = ["metric", "floor", "base", *names.values(), *pairs]
    rows: list[Row | Markup] = []
    for task, first in result.base_results.items():
        kind = "task" if task in result.tasks else "probe"
        rows.append(group_row(join(f"{task} ", element("small", f"{kind}, {first.count} examples")), len(headings)))
        for metric in first.declared:
            name = join(
                capital(metric.label), element("small", f"{'↑' if metric.higher_is_better else '↓'} {metric.direction}")
            )
            changes = [_change(each.changes[task].get(metric.name)) for each in result.tuned.values()]
            between = [_difference(pair.changes[task].get(metric.name)) for pair in result.between]
            rows.append((name, [metric.floor, first.metrics[metric.name], *changes, *between]))
    if any(audited.retention for audited in result.tuned.values()):
        shares = [describe_retention(audited) for audited in result.tuned.values()]
        name = join("Retention", element("small", "mean over the probes"))
        rows.append((name, [None, "100 %", *shares, *[None] * len(pairs)]))
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
    word = "better" if change.better else "worse"
    sign = join(" ", arrow(change.better, f"{word} than base")) if change.shown else None
    return join(f"{change.tuned:.3f}", sign, element("small", change.difference))


def _difference(change: Change | None) -> Markup | None:
    """One tuned model against the other."""
    if change is None:
        return None
    word = "no difference shown" if not change.shown else "better" if change.better else "worse"
    return join(change.difference, element("small", word))


def _places(result: AuditResult) -> Iterator[Markup]:
    for name, audited in result.tuned.items():
        figures = [plot for plot in (_heat(audited), _drift(audited)) if plot is not None]
        if figures:
            yield section(
                f"Where {result.short_names[name]} changed",
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
    points = {
        "CKA": [(float(d.layer), max(1 - d.cka, 0.0)) for d in audited.drift],
        "cos": [(float(d.layer), max(1 - d.cosine, 0.0)) for d in audited.drift],
    }
    lines = [
        Line(label=f"1 − {tag}", tag=tag, colour=f"--model-{place}", points=points[tag])
        for place, tag in enumerate(points, start=1)
    ]
    plot = line_plot("Drift of representations", lines, x_label="layer", y_label="1 − similarity")
    return captioned("Representations, by layer", plot)


def _weights_table(audited: TunedAudit) -> Markup | None:
    if not audited.weights:
        return None
    rows = [(change.group, [change.module, f"{change.relative:.5f}"]) for change in audited.weights]
    return folded("The numbers", number_table("‖tuned − base‖ / ‖base‖", ["group", "module", "change"], rows))


def _restorations(result: AuditResult) -> Iterator[Markup]:
    meanings = {"--model-3": "lost knowledge brought back", "--model-1": "gain on the task kept"}
    legend = [
        element("li", element("span", class_="swatch block", style=f"background:var({colour})"), words)
        for colour, words in meanings.items()
    ]
    for name, audited in result.tuned.items():
        groups, described = [], []
        for each in audited.restoration:
            label = each.span.split()[1]
            shares = {"--model-3": each.brought_back, "--model-1": each.task_share}
            bars = [
                Bar(share=share, colour=colour, tip=f"{label}, {meanings[colour]}: {share:.0%}")
                for colour, share in shares.items()
                if share is not None
            ]
            if bars:
                groups.append((label, bars))
                described.append(f"{each.span}: {percent(each.brought_back)} back, {percent(each.task_share)} kept")
        if groups:
            yield section(
                f"Layers of {result.short_names[name]} put back",
                element("figure", bar_plot("Restoration of layers", "; ".join(described), groups, top=1.2)),
                element("ul", legend, class_="legend"),
                note="The base model's weights in one group of layers, all others as tuned. Read from the likelihood "
                "of the reference answers (nats per token), so small changes count too.",
            )


def _diversity(result: AuditResult) -> Markup | None:
    measured = {"base": result.base_diversity, **{result.short_names[n]: a.diversity for n, a in result.tuned.items()}}
    models = {name: diversity for name, diversity in measured.items() if diversity is not None}
    if not models:
        return None
    each = list(models.values())
    rows: list[Row] = [
        ("Distinct outputs", [percent(d.distinct) for d in each]),
        ("Entropy at the start (nats)", [d.start_entropy for d in each]),
    ]
    for format_name in dict.fromkeys(name for diversity in each for name in diversity.formats):
        rows.append((f"Format: {format_name}", [percent(d.formats.get(format_name, 0.0)) for d in each]))
    caption = f"{each[0].outputs} outputs a model, sampled at temperature 1"
    return section(
        "Diversity",
        number_table(caption, ["", *models], rows, cells=3),
        note="A share of formats that swallows the others, or few distinct outputs, are signs of collapse.",
    )
