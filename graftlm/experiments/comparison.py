"""All results of an experiment, and the differences between its arms: paired by seed, or by example where there is one
seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from graftlm.auditing.intervals import bootstrap_change, bootstrap_gap_closed, bootstrap_retention
from graftlm.auditing.result import Change, Estimate
from graftlm.auditing.retention import retention
from graftlm.experiments.arms import UNTRAINED, Arm
from graftlm.experiments.results import Result, spread
from graftlm.tasks import Metric, TaskResult

NO_WIDTH = 1e-9
"""Half width of an interval that is rounding."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two labels on all metrics: task -> metric -> change. `seeds`: how many are paired."""

    before: str
    after: str
    seeds: int
    changes: dict[str, dict[str, Change]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All results, the untrained model's first.

    `arms`: name -> arm. `tasks` show the gain, `probes` what is left of what was known. `baseline`: an arm that all
    later ones are compared with besides. `gap_to`: arms tuned directly, whose gain the others' is a share of.
    """

    every: Sequence[Result]
    arms: Mapping[str, Arm]
    tasks: Sequence[str]
    probes: Sequence[str]
    baseline: str | None = None
    gap_to: Sequence[str] = field(default_factory=list)

    @property
    def untrained(self) -> Result:
        return self.every[0]

    @cached_property
    def groups(self) -> dict[str, list[Result]]:
        """Label -> the results of its seeds, the untrained model's left out."""
        labels = dict.fromkeys(each.label for each in self.every if each.arm != UNTRAINED)
        return {name: [each for each in self.every if each.label == name] for name in labels}

    @property
    def columns(self) -> list[tuple[str, Metric]]:
        """(task, metric) of all that was measured."""
        return [(task, metric) for task, score in self.untrained.scores.items() for metric in score.declared]

    @property
    def gain(self) -> tuple[str, Metric] | None:
        """The first task, and the metric that its gain is read from."""
        return (self.tasks[0], self.untrained.scores[self.tasks[0]].gain_metric) if self.tasks else None

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The arms of `compared_arms`, strength by strength: like is compared with like, or with an arm without
        strengths, and where there is neither, with the untrained model."""
        comparisons: dict[tuple[str, str], Comparison] = {}
        for one, other in compared_arms(self.arms, self.baseline):
            for after in self.of_arm(other):
                alike = [before for before in self.of_arm(one) if comparable(before, after)]
                for before in alike or [[self.untrained]]:
                    pairs, labels = paired(before, after), (before[0].label, after[0].label)
                    changes = {task: changes_on(pairs, task) for task in self.untrained.scores}
                    comparisons[labels] = Comparison(
                        before=labels[0], after=labels[1], seeds=len(pairs), changes=changes
                    )
        return list(comparisons.values())

    def of_arm(self, arm: str) -> list[list[Result]]:
        """The groups of one arm, one for each strength."""
        if arm == UNTRAINED:
            return [[self.untrained]]
        return [group for group in self.groups.values() if group[0].arm == arm]

    def retention(self, group: Sequence[Result]) -> Estimate | None:
        """Mean retention over the probes and the seeds, with its interval over the seeds, or over the examples of a
        single seed; None where the untrained model knows nothing."""
        pairs = [[(self.untrained.scores[probe], each.scores[probe]) for probe in self.probes] for each in group]
        shares = [share for each in pairs if (share := mean_retention(each)) is not None]
        if not shares:
            return None
        mean = spread(shares)
        if mean.half_width is None:
            low, high = bootstrap_retention(pairs[0]) or (mean.mean, mean.mean)
        else:
            low, high = mean.mean - mean.half_width, mean.mean + mean.half_width
        return Estimate(value=mean.mean, low=low, high=high)

    def gaps_closed(self, group: Sequence[Result]) -> dict[str, Estimate | None]:
        """Arm of `gap_to` -> share of its gain that the group's first seed has; None where that arm gains nothing that
        its interval shows. (steered - untrained) / (tuned - untrained), arXiv 2401.08565, section 3.1."""
        return {arm: self._gap_closed(group[0], self.of_arm(arm)[0][0]) for arm in self.gap_to}

    def _gap_closed(self, result: Result, direct: Result) -> Estimate | None:
        if self.gain is None or result.arm in self.gap_to:
            return None
        task, metric = self.gain
        gap = bootstrap_change(self.untrained.scores[task], direct.scores[task], metric.name)
        if gap is None or not gap.better:
            return None
        base, steered, tuned = (each.scores[task] for each in (self.untrained, result, direct))
        return bootstrap_gap_closed(base, steered, tuned, metric.name)


def mean_retention(pairs: Sequence[tuple[TaskResult, TaskResult]]) -> float | None:
    shares = [share for pair in pairs if (share := retention(*pair)) is not None]
    return statistics.fmean(shares) if shares else None


def compared_arms(arms: Mapping[str, Arm], baseline: str | None = None) -> list[tuple[str, str]]:
    """(before, after): each trained arm and the one that it is from, or else the arm before it; then each later one and
    the baseline. A model that is only measured, and an arm on its own, are compared with the untrained model."""
    trained = [name for name, arm in arms.items() if arm.verb != "evaluate"]
    pairs = [(UNTRAINED, name) for name in arms if name not in trained or len(trained) == 1]
    for before, after in itertools.pairwise(trained):
        parent = arms[after].parent
        pairs.append((parent if parent is not None and parent in arms else before, after))
    if baseline is not None and baseline in trained:
        pairs += [(baseline, name) for name in trained[trained.index(baseline) + 1 :]]
    return list(dict.fromkeys(pairs))


def comparable(before: Sequence[Result], after: Sequence[Result]) -> bool:
    """Whether two groups have a seed in common, and the same strength unless one of them has none."""
    strengths = [before[0].strength, after[0].strength]
    return bool(paired(before, after)) and (strengths[0] == strengths[1] or not all(strengths))


def paired(before: Sequence[Result], after: Sequence[Result]) -> list[tuple[Result, Result]]:
    """The results of the same seeds; the untrained model goes with every seed."""
    if before[0].arm == UNTRAINED:
        return [(before[0], each) for each in after]
    by_seed = {each.seed: each for each in before}
    return [(by_seed[each.seed], each) for each in after if each.seed in by_seed]


def changes_on(pairs: Sequence[tuple[Result, Result]], task: str) -> dict[str, Change]:
    """Metric -> change of its mean over the pairs, of the metrics that are finite."""
    every = [change_of(pairs, task, metric) for metric in pairs[0][0].scores[task].declared]
    return {change.metric.name: change for change in every if change is not None}


def change_of(pairs: Sequence[tuple[Result, Result]], task: str, metric: Metric) -> Change | None:
    """The change of one metric with its interval: by the bootstrap for one pair, by Student's t for several.

    Where a few seeds happen to differ by the same number of right answers, the interval has no width, and nothing is
    shown: no width means no knowledge of the spread.
    """
    if len(pairs) == 1:
        return bootstrap_change(pairs[0][0].scores[task], pairs[0][1].scores[task], metric.name)
    ours, theirs = ([pair[side].value(task, metric.name) for pair in pairs] for side in (0, 1))
    difference = spread([after - before for before, after in zip(ours, theirs, strict=True)])
    if difference.half_width is None:
        return None
    return Change(
        metric=metric,
        base=statistics.fmean(ours),
        tuned=statistics.fmean(theirs),
        value=difference.mean,
        low=difference.mean - difference.half_width,
        high=difference.mean + difference.half_width,
        shown=NO_WIDTH < difference.half_width < abs(difference.mean),
        better=metric.is_better(difference.mean),
    )
