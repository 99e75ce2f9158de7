"""A sweep in the terminal: what the report's first table shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.auditing.result import Estimate, short_names
from graftlm.auditing.summary import describe_change, describe_retention
from graftlm.console import number
from graftlm.proxy.sweep import Sweep

if TYPE_CHECKING:
    from rich.table import Table


def sweep_columns(sweep: Sweep) -> list[str]:
    """Of `sweep_rows`, after the model's name."""
    gaps = [f"gap to {name} closed" for name in short_names(list(sweep.tuned)).values()]
    metrics = [f"{task}, {metric}" for task in sweep.tasks for metric in sweep.base_results[task].metrics]
    return [*metrics, *gaps, *(["retention", *sweep.probes] if sweep.probes else [])]


def sweep_rows(sweep: Sweep) -> list[list[str]]:
    """Floor, base model and every other one, each with its name first."""
    places = [(task, metric) for task in sweep.tasks for metric in sweep.base_results[task].metrics]
    rest = len(sweep_columns(sweep)) - len(places)
    results = sweep.base_results
    rows = [
        ["floor", *(number(results[task].floors.get(metric)) for task, metric in places), *["-"] * rest],
        ["base (α = 0)", *(number(results[task].metrics[metric]) for task, metric in places), *["-"] * rest],
    ]
    for name, audited in sweep.models.items():
        row = [name, *(describe_change(audited.changes[task].get(metric)) for task, metric in places)]
        row += [describe_share(sweep.closed(audited, tuned)) for tuned in sweep.tuned]
        if sweep.probes:
            shares = [audited.retention.get(probe) for probe in sweep.probes]
            row += [describe_retention(audited), *("-" if share is None else f"{share:.0%}" for share in shares)]
        rows.append(row)
    return rows


def sweep_table(sweep: Sweep) -> Table:
    """A row each model; a * where the 95 % interval of the change against the base model excludes zero."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", *sweep_columns(sweep)):
        table.add_column(Text(heading), justify="left" if heading == "model" else "right")
    for row in sweep_rows(sweep):
        table.add_row(*(Text(value) for value in row))
    return table


def describe_share(share: Estimate | None) -> str:
    """ "71% [65%, 77%]" """
    return "-" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
