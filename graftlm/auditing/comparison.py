"""Compare what two models scored: changes, facts won and lost, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftlm.auditing.intervals import bootstrap_change, bootstrap_retention
from graftlm.auditing.result import Change, TunedAudit
from graftlm.auditing.retention import facts_changed, retention
from graftlm.tasks import TaskResult

Results = Mapping[str, TaskResult]
"""Task or probe -> what a model scored on it."""


def compare_results(base: Results, results: Results, probes: Sequence[str], seed: int = 0) -> TunedAudit:
    """The part of an audit that needs no model. `seed`: that of the bootstrap."""
    shares = {probe: retention(base[probe], results[probe]) for probe in probes}
    return TunedAudit(
        results=dict(results),
        changes=changes(base, results, seed),
        facts={probe: facts_changed(base[probe], results[probe]) for probe in probes},
        retention={probe: share for probe, share in shares.items() if share is not None},
        retention_bounds=bootstrap_retention([(base[probe], results[probe]) for probe in probes], seed=seed),
    )


def changes(before: Results, after: Results, seed: int = 0) -> dict[str, dict[str, Change]]:
    """Task or probe -> metric -> change, without metrics that cannot be compared."""
    changed: dict[str, dict[str, Change]] = {}
    for task, result in before.items():
        each = [bootstrap_change(result, after[task], metric, seed=seed) for metric in result.metrics]
        changed[task] = {change.metric.name: change for change in each if change is not None}
    return changed
