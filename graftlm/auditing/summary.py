"""The audit in the terminal: what the report shows, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.auditing.result import AuditResult, Change, Restored, TunedAudit
from graftlm.runs.console import number

if TYPE_CHECKING:
    from rich.table import Table


def audit_table(result: AuditResult) -> Table:
    """A row each measure, a column each tuned model and one for each against the model before it; a * where the 95 %
    interval of the change excludes zero."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    models = list(result.tuned.values())
    for heading in ("measure", "", "floor", "base", *result.columns):
        table.add_column(Text(heading), justify="left" if heading in ("measure", "") else "right")

    def add(label: str, measure: str, cells: list[str], floor: str = "", base: str = "") -> None:
        table.add_row(Text(label), Text(measure), floor, base, *map(Text, cells))

    for task, first in result.base_results.items():
        for place, metric in enumerate(first.declared):
            label = f"{task} ({first.count})" if place == 0 else ""
            changes, between = result.changes(task, metric.name)
            cells = [*map(describe_change, changes), *map(describe_difference, between)]
            add(label, metric.name, cells, number(metric.floor), number(first.metrics[metric.name]))
    for place, probe in enumerate(result.probes):
        add("" if place else "retention", probe, [percent(model.retention.get(probe)) for model in models])
    if result.probes:
        add("", "mean", [describe_retention(model) for model in models])
    add("KL(base ‖ tuned)", "nats per token", [_divergence(model) for model in models])
    restored = [{each.span: each for each in model.restoration} for model in models]
    for place, span in enumerate(dict.fromkeys(span for spans in restored for span in spans)):
        label = "" if place else "probe loss / task gain left"
        add(label, f"{span} restored", [_restored(spans.get(span)) for spans in restored])
    return table


def describe_change(change: Change | None) -> str:
    """ "0.860 (+0.860 [+0.790, +0.920] *)" """
    return "-" if change is None else f"{change.tuned:.3f} ({describe_difference(change)})"


def describe_difference(change: Change | None) -> str:
    """ "+0.860 [+0.790, +0.920] *" """
    return "-" if change is None else f"{change.difference}{' *' if change.shown else ''}"


def describe_retention(audited: TunedAudit) -> str:
    """ "93% [90%, 96%]", the mean over the probes with its interval."""
    mean, bounds = audited.mean_retention, audited.retention_bounds
    return percent(mean) if bounds is None else f"{percent(mean)} [{percent(bounds[0])}, {percent(bounds[1])}]"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _restored(restored: Restored | None) -> str:
    return "-" if restored is None else f"{percent(restored.probe_share)} / {percent(restored.task_share)}"


def _divergence(model: TunedAudit) -> str:
    if model.divergence is None:
        return "-"
    error = "" if model.divergence_error is None else f" ± {model.divergence_error:.3f}"
    return f"{model.divergence:.3f}{error}"
