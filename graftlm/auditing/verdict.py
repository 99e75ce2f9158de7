"""An audit in plain sentences that claim no more than its intervals show."""

from __future__ import annotations

from collections.abc import Iterator

from graftlm.auditing.result import AuditResult, Change, Restored, TunedAudit
from graftlm.report.tables import capital
from graftlm.runs.console import signed


def audit_verdict(result: AuditResult) -> list[str]:
    """What was gained and lost, where the weights moved, and what restoring layers brings back; a few sentences for
    each tuned model."""
    lines = []
    for full_name, audited in result.tuned.items():
        name = result.short_names[full_name]
        lines += [
            *_gain(result, name, audited),
            *_below_floor(result, name, audited),
            *_loss(result, name, audited),
            *_place(name, audited),
            *_restoration(name, audited),
        ]
    lines += _between(result)
    lines.append(
        "Intervals are 95 % bootstrap intervals over the test examples, paired by example; they hold nothing of what "
        "another seed of the training would change."
    )
    return lines


def _gain(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    for task in result.tasks:
        changes = audited.changes[task]
        better = [_moved(change) for change in changes.values() if change.shown and change.better]
        worse = [_moved(change) for change in changes.values() if change.shown and not change.better]
        count = result.base_results[task].count
        if better:
            yield f"{name} gained on {task} ({count} examples): {'; '.join(better)}."
        if worse:
            yield f"{name} became worse on {task} ({count} examples): {'; '.join(worse)}."
        if not better and not worse:
            yield f"{name} on {task} ({count} examples): no difference shown."


def _below_floor(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    for task in result.tasks:
        for metric in audited.results[task].declared:
            value, floor = audited.results[task].metrics[metric.name], metric.floor
            # Where a trivial answer already reaches the best, nothing can beat it.
            if floor is not None and floor != metric.best and not metric.is_better(value - floor):
                found = f"{metric.label} {value:.3f}, floor {floor:.3f}"
                yield f"{name} does not beat a trivial answer on {task}: {found}."


def _between(result: AuditResult) -> Iterator[str]:
    """Each tuned model against the one before it: what differs, and on what nothing does."""
    for pair in result.between:
        names = f"{capital(result.short_names[pair.second])} against {result.short_names[pair.first]}"
        found, quiet = [], []
        for task, changes in pair.changes.items():
            shown = [
                f"{c.metric.label} {c.tuned:.3f} against {c.base:.3f} "
                f"({described(c)}: {'better' if c.better else 'worse'})"
                for c in changes.values()
                if c.shown
            ]
            if shown:
                found.append(f"{task}: {'; '.join(shown)}")
            else:
                quiet.append(task)
        if found:
            yield f"{names} on {'. On '.join(found)}."
        if quiet:
            yield f"{names}: no difference that these examples show on {', '.join(quiet)}."


def _loss(result: AuditResult, name: str, audited: TunedAudit) -> Iterator[str]:
    found, quiet = [], []
    for probe in result.probes:
        shown = [_moved(change) for change in audited.changes[probe].values() if change.shown]
        kept = audited.retention.get(probe)
        share = "" if kept is None else f", retention {kept:.0%}"
        if shown:
            found.append(f"{probe}{share}: {'; '.join(shown)}.")
        else:
            quiet.append(f"{probe}{share}")
    yield from (f"{name} on {line}" for line in found)
    if quiet:
        yield f"No difference shown for {name} on: {', '.join(quiet)}."
    if audited.divergence is not None:
        error = "" if audited.divergence_error is None else f" ± {audited.divergence_error:.3f} (standard error)"
        yield f"On text that the base model writes, {name} diverges by {audited.divergence:.3f}{error} nats per token."


def _place(name: str, audited: TunedAudit) -> Iterator[str]:
    moved = mean_changes(audited)
    if not moved or max(moved.values()) == 0:
        if moved:
            yield f"No weight of {name} differs from the base model's."
        return
    largest = max(moved, key=lambda group: moved[group])
    changed = [group for group, value in moved.items() if value > 0]
    yield (
        f"{name} changed weights in {len(changed)} of the model's groups, most in {largest} "
        f"(on average by {moved[largest]:.2%} of a weight's norm)."
    )


def mean_changes(audited: TunedAudit) -> dict[str, float]:
    """Group -> mean relative change of its weights."""
    groups: dict[str, list[float]] = {}
    for change in audited.weights:
        groups.setdefault(change.group, []).append(change.relative)
    return {group: sum(values) / len(values) for group, values in groups.items()}


def _restoration(name: str, audited: TunedAudit) -> Iterator[str]:
    known = [each for each in audited.restoration if each.probe_share is not None]
    if not known:
        if audited.restoration:
            yield f"The probes' answers are as likely under {name} as before: there is nothing to restore."
        return
    best = min(known, key=lambda each: each.probe_share or 0.0)
    back = 1 - (best.probe_share or 0.0)
    if back <= 0:
        yield f"Restoring no single group of layers of {name} brings back likelihood of the probes' answers."
        return
    cost = "" if best.task_share is None else f", and leaves {best.task_share:.0%} of the task's gain"
    yield (
        f"Of the groups of layers of {name}, restoring {span(best)} brings back most of the likelihood that the "
        f"probes' answers lost: {back:.0%} of it{cost}."
    )


def span(restored: Restored) -> str:
    first, last = restored.layers
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def _moved(change: Change) -> str:
    return f"{change.metric.label} {change.base:.3f} → {change.tuned:.3f} ({described(change)})"


def described(change: Change) -> str:
    """Such as "−0.002 [−0.020, +0.016]"."""
    if change.low is None or change.high is None:
        return signed(change.value)
    return f"{signed(change.value)} [{signed(change.low)}, {signed(change.high)}]"
