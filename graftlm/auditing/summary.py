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
    names = result.short_names
    pairs = [f"{names[pair.second]} − {names[pair.first]}" for pair in result.between]
    for heading in ("measure", "", "floor", "base", *names.values(), *pairs):
        table.add_column(Text(heading), justify="left" if heading in ("measure", "") else "right")

    def add(label: str, measure: str, cells: list[str], floor: str = "", base: str = "") -> None:
        table.add_row(Text(label), Text(measure), floor, base, *(Text(cell) for cell in cells))

    models = list(result.tuned.values())
    for task, first in result.base_results.items():
        label = f"{task} ({first.count})"
        for metric, value in first.metrics.items():
            cells = [describe_change(model.changes[task].get(metric)) for model in models]
            cells += [describe_difference(pair.changes[task].get(metric)) for pair in result.between]
            add(label, metric, cells, number(first.floors.get(metric)), number(value))
            label = ""
    for probe in result.probes:
        add("retention" if probe == result.probes[0] else "", probe, [_share(m.retention.get(probe)) for m in models])
    if result.probes:
        add("", "mean", [describe_retention(model) for model in models])
    add("KL(base ‖ tuned)", "nats per token", [_divergence(model) for model in models])
    for index, (first_layer, last_layer) in enumerate(_spans(models)):
        label = "probe loss / task gain left" if index == 0 else ""
        cells = [_restored(model.restoration[index]) for model in models]
        add(label, f"layers {first_layer}-{last_layer} restored", cells)
    return table


def describe_change(change: Change | None) -> str:
    """ "0.860 (+0.860 [+0.79, +0.92] *)" """
    if change is None:
        return "-"
    return f"{change.tuned:.3f} ({describe_difference(change)})"


def describe_difference(change: Change | None) -> str:
    """ "+0.860 [+0.790, +0.920] *" """
    if change is None:
        return "-"
    interval = "" if change.low is None or change.high is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    return f"{change.value:+.3f}{interval}{' *' if change.shown else ''}"


def describe_retention(audited: TunedAudit) -> str:
    """ "93% [90%, 96%]", the mean over the probes with its interval."""
    mean, bounds = audited.mean_retention, audited.retention_bounds
    return _share(mean) if bounds is None else f"{_share(mean)} [{_share(bounds[0])}, {_share(bounds[1])}]"


def _spans(models: list[TunedAudit]) -> list[tuple[int, int]]:
    return [restored.layers for restored in models[0].restoration] if models else []


def _restored(restored: Restored) -> str:
    return f"{_share(restored.probe_share)} / {_share(restored.task_share)}"


def _divergence(model: TunedAudit) -> str:
    if model.divergence is None:
        return "-"
    error = "" if model.divergence_error is None else f" ± {model.divergence_error:.3f}"
    return f"{model.divergence:.3f}{error}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
