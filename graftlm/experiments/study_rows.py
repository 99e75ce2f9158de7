"""What a study measured, and one row for each arm: mean over the seeds, interval, cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftlm.experiments.study_config import BASELINE, BELOW
from graftlm.runs.console import number, signed
from graftlm.tasks import Metric, Task, TaskResult
from graftlm.tasks.metric import read_metrics

if TYPE_CHECKING:
    from rich.table import Table

UNTRAINED = "untrained"
NO_WIDTH = 1e-9  # below it an interval is rounding

# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training (or the untrained model) with what it scored: task -> metric -> value. `declared`: task -> what its
    metrics say of themselves."""

    arm: str
    seed: int
    metrics: dict[str, dict[str, float]]
    declared: Mapping[str, Sequence[Metric]]
    floors: dict[str, dict[str, float]]
    counts: dict[str, int]
    training_seconds: float | None = None
    training_loss: float | None = None

    def result(self, task: str) -> TaskResult:
        """What it scored on one task, without the examples."""
        return TaskResult(
            task=task,
            metrics=self.metrics[task],
            declared=self.declared[task],
            floors=self.floors[task],
            count=self.counts[task],
            seconds=0.0,
        )


def read_measured(document: Mapping[str, Any], tasks: Sequence[Task]) -> Measured:
    """A training out of its JSON document, where null is a number that is not finite. In older documents metrics say
    nothing of themselves: then `tasks` do."""
    metrics = {
        task: {name: math.nan if value is None else value for name, value in values.items()}
        for task, values in document["metrics"].items()
    }
    declared = document.get("declared") or {task.name: task.metrics for task in tasks}
    read = {task: read_metrics(each) for task, each in declared.items()}
    return Measured(**{**document, "metrics": metrics, "declared": read})


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
    if not all(map(math.isfinite, values)):
        return Spread(mean=math.nan, reach=None, seeds=len(values))
    if len(values) == 1:
        return Spread(mean=values[0], reach=None, seeds=1)
    reach = quantile_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean=statistics.fmean(values), reach=reach, seeds=len(values))


def quantile_975(freedom: int) -> float:
    """Of Student's t; beyond the table by the expansion in 1 / freedom, which is right to 0.2 % there."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def arm_spread(measured: Sequence[Measured], arm: str, task: str, metric: str) -> Spread:
    return spread([each.metrics[task][metric] for each in measured if each.arm == arm])


def paired_difference(measured: Sequence[Measured], before: str, after: str, task: str, metric: str) -> Spread | None:
    """`after` - `before` over the seeds that both have; None without one."""
    values = {arm: {e.seed: e.metrics[task][metric] for e in measured if e.arm == arm} for arm in (before, after)}
    common = sorted(values[before].keys() & values[after].keys())
    return spread([values[after][seed] - values[before][seed] for seed in common]) if common else None


def trained_arms(measured: Sequence[Measured]) -> list[str]:
    return [arm for arm in dict.fromkeys(each.arm for each in measured) if arm != UNTRAINED]


def training_seconds(measured: Sequence[Measured], arm: str) -> float | None:
    """Of the fastest training of the arm, which other work on the machine disturbed least."""
    seconds = [e.training_seconds for e in measured if e.arm == arm and e.training_seconds is not None]
    return min(seconds) if seconds else None


def study_table(measured: Sequence[Measured]) -> Table:
    """A row each arm, a column each metric; mean ± half the 95 % interval over the seeds."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = metric_columns(measured)
    for heading in ("arm", "seeds", *(f"{task}: {metric.name}" for task, metric in columns), "seconds, fastest"):
        table.add_column(Text(heading), justify="left" if heading == "arm" else "right")
    table.add_row("floor", "", *(number(metric.floor) for _, metric in columns), "")
    for arm in dict.fromkeys(each.arm for each in measured):
        spreads = [arm_spread(measured, arm, task, metric.name) for task, metric in columns]
        seconds = training_seconds(measured, arm)
        cost = "-" if seconds is None else f"{seconds:.0f}"
        table.add_row(Text(arm), str(spreads[0].seeds), *map(describe, spreads), cost)
    return table


def metric_columns(measured: Sequence[Measured]) -> list[tuple[str, Metric]]:
    """(task, metric) of all that was measured."""
    return [(task, metric) for task in measured[0].metrics for metric in measured[0].result(task).declared]


def describe(spread: Spread) -> str:
    return f"{spread.mean:.3f}" + ("" if spread.reach is None else f" ± {spread.reach:.3f}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`change`: `after` - `before`, paired by seed. `shown`: its 95 % interval leaves out zero, and has a width: where
    a few seeds happen to differ by the same number of right answers, no width means no knowledge of the spread."""

    before: str
    after: str
    task: str
    metric: Metric
    change: Spread

    @property
    def shown(self) -> bool:
        return self.change.reach is not None and NO_WIDTH < self.change.reach < abs(self.change.mean)

    @property
    def better(self) -> bool:
        return self.metric.is_better(self.change.mean)


def compared_arms(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after): each arm and the rung below it, then each later one and plain next-token LoRA."""
    rungs = [(BELOW[arm] if BELOW.get(arm) in arms else below, arm) for below, arm in itertools.pairwise(arms)]
    later = arms[arms.index(BASELINE) + 1 :] if BASELINE in arms else []
    return [*rungs, *((BASELINE, arm) for arm in later if (BASELINE, arm) not in rungs)]


def comparisons(measured: Sequence[Measured]) -> list[Comparison]:
    """Of all pairs of `compared_arms` on all metrics, where both have a seed in common."""
    found = []
    for before, after in compared_arms(trained_arms(measured)):
        for task, metric in metric_columns(measured):
            change = paired_difference(measured, before, after, task, metric.name)
            if change is not None:
                found.append(Comparison(before=before, after=after, task=task, metric=metric, change=change))
    return found


def study_verdict(measured: Sequence[Measured]) -> list[str]:
    """A sentence for each pair of arms: what differs between them, as far as the seeds show it."""
    every = comparisons(measured)
    lines = []
    for (before, after), group in itertools.groupby(every, key=lambda each: (each.before, each.after)):
        pairs = list(group)
        shown = [
            f"{each.task} {each.metric.label} {signed(each.change.mean)} ± {each.change.reach:.3f} "
            f"({'better' if each.better else 'worse'})"
            for each in pairs
            if each.shown
        ]
        seeds = pairs[0].change.seeds
        found = "; ".join(shown) if shown else "no difference shown"
        lines.append(f"{after} against {before} ({seeds} paired {'seed' if seeds == 1 else 'seeds'}): {found}.")
    if every:
        lines.append(
            f"± is half the 95 % interval of Student's t over the seeds, paired by seed. Of the {len(every)} "
            f"differences looked at, about {max(1, round(0.05 * len(every)))} would be called one by chance alone."
        )
    return lines
