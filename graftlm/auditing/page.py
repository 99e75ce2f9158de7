"""The page of an audit: verdict on top, then gain and retention, where it changed, restoration, facts, diversity, and
what the models wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.examples import examples_sections, facts_sections
from graftlm.auditing.plots import Point, heat_map, paired_bars, scatter_plot
from graftlm.auditing.result import AuditResult, Change, TunedAudit
from graftlm.auditing.summary import describe_retention
from graftlm.auditing.verdict import audit_verdict, described, span
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import data_section, facts_section, page, section, verdict_section
from graftlm.report.plots import Line, line_plot, round_up
from graftlm.report.tables import arrow, capital, cell, number_cell, row, table
from graftlm.runs.files import write_text


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
    sections = [
        verdict_section(audit_verdict(result)),
        _gain_and_retention(result),
        _metrics(result),
        *_places(result),
        *_restorations(result),
        *facts_sections(result),
        _diversity(result),
        *examples_sections(result),
        *extra,
        facts_section(
            {
                "base model": result.base,
                "tuned models": ", ".join(result.tuned),
                "settings": result.settings,
                "seconds": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
                "share of the time in forward passes": f"{result.forward_share:.0%}",
                **(facts or {}),
            }
        ),
        data_section("audit", asdict(result)),
    ]
    write_text(path, page(title, sections))


def _gain_and_retention(result: AuditResult) -> Markup | None:
    """The scatter: only where there is a task and a probe."""
    if not result.tasks or not result.probes:
        return None
    task = result.tasks[0]
    metric = result.base_results[task].gain_metric
    points = []
    for place, (name, audited) in enumerate(result.tuned.items(), start=1):
        change, kept = audited.changes[task].get(metric.name), audited.mean_retention
        if change is None or kept is None or not math.isfinite(kept):
            continue
        gain, low, high = change.gain
        points.append(Point(label=result.short_names[name], x=kept, y=gain, low=low, high=high, model=min(place, 5)))
    if not points:
        return None
    shown = "; ".join(f"{p.label}: retention {p.x:.0%}, gain {p.y:.3f}" for p in points)
    plot = scatter_plot(
        "Gain against retention",
        shown,
        points,
        x_label="retention (mean over the probes)",
        y_label=f"gain: {metric.gain_words}",
    )
    return section(
        "Gain against retention",
        element("figure", plot),
        note=f"Up: gain on {task}, with its 95 % interval. Right: more of what the base model knew is left. Retention "
        "is what is left above a guess, or for text the ratio of the perplexities; see docs/auditing.md.",
    )


def _metrics(result: AuditResult) -> Markup:
    pairs = {
        f"{result.short_names[pair.second]} − {result.short_names[pair.first]}": pair.changes for pair in result.between
    }
    headings = ["metric", "floor", "base", *(result.short_names[name] for name in result.tuned), *pairs]
    rows: list[Markup] = []
    for task, first in result.base_results.items():
        kind = "task" if task in result.tasks else "probe"
        heading = element("th", f"{task} ", element("small", f"{kind}, {first.count} examples"), colspan=len(headings))
        rows.append(element("tr", heading, class_="group", role="row"))
        for metric in first.declared:
            better = f"{'↑' if metric.higher_is_better else '↓'} {metric.direction}"
            cells = [number_cell("floor", metric.floor), number_cell("base", first.metrics[metric.name])]
            for name, audited in result.tuned.items():
                cells.append(change_cell(result.short_names[name], audited.changes[task].get(metric.name)))
            cells += [_difference_cell(heading, changes[task].get(metric.name)) for heading, changes in pairs.items()]
            rows.append(row(join(capital(metric.label), element("small", better)), cells))
    if any(audited.retention for audited in result.tuned.values()):
        cells = [cell("floor", "–"), cell("base", "100 %")]
        for name, audited in result.tuned.items():
            cells.append(cell(result.short_names[name], describe_retention(audited)))
        cells += [cell(heading, "–") for heading in pairs]
        rows.append(row(join("Retention", element("small", "mean over the probes")), cells))
    return section(
        "Every measure",
        table(
            "Mean over the examples; below it the difference to the base model",
            headings,
            rows,
            class_="numbers",
            cells=2,
        ),
        element("p", change_legend(), class_="note"),
    )


def change_legend() -> Markup:
    return join(
        arrow(True, "better"), " better and ", arrow(False, "worse"),
        " worse than the base model: the 95 % interval of the difference leaves out zero. Floor: what "
        "a trivial answer reaches.",
    )  # fmt: skip


def change_cell(name: str, change: Change | None) -> Markup:
    if change is None:
        return cell(name, "–")
    sign = None
    if change.shown:
        sign = join(" ", arrow(change.better, f"{'better' if change.better else 'worse'} than base"))
    return cell(name, f"{change.tuned:.3f}", sign, element("small", described(change)))


def _difference_cell(heading: str, change: Change | None) -> Markup:
    """One tuned model against the other."""
    if change is None:
        return cell(heading, "–")
    found = "no difference shown" if not change.shown else "better" if change.better else "worse"
    return cell(heading, described(change), element("small", found))


def _places(result: AuditResult) -> Iterator[Markup]:
    for name, audited in result.tuned.items():
        figures = [*_heat(audited), *_drift(audited)]
        if figures:
            yield section(
                f"Where {result.short_names[name]} changed",
                element("div", figures, class_="panels large"),
                _weights_table(audited),
                note="Left: the change of each weight relative to its norm. Right: how far the output of each layer "
                "drifts on general text; 0 where nothing changed.",
            )


def _heat(audited: TunedAudit) -> Iterator[Markup]:
    cells = {(c.module, c.group): c.relative for c in audited.weights if c.group.startswith("layer ")}
    if not cells:
        return
    modules = list(dict.fromkeys(module for module, _ in cells))
    groups = sorted({group for _, group in cells}, key=lambda group: int(group.split()[1]))
    values = [[cells.get((module, group)) for group in groups] for module in modules]
    plot = heat_map(
        "Relative weight change",
        f"{len(modules)} modules by {len(groups)} layers, largest {max(cells.values()):.4f}",
        [module.rsplit(".", 1)[-1][:14] for module in modules],
        groups,
        values,
    )
    yield element("figure", element("figcaption", element("h3", "Weights, layer by module")), plot)


def _drift(audited: TunedAudit) -> Iterator[Markup]:
    if not audited.drift:
        return
    distances = {
        "1 − CKA": [(float(d.layer), max(1 - d.cka, 0.0)) for d in audited.drift],
        "1 − cosine": [(float(d.layer), max(1 - d.cosine, 0.0)) for d in audited.drift],
    }
    lines = [
        Line(label=name, tag=name.removeprefix("1 − ")[:3], colour=f"--model-{place}", points=points)
        for place, (name, points) in enumerate(distances.items(), start=1)
    ]
    top = round_up(max([*(y for line in lines for _, y in line.points), 1e-6]))
    plot = line_plot(
        "Drift of representations",
        "; ".join(f"{line.label} from {line.points[0][1]:.4f} to {line.points[-1][1]:.4f}" for line in lines),
        lines, x_top=max(len(audited.drift) - 1, 1), y_top=top, x_label="layer", y_label="1 − similarity",
    )  # fmt: skip
    yield element("figure", element("figcaption", element("h3", "Representations, by layer")), plot)


def _weights_table(audited: TunedAudit) -> Markup | None:
    if not audited.weights:
        return None
    rows = [row(c.group, [cell("module", c.module), cell("change", f"{c.relative:.5f}")]) for c in audited.weights]
    numbers = table("‖tuned − base‖ / ‖base‖", ["group", "module", "change"], rows, class_="numbers", cells=2)
    return element("details", element("summary", "The numbers"), element("div", numbers, class_="scroll"))


def _restorations(result: AuditResult) -> Iterator[Markup]:
    names = ("lost knowledge brought back", "gain on the task kept")
    for name, audited in result.tuned.items():
        known = [r for r in audited.restoration if r.probe_share is not None or r.task_share is not None]
        if not known:
            continue
        groups = [
            (span(r).removeprefix("layers ").removeprefix("layer "),
             None if r.probe_share is None else 1 - r.probe_share, r.task_share)
            for r in known
        ]  # fmt: skip
        shown = "; ".join(f"layers {g}: {_percent(back)} back, {_percent(kept)} kept" for g, back, kept in groups)
        plot = paired_bars("Restoration of layers", shown, groups, names=names)
        legend = [
            element("li", element("span", class_="swatch block", style=f"background:var({colour})"), words)
            for colour, words in zip(("--model-3", "--model-1"), names, strict=True)
        ]
        yield section(
            f"Layers of {result.short_names[name]} put back",
            element("figure", plot),
            element("ul", legend, class_="legend"),
            note="The base model's weights in one group of layers, all others as tuned. Read from the likelihood of "
            "the reference answers (nats per token), so small changes count too.",
        )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _diversity(result: AuditResult) -> Markup | None:
    measured = {"base": result.base_diversity, **{result.short_names[n]: a.diversity for n, a in result.tuned.items()}}
    found = {name: diversity for name, diversity in measured.items() if diversity is not None}
    if not found:
        return None
    formats = list(dict.fromkeys(name for diversity in found.values() for name in diversity.formats))
    rows = [
        row("Distinct outputs", [cell(name, f"{d.distinct:.0%}") for name, d in found.items()]),
        row("Entropy at the start (nats)", [cell(name, f"{d.start_entropy:.3f}") for name, d in found.items()]),
    ]
    for format_name in formats:
        shares = [cell(name, f"{d.formats.get(format_name, 0.0):.0%}") for name, d in found.items()]
        rows.append(row(f"Format: {format_name}", shares))
    outputs = next(iter(found.values())).outputs
    return section(
        "Diversity",
        table(f"{outputs} outputs a model, sampled at temperature 1", ["", *found], rows, class_="numbers", cells=3),
        note="A share of formats that swallows the others, or few distinct outputs, are signs of collapse.",
    )
