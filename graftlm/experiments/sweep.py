"""The frontier of proxy-tuning: for each alpha what it wins on the tasks, and what is left of what the base model knew.

Beside it stand what it competes with: the expert alone, and models tuned directly. Of the gap between the base model
and a directly tuned one, a steered model closes (arXiv 2401.08565, section 3.1)

    (steered - base) / (tuned - base)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftlm.auditing.audit import DEFAULT_PROBES
from graftlm.auditing.comparison import compare_results
from graftlm.auditing.intervals import bootstrap_gap_closed
from graftlm.auditing.result import Change, Estimate, TunedAudit, short_names
from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.models.pair_loading import opened_pair
from graftlm.proxy.alpha import check_alpha
from graftlm.proxy.model import ProxyTunedModel
from graftlm.runs.console import Report, prefixed
from graftlm.tasks import Metric, Task, TaskResult, get_task
from graftlm.tasks.evaluation import evaluate

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was measured. `steered`: by alpha. `tuned`: the models that were tuned directly, by name.

    `gap_closed`: directly tuned model -> alpha -> share of its gain on the first task, read from
    `metric`; without the models that gain nothing.
    """

    base: str
    expert: str
    antiexpert: str | None
    tasks: list[str]
    probes: list[str]
    base_results: dict[str, TaskResult]
    steered: dict[float, TunedAudit]
    expert_alone: TunedAudit
    tuned: dict[str, TunedAudit]
    gap_closed: dict[str, dict[float, Estimate]]
    seconds: float
    settings: dict[str, Any]

    @property
    def metric(self) -> Metric:
        """What the gain on the first task is read from."""
        return self.base_results[self.tasks[0]].gain_metric

    def change(self, audited: TunedAudit) -> Change | None:
        """What `audited` gained on the first task."""
        return audited.changes[self.tasks[0]].get(self.metric.name)

    @property
    def models(self) -> dict[str, TunedAudit]:
        """Name -> all that was measured against the base model, steered ones first."""
        return {**{f"α = {alpha:g}": audited for alpha, audited in self.steered.items() if alpha}, **self.others}

    @property
    def others(self) -> dict[str, TunedAudit]:
        """What a steered model competes with, by short name."""
        short = short_names(list(self.tuned))
        return {"expert alone": self.expert_alone, **{short[name]: audited for name, audited in self.tuned.items()}}

    def closed(self, audited: TunedAudit, name: str) -> Estimate | None:
        """Share of the gap to the directly tuned model `name` that a steered model closes."""
        alpha = next((alpha for alpha, each in self.steered.items() if each is audited), None)
        return None if alpha is None else self.gap_closed.get(name, {}).get(alpha)


def sweep(
    base: str,
    expert: str,
    antiexpert: str | None = None,
    tuned: Sequence[str] = (),
    *,
    alphas: Sequence[float] = ALPHAS,
    tasks: Sequence[str | Task],
    probes: Sequence[str | Task] = DEFAULT_PROBES,
    limit: int | None = 100,
    batch_size: int = 32,
    seed: int = 0,
    progress: Report | None = None,
) -> Sweep:
    """Measure `base` steered by `expert` - `antiexpert` at each of `alphas`.

    Names are as `load_model` takes them; the other arguments as of `graftlm.auditing.audit`. Each model is loaded once.
    alpha = 0 is the base model, which is measured in any case.

    Raises InputError for alphas that are not finite or given twice, no task, and whatever `ProxyTunedModel`, `audit`
    and `evaluate` refuse.
    """
    begun = time.monotonic()
    chosen = check_alphas(alphas)
    if not tasks:
        raise InputError("no task is given: name what the expert was tuned for")
    kinds = [[get_task(each) if isinstance(each, str) else each for each in kind] for kind in (tasks, probes)]
    names = [[each.name for each in kind] for kind in kinds]
    model, tokenizer = load_model(base)
    steered = ProxyTunedModel(model, expert, antiexpert, tokenizer=tokenizer)
    assert steered.experts is not None  # alpha is 1 until it is set

    def measured(which: Any, name: str) -> dict[str, TaskResult]:
        return evaluate(
            which, tokenizer, [*kinds[0], *kinds[1]], limit=limit, batch_size=batch_size, seed=seed,
            progress=None if progress is None else prefixed(progress, name),
        )  # fmt: skip

    opened = {}  # measured first, so that a name that does not exist is found at once
    for name in tuned:
        with opened_pair(model, tokenizer, base, name) as pair, pair.tuned() as other:
            opened[name] = measured(other, name)
    reference = measured(model, "base")

    def compared(results: Mapping[str, TaskResult]) -> TunedAudit:
        return compare_results(reference, results, names[1], seed)

    by_alpha = {}
    for alpha in sorted({0.0, *chosen}):
        steered.alpha = alpha
        by_alpha[alpha] = compared(measured(steered, f"alpha {alpha:g}") if alpha else reference)
    alone = compared(measured(steered.experts.expert_model, "expert alone"))
    directly = {name: compared(results) for name, results in opened.items()}
    found = {name: _gap_closed(reference, by_alpha, audited, names[0][0], seed) for name, audited in directly.items()}
    return Sweep(
        base=base,
        expert=expert,
        antiexpert=antiexpert,
        tasks=names[0],
        probes=names[1],
        base_results=reference,
        steered=by_alpha,
        expert_alone=alone,
        tuned=directly,
        gap_closed={name: shares for name, shares in found.items() if shares},
        seconds=time.monotonic() - begun,
        settings={"limit": limit, "batch_size": batch_size, "seed": seed},
    )


def check_alphas(alphas: Sequence[float]) -> list[float]:
    """In order. InputError unless there is one besides 0, all are finite and no two the same."""
    chosen = [check_alpha(alpha) for alpha in alphas]
    numbers = sorted(alpha for alpha in chosen if not callable(alpha))
    for first, second in itertools.pairwise(numbers):
        if first == second:
            raise InputError(f"alpha {first:g} is given twice; give each one once")
    if not any(numbers):
        raise InputError("no alpha besides 0 is given: there is nothing to sweep")
    return numbers


def _gap_closed(
    base: Mapping[str, TaskResult], steered: Mapping[float, TunedAudit], tuned: TunedAudit, task: str, seed: int
) -> dict[float, Estimate]:
    """alpha -> share of the gap; empty where `tuned` gains nothing that its interval shows."""
    metric = base[task].gain_metric.name
    change = tuned.changes[task].get(metric)
    if change is None or not change.shown or not change.better:
        return {}
    shares = {
        alpha: bootstrap_gap_closed(base[task], audited.results[task], tuned.results[task], metric, seed=seed)
        for alpha, audited in steered.items()
    }
    return {alpha: share for alpha, share in shares.items() if share is not None}
