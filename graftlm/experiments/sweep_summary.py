"""A sweep in the terminal: one row a model, without the intervals that the report has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.auditing.result import Change, Estimate, short_names
from graftlm.experiments.sweep import Sweep
from graftlm.runs.console import number
from graftlm.tasks import Metric

if TYPE_CHECKING:
    from rich.table import Table


def metric_columns(sweep: Sweep) -> list[tuple[str, Metric]]:
    """(task, metric), of the tasks; the metric that the gain is read from comes first."""
    found = [(task, metric) for task in sweep.tasks for metric in sweep.base_results[task].declared]
    return sorted(found, key=lambda column: column != (sweep.tasks[0], sweep.metric))


def gap_headings(sweep: Sweep) -> dict[str, str]:
    """Directly tuned model -> the heading of the share of its gain that a steered one has."""
    return {name: f"gap to {short} closed" for name, short in short_names(list(sweep.tuned)).items()}


def sweep_table(sweep: Sweep) -> Table:
    """A row each model; a * where the 95 % interval of the change against the base model excludes zero."""
    from rich.table import Table
    from rich.text import Text

    columns, gaps, base = metric_columns(sweep), gap_headings(sweep), sweep.base_results
    probes = ["retention", *sweep.probes] if sweep.probes else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", *(f"{task}, {metric.name}" for task, metric in columns), *gaps.values(), *probes):
        table.add_column(Text(heading), justify="left" if heading == "model" else "right")
    rest = ["-"] * (len(gaps) + len(probes))
    table.add_row("floor", *(number(metric.floor) for _, metric in columns), *rest)
    table.add_row("base (α = 0)", *(number(base[task].metrics[metric.name]) for task, metric in columns), *rest)
    for name, audited in sweep.models.items():
        row = [name, *(_value(audited.changes[task].get(metric.name)) for task, metric in columns)]
        row += [describe_share(sweep.closed(audited, tuned), interval=False) for tuned in gaps]
        if probes:
            shares = [audited.mean_retention, *(audited.retention.get(probe) for probe in sweep.probes)]
            row += ["-" if share is None else f"{share:.0%}" for share in shares]
        table.add_row(*(Text(value) for value in row))
    return table


def _value(change: Change | None) -> str:
    return "-" if change is None else f"{change.tuned:.3f}{' *' if change.shown else '  '}"


def describe_share(share: Estimate | None, *, interval: bool = True) -> str:
    """ "71% [65%, 77%]" """
    if share is None:
        return "-"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]" if interval else f"{share.value:.0%}"
