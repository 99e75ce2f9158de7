"""The numbers of an experiment: one row an arm and strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graftlm.experiments.comparison import Results, change_of
from graftlm.experiments.results import Result, spread
from graftlm.experiments.verdict import describe_share
from graftlm.runs.console import number
from graftlm.tasks import Metric

if TYPE_CHECKING:
    from rich.table import Table


def experiment_table(results: Results) -> Table:
    """The numbers for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings(results):
        table.add_column(Text(heading), justify="left" if heading == "arm" else "right")
    for name, cells in number_rows(results, results.groups).items():
        table.add_row(Text(name), *map(Text, cells))
    return table


def headings(results: Results) -> list[str]:
    metrics = [f"{task}: {metric.name}" for task, metric in results.columns]
    gaps = [f"gap to {arm} closed" for arm in results.gap_to]
    return ["arm", "seeds", *metrics, *gaps, "retention", "seconds, fastest", "training loss"]


def number_rows(results: Results, groups: Mapping[str, Sequence[Result]]) -> dict[str, list[str]]:
    """Name -> cells, of the floor, of the untrained model and of each group: the mean of each metric ± half the 95 %
    interval over its seeds. Of a single seed the value, with a * where the interval of its difference from the
    untrained model leaves out zero."""
    first = results.untrained
    blank = ["-"] * (len(results.gap_to) + 3)
    rows = {
        "floor": ["-", *(number(metric.floor) for _, metric in results.columns), *blank],
        first.label: ["-", *(number(first.value(task, metric.name)) for task, metric in results.columns), *blank],
    }
    for name, group in groups.items():
        values = [_value(first, group, task, metric) for task, metric in results.columns]
        shares = [*results.gaps_closed(group).values(), results.retention(group)]
        seconds = [each.training_seconds for each in group if each.training_seconds is not None]
        losses = [each.training_loss for each in group if each.training_loss is not None]
        # The fastest training is the one that other work on the machine disturbed least.
        cost = f"{min(seconds):.0f}" if seconds else "-"
        loss = _mean_and_interval(losses) if losses else "-"
        rows[name] = [str(len(group)), *values, *map(describe_share, shares), cost, loss]
    return rows


def _mean_and_interval(values: Sequence[float]) -> str:
    mean = spread(values)
    return f"{mean.mean:.3f}" + ("" if mean.half_width is None else f" ± {mean.half_width:.3f}")


def _value(untrained: Result, group: Sequence[Result], task: str, metric: Metric) -> str:
    shown = _mean_and_interval([each.value(task, metric.name) for each in group])
    if len(group) > 1:
        return shown
    change = change_of([(untrained, group[0])], task, metric)
    return f"{shown} {'*' if change is not None and change.shown else ' '}"
