"""An audit in plain sentences that claim no more than its intervals show."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from graftlm.auditing.result import AuditResult, Change, TunedAudit
from graftlm.report.tables import capital

CAVEAT = (
    "Intervals are 95 % bootstrap intervals over the test examples, paired by example; they hold nothing of what "
    "another seed of the training would change."
)


def audit_verdict(result: AuditResult) -> list[str]:
    """Describe what was gained and lost, where the weights moved, and what restoring layers brings back, in a few
    sentences for each tuned model."""
    lines: list[str] = []
    for name, audited in result.named.items():
        for sentences in (_gain, _below_floor, _loss, _place, _restoration):
            lines += sentences(result, name, audited)
    lines += _between(result)
    return [*lines, CAVEAT]


def _gain(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    for task in result.tasks:
        where = f"on {task} ({result.base_results[task].count} examples)"
        shown = [change for change in audited.changes[task].values() if change.shown]
        for better, verb in ((True, "gained"), (False, "became worse")):
            if moved := [_moved(change) for change in shown if change.better == better]:
                yield f"{name} {verb} {where}: {'; '.join(moved)}."
        if not shown:
            yield f"{name} {where}: no difference shown."


def _below_floor(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    for task in result.tasks:
        for metric in audited.results[task].declared:
            value, floor = audited.results[task].metrics[metric.name], metric.floor
            # Where a trivial answer already reaches the best, nothing can beat it.
            if floor is not None and floor != metric.best and not metric.is_better(value - floor):
                values = f"{metric.label} {value:.3f}, floor {floor:.3f}"
                yield f"{name} does not beat a trivial answer on {task}: {values}."


def _loss(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    unchanged = []
    for probe in result.probes:
        shown = [_moved(change) for change in audited.changes[probe].values() if change.shown]
        retention = audited.retention.get(probe)
        measured = probe if retention is None else f"{probe}, retention {retention:.0%}"
        if shown:
            yield f"{name} on {measured}: {'; '.join(shown)}."
        else:
            unchanged.append(measured)
    if unchanged:
        yield f"No difference shown for {name} on: {', '.join(unchanged)}."
    if audited.divergence is not None:
        error = "" if audited.divergence_error is None else f" ± {audited.divergence_error:.3f} (standard error)"
        yield f"On text that the base model writes, {name} diverges by {audited.divergence:.3f}{error} nats per token."


def _place(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    groups: dict[str, list[float]] = {}
    for change in audited.weights:
        groups.setdefault(change.group, []).append(change.relative)
    means = {group: statistics.fmean(values) for group, values in groups.items()}
    changed = sum(mean > 0 for mean in means.values())
    if changed:
        largest = max(means, key=lambda group: means[group])
        yield (
            f"{name} changed weights in {changed} of the model's groups, most in {largest} (on average by "
            f"{means[largest]:.2%} of a weight's norm)."
        )
    elif means:
        yield f"No weight of {name} differs from the base model's."


def _restoration(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    if not audited.restoration:
        return
    shares = [(each.brought_back, each) for each in audited.restoration if each.brought_back is not None]
    share, best = max(shares, key=lambda pair: pair[0], default=(0.0, audited.restoration[0]))
    if not shares:
        yield f"The probes' answers are as likely under {name} as before: there is nothing to restore."
    elif share <= 0:
        yield f"Restoring no single group of layers of {name} brings back likelihood of the probes' answers."
    else:
        cost = "" if best.task_share is None else f", and leaves {best.task_share:.0%} of the task's gain"
        yield (
            f"Of the groups of layers of {name}, restoring {best.span} brings back most of the likelihood that the "
            f"probes' answers lost: {share:.0%} of it{cost}."
        )


def _between(result: AuditResult) -> Iterator[str]:
    """Compare each tuned model with the one before it: what differs, and on what nothing does."""
    for pair in result.between:
        names = f"{capital(result.short_names[pair.second])} against {result.short_names[pair.first]}"
        differing, unchanged = [], []
        for task, changes in pair.changes.items():
            shown = [
                f"{each.metric.label} {each.tuned:.3f} against {each.base:.3f} ({each.difference}: {each.word})"
                for each in changes.values()
                if each.shown
            ]
            if shown:
                differing.append(f"{task}: {'; '.join(shown)}")
            else:
                unchanged.append(task)
        if differing:
            yield f"{names} on {'. On '.join(differing)}."
        if unchanged:
            yield f"{names}: no difference that these examples show on {', '.join(unchanged)}."


def _moved(change: Change) -> str:
    return f"{change.metric.label} {change.base:.3f} → {change.tuned:.3f} ({change.difference})"
