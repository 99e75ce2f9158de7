"""The page of a sweep over alpha: verdict, the frontier of gain and retention, and every measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.page import change_cell, change_legend
from graftlm.auditing.plots import Point, scatter_plot
from graftlm.auditing.result import TunedAudit, short_names
from graftlm.auditing.summary import describe_retention
from graftlm.auditing.verdict import described
from graftlm.experiments.sweep import Sweep
from graftlm.experiments.sweep_summary import describe_share, gap_headings, metric_columns
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import data_section, facts_section, page, section, verdict_section
from graftlm.report.tables import capital, cell, number_cell, row, table
from graftlm.runs.files import write_text


def write_sweep_report(path: Path, sweep: Sweep, *, title: str) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file). What was measured lies in it as JSON
    (element `sweep`), without the examples."""
    facts = {
        "base model": sweep.base,
        "expert": sweep.expert,
        "anti-expert": sweep.antiexpert or "the expert without its adapter",
        "tuned directly": ", ".join(sweep.tuned) or None,
        "settings": sweep.settings,
        "seconds": round(sweep.seconds),
    }
    sections = [
        verdict_section(sweep_verdict(sweep)),
        _frontier(sweep),
        _numbers(sweep),
        _measures(sweep),
        facts_section(facts),
        data_section("sweep", without_examples(asdict(sweep))),
    ]
    write_text(path, page(title, sections))


def without_examples(value: Any) -> Any:
    """Every "examples" and "facts" left out, which are what is large."""
    if isinstance(value, dict):
        return {key: without_examples(item) for key, item in value.items() if key not in ("examples", "facts")}
    return [without_examples(item) for item in value] if isinstance(value, list) else value


def sweep_verdict(sweep: Sweep) -> list[str]:
    """What each model won on the task and what it left of the rest, in sentences that claim no more than was shown."""
    lines = [*_alphas(sweep)]
    lines += [f"{capital(name)}: {_gain_and_rest(sweep, audited)}." for name, audited in sweep.others.items()]
    lines.append(
        "Intervals are 95 % bootstrap intervals over the test examples, paired by example; they hold nothing of what "
        "another seed of a training would change. An alpha that is chosen because it did best here looks better than "
        "it is: choose it on other examples."
    )
    return lines


def _alphas(sweep: Sweep) -> Iterator[str]:
    """The paper's alpha, and the one with the largest gain where that is another."""
    gains = {
        alpha: change.gain[0]
        for alpha, audited in sweep.steered.items()
        if alpha and (change := sweep.change(audited)) is not None
    }
    if not gains:
        return
    best = max(gains, key=lambda alpha: gains[alpha])
    named = {1.0: ["as in the paper"]}
    named.setdefault(best, []).append("the largest gain measured")
    for alpha, which in named.items():
        if alpha in gains:
            audited = sweep.steered[alpha]
            closed = [
                f"{describe_share(share)} of the gap to {name} closed"
                for full, name in short_names(list(sweep.tuned)).items()
                if (share := sweep.closed(audited, full)) is not None
            ]
            yield f"α = {alpha:g} ({', '.join(which)}): {'; '.join([_gain_and_rest(sweep, audited), *closed])}."


def _gain_and_rest(sweep: Sweep, audited: TunedAudit) -> str:
    change = sweep.change(audited)
    parts = []
    if change is not None:
        shown = "" if change.shown else ", no difference shown"
        found = f"{change.base:.3f} → {change.tuned:.3f} ({described(change)}{shown})"
        parts.append(f"{change.metric.label} on {sweep.tasks[0]} {found}")
    if audited.mean_retention is not None:
        parts.append(f"retention {describe_retention(audited)}")
    return "; ".join(parts)


def _frontier(sweep: Sweep) -> Markup | None:
    points = []
    named = {f"{alpha:g}": audited for alpha, audited in sweep.steered.items()}
    for place, (name, audited) in enumerate([*named.items(), *sweep.others.items()]):
        change, kept = sweep.change(audited), audited.mean_retention
        if change is None or kept is None or not math.isfinite(kept):
            continue
        gain, low, high = change.gain
        joined = place < len(named)
        model = 1 if joined else min(place - len(named) + 2, 5)
        points.append(Point(label=name, x=kept, y=gain, low=low, high=high, model=model, joined=joined))
    if not points:
        return None
    shown = "; ".join(f"{p.label}: retention {p.x:.0%}, gain {p.y:.3f}" for p in points)
    words = f"gain: {sweep.metric.gain_words}"
    plot = scatter_plot("Frontier", shown, points, x_label="retention (mean over the probes)", y_label=words, near=True)
    return section(
        "Gain against retention",
        element("figure", plot),
        note=f"Up: gain on {sweep.tasks[0]}, with its 95 % interval. Right: more of what the base model knew is left. "
        "The line joins the steered models, each with its α; 0 is the base model.",
    )


def _numbers(sweep: Sweep) -> Markup:
    columns, gaps, base = metric_columns(sweep), gap_headings(sweep), sweep.base_results
    probes = ["retention, mean", *sweep.probes] if sweep.probes else []
    headings = ["model", *(f"{task}, {metric.label}" for task, metric in columns), *gaps.values(), *probes]
    blank = [cell(heading, "–") for heading in (*gaps.values(), *probes)]
    named = list(zip(headings[1:], columns, strict=False))
    values = [number_cell(heading, base[task].metrics[metric.name]) for heading, (task, metric) in named]
    rows = [
        row("floor", [*(number_cell(heading, metric.floor) for heading, (_, metric) in named), *blank]),
        row("base (α = 0)", [*values, *blank]),
    ]
    for name, audited in sweep.models.items():
        cells = [change_cell(heading, audited.changes[task].get(metric.name)) for heading, (task, metric) in named]
        cells += [cell(heading, describe_share(sweep.closed(audited, tuned))) for tuned, heading in gaps.items()]
        if probes:
            shares = [audited.retention.get(probe) for probe in sweep.probes]
            shown = [describe_retention(audited), *("–" if share is None else f"{share:.0%}" for share in shares)]
            cells += [cell(heading, value) for heading, value in zip(probes, shown, strict=True)]
        rows.append(row(name, cells))
    numbers = table("Each model; below it the difference to the base model", headings, rows, class_="numbers", cells=2)
    legend = join(change_legend(), " Retention: docs/auditing.md.")
    return section("The numbers", element("div", numbers, class_="scroll"), element("p", legend, class_="note"))


def _measures(sweep: Sweep) -> Markup:
    """Every metric of the probes, folded."""
    headings = ["metric", "floor", "base", *sweep.models]
    rows = []
    for probe in sweep.probes:
        base = sweep.base_results[probe]
        for metric in base.declared:
            cells = [number_cell("floor", metric.floor), number_cell("base", base.metrics[metric.name])]
            cells += [change_cell(name, each.changes[probe].get(metric.name)) for name, each in sweep.models.items()]
            rows.append(row(f"{probe}, {metric.label}", cells))
    if not rows:
        return Markup("")
    numbers = table("Below each value the difference to the base model", headings, rows, class_="numbers", cells=2)
    folded = element("summary", "Every measure of the probes")
    return element("section", element("details", folded, element("div", numbers, class_="scroll")))
