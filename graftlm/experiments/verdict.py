"""An experiment in sentences that claim no more than its intervals show."""

from __future__ import annotations

from graftlm.auditing.result import Estimate
from graftlm.experiments.arms import UNTRAINED
from graftlm.experiments.comparison import Comparison, Results


def experiment_verdict(results: Results) -> list[str]:
    """A sentence for each comparison, and what the intervals are of."""
    lines = []
    for each in results.comparisons:
        if each.before == UNTRAINED:
            lines.append(f"{each.after}: {gain_and_retention(results, each)}.")
            continue
        shown = [
            f"{task} {change.metric.label} {change.difference} ({'better' if change.better else 'worse'})"
            for task, changes in each.changes.items() for change in changes.values() if change.shown
        ]  # fmt: skip
        how = f"{each.seeds} paired seeds" if each.seeds > 1 else "one seed, paired by example"
        lines.append(f"{each.after} against {each.before} ({how}): {'; '.join(shown) or 'no difference shown'}.")
    return [*lines, *caveats(results)] if lines else []


def gain_and_retention(results: Results, comparison: Comparison) -> str:
    """The gain of a label over the untrained model on the first task, and its retention of what that model knew."""
    group, parts = results.groups[comparison.after], []
    if results.gain is not None:
        task, metric = results.gain
        if (change := comparison.changes[task].get(metric.name)) is not None:
            shown = "" if change.shown else ", no difference shown"
            moved = f"{change.base:.3f} → {change.tuned:.3f} ({change.difference}{shown})"
            parts.append(f"{metric.label} on {task} {moved}")
    if (retention := results.retention(group)) is not None:
        parts.append(f"retention {describe_share(retention)}")
    for arm, share in results.gaps_closed(group).items():
        parts += [f"{describe_share(share)} of the gap to {arm} closed"] if share else []
    return "; ".join(parts)


def caveats(results: Results) -> list[str]:
    seeds = {each.seeds for each in results.comparisons}
    count = sum(len(changes) for each in results.comparisons for changes in each.changes.values())
    lines = []
    if max(seeds) > 1:
        lines.append("Intervals are 95 % intervals of Student's t over the seeds, paired by seed.")
    if 1 in seeds:
        lines.append(
            "Intervals of one seed are 95 % bootstrap intervals over the test examples, paired by example; they hold "
            "nothing of what another seed of a training would change."
        )
    chance = max(1, round(0.05 * count))
    lines.append(f"Of the {count} differences looked at, about {chance} would be called one by chance alone.")
    if any(each.strength for each in results.every):
        lines.append("A strength that did best here looks better than it is: choose it on other examples.")
    return lines


def describe_share(share: Estimate | None) -> str:
    """ "71% [65%, 77%]" """
    return "-" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
