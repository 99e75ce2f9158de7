"""What a study measured, and one row for each arm: mean over the seeds, interval, cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftlm.console import number

if TYPE_CHECKING:
    from rich.table import Table

# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training (or the untrained model) with what it scored: task -> metric -> value."""

    arm: str
    seed: int
    metrics: dict[str, dict[str, float]]
    floors: dict[str, dict[str, float]]
    counts: dict[str, int]
    training_seconds: float | None = None
    training_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over `seeds` trainings; `reach`: half the 95 % interval of Student's t, None for a single one."""

    mean: float
    reach: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """The values are of independent seeds; ValueError for none."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(mean=values[0], reach=None, seeds=1)
    quantile = T_975[len(values) - 2] if len(values) - 2 < len(T_975) else 2.0
    reach = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean=statistics.fmean(values), reach=reach, seeds=len(values))


def arm_spread(measured: Sequence[Measured], arm: str, task: str, metric: str) -> Spread:
    return spread([each.metrics[task][metric] for each in measured if each.arm == arm])


def paired_difference(measured: Sequence[Measured], before: str, after: str, task: str, metric: str) -> Spread | None:
    """`after` - `before` over the seeds that both have; None without one."""
    values = {arm: {e.seed: e.metrics[task][metric] for e in measured if e.arm == arm} for arm in (before, after)}
    common = sorted(values[before].keys() & values[after].keys())
    return spread([values[after][seed] - values[before][seed] for seed in common]) if common else None


def study_table(measured: Sequence[Measured]) -> Table:
    """A row each arm, a column each metric; mean ± half the 95 % interval over the seeds."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = metric_columns(measured)
    for heading in ("arm", "seeds", *(f"{task}: {metric}" for task, metric in columns), "training s"):
        table.add_column(Text(heading), justify="left" if heading == "arm" else "right")
    floors = measured[0].floors
    table.add_row("floor", "", *(number(floors[task].get(metric)) for task, metric in columns), "")
    for arm in dict.fromkeys(each.arm for each in measured):
        of_arm = [each for each in measured if each.arm == arm]
        seconds = [each.training_seconds for each in of_arm if each.training_seconds is not None]
        cells = [describe(arm_spread(measured, arm, task, metric)) for task, metric in columns]
        cost = f"{statistics.fmean(seconds):.0f}" if seconds else "-"
        table.add_row(Text(arm), str(len(of_arm)), *cells, cost)
    return table


def metric_columns(measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """(task, metric) of all that was measured."""
    return [(task, metric) for task, metrics in measured[0].metrics.items() for metric in metrics]


def describe(spread: Spread) -> str:
    return f"{spread.mean:.3f}" + ("" if spread.reach is None else f" ± {spread.reach:.3f}")


def study_verdict(measured: Sequence[Measured]) -> list[str]:
    """Each rung against the one below it: where the 95 % interval of the paired difference excludes zero."""
    arms = [arm for arm in dict.fromkeys(each.arm for each in measured) if arm != "untrained"]
    lines = []
    for before, after in itertools.pairwise(arms):
        shown, seeds = [], 0
        for task, metric in metric_columns(measured):
            change = paired_difference(measured, before, after, task, metric)
            if change is None:
                continue
            seeds = change.seeds
            if change.reach is not None and abs(change.mean) > change.reach:
                shown.append(f"{task} {metric} {change.mean:+.3f} ± {change.reach:.3f}")
        found = "; ".join(shown) if shown else "no difference shown"
        lines.append(f"{after} against {before} ({seeds} paired {'seed' if seeds == 1 else 'seeds'}): {found}.")
    return lines
