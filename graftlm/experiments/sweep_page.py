"""The page of a sweep over alpha: verdict, the frontier of gain and retention, and every measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.auditing.parts import change_cell, change_legend, change_point, gain_section
from graftlm.auditing.result import TunedAudit, short_names
from graftlm.auditing.summary import describe_retention, percent
from graftlm.experiments.sweep import Sweep
from graftlm.experiments.sweep_summary import describe_share, gap_headings, metric_columns
from graftlm.report.markup import Markup, element
from graftlm.report.page import data_section, facts_section, folded, section, verdict_section, write_page
from graftlm.report.tables import Content, Row, capital, number_table


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
    write_page(path, title, sections)


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
        found = f"{change.base:.3f} → {change.tuned:.3f} ({change.difference}{shown})"
        parts.append(f"{change.metric.label} on {sweep.tasks[0]} {found}")
    if audited.mean_retention is not None:
        parts.append(f"retention {describe_retention(audited)}")
    return "; ".join(parts)


def _frontier(sweep: Sweep) -> Markup | None:
    task, metric = sweep.tasks[0], sweep.metric
    points = [
        change_point(f"{alpha:g}", audited, task, metric, model=1, joined=True)
        for alpha, audited in sweep.steered.items()
    ]
    for place, (name, audited) in enumerate(sweep.others.items(), start=2):
        points.append(change_point(name, audited, task, metric, model=place))
    note = f"Up: gain on {task}, with its 95 % interval. Right: more of what the base model knew is left. "
    note += "The line joins the steered models, each with its α; 0 is the base model."
    return gain_section(points, metric, note=note, near=True)


def _numbers(sweep: Sweep) -> Markup:
    columns, gaps, base = metric_columns(sweep), gap_headings(sweep), sweep.base_results
    probes = ["retention, mean", *sweep.probes] if sweep.probes else []
    headings = ["model", *(f"{task}, {metric.label}" for task, metric in columns), *gaps.values(), *probes]
    blank = [None] * (len(gaps) + len(probes))
    rows: list[Row] = [
        ("floor", [*(metric.floor for _, metric in columns), *blank]),
        ("base (α = 0)", [*(base[task].metrics[metric.name] for task, metric in columns), *blank]),
    ]
    for name, audited in sweep.models.items():
        cells: list[Content] = [change_cell(audited.changes[task].get(metric.name)) for task, metric in columns]
        cells += [describe_share(sweep.closed(audited, tuned)) for tuned in gaps]
        if probes:
            shares = [percent(audited.retention.get(probe)) for probe in sweep.probes]
            cells += [describe_retention(audited), *shares]
        rows.append((name, cells))
    return section(
        "The numbers",
        number_table("Each model; below it the difference to the base model", headings, rows),
        element("p", change_legend(), " Retention: docs/auditing.md.", class_="note"),
    )


def _measures(sweep: Sweep) -> Markup | None:
    """Every metric of the probes, folded."""
    rows: list[Row] = []
    for probe in sweep.probes:
        base = sweep.base_results[probe]
        for metric in base.declared:
            cells = [change_cell(each.changes[probe].get(metric.name)) for each in sweep.models.values()]
            rows.append((f"{probe}, {metric.label}", [metric.floor, base.metrics[metric.name], *cells]))
    if not rows:
        return None
    headings = ["metric", "floor", "base", *sweep.models]
    numbers = number_table("Below each value the difference to the base model", headings, rows)
    return element("section", folded("Every measure of the probes", numbers))
