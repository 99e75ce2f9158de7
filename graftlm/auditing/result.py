"""The result of an audit as plain data, from which the report and the terminal take each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.runs.console import signed
from graftlm.tasks import Metric, TaskResult


@dataclass(frozen=True, kw_only=True)
class Change:
    """`metric` of the tuned model against the base model's, on the same examples.

    `value` = tuned - base; [`low`, `high`] its 95 % bootstrap interval, paired by example (both None where the
    examples hold no values of their own). `shown`: zero lies outside the interval. `better`: in the metric's own sense.
    """

    metric: Metric
    base: float
    tuned: float
    value: float
    low: float | None
    high: float | None
    shown: bool
    better: bool

    @property
    def word(self) -> str:
        return "better" if self.better else "worse"

    @property
    def gain(self) -> tuple[float, float | None, float | None]:
        """(value, low, high), turned so that more is better."""
        if self.metric.higher_is_better or self.low is None or self.high is None:
            return self.metric.sign * self.value, self.low, self.high
        return -self.value, -self.high, -self.low

    @property
    def difference(self) -> str:
        """The value with its interval, such as "−0.002 [−0.020, +0.016]"."""
        if self.low is None or self.high is None:
            return signed(self.value)
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FactsChanged:
    """Examples of the tuned model (as in `TaskResult.examples`) whose answer became wrong or right; `kept`: how many
    are right in both models."""

    lost: list[dict[str, Any]]
    won: list[dict[str, Any]]
    kept: int


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """||tuned - base|| / ||base|| (Frobenius) of one weight; `group`: "embedding", "layer 7", "final norm",
    "unembedding" or "other"; `module`: its name in the group, such as "self_attn.q_proj"."""

    group: str
    module: str
    relative: float


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """Difference of a decoder layer's outputs on general text: linear CKA and mean cosine, 1 where nothing
    changed."""

    layer: int
    cka: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The tuned model with the base model's weights in `layers` (first, last; inclusive).

    `task_share`, `probe_share`: what is left of the tuning's gain on the task, and of its cost on the probes: 1 in the
    tuned model, 0 in the base model, None where tuning changed nothing to speak of. `task`, `probes`: NLL per token.
    """

    layers: tuple[int, int]
    task: dict[str, float]
    probes: dict[str, float]
    task_share: float | None
    probe_share: float | None

    @property
    def span(self) -> str:
        """The layers in words, such as "layers 0–4"."""
        first, last = self.layers
        return f"layer {first}" if first == last else f"layers {first}–{last}"

    @property
    def brought_back(self) -> float | None:
        """Share of the probes' loss that the restoration undoes."""
        return None if self.probe_share is None else 1 - self.probe_share


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Outputs of one model on the same prompts, sampled at temperature 1.

    `distinct`: distinct outputs / outputs. `start_entropy`: mean entropy in nats of the first token's distribution.
    `formats`: share of the outputs in each named format ("other": in none).
    """

    distinct: float
    start_entropy: float
    formats: dict[str, float]
    outputs: int


@dataclass(frozen=True, kw_only=True)
class TunedAudit:
    """One tuned model against the base model. Outer keys of `changes`, `facts`, `retention`: task or probe name.

    `divergence`: mean KL(base || tuned) in nats per token of text that the base model wrote, and its standard error
    over texts. `retention`: see graftlm/auditing/retention.py; `retention_bounds`: the 95 % bootstrap interval of its
    mean over the probes.
    """

    results: dict[str, TaskResult]
    changes: dict[str, dict[str, Change]]
    facts: dict[str, dict[str, FactsChanged]]
    retention: dict[str, float]
    retention_bounds: tuple[float, float] | None = None
    divergence: float | None = None
    divergence_error: float | None = None
    weights: list[WeightChange] = field(default_factory=list)
    drift: list[LayerDrift] = field(default_factory=list)
    restoration: list[Restored] = field(default_factory=list)
    diversity: Diversity | None = None

    @property
    def mean_retention(self) -> float | None:
        """Mean of `retention` over the probes."""
        return sum(self.retention.values()) / len(self.retention) if self.retention else None


@dataclass(frozen=True, kw_only=True)
class TunedPair:
    """Two tuned models against one another: as `TunedAudit.changes`, with `first` as the base model."""

    first: str
    second: str
    changes: dict[str, dict[str, Change]]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """An audit of one or several models tuned from one base model.

    `tasks`: what was tuned for. `probes`: what should have been left alone. `between`: each tuned model against the one
    before it, in the order given. `seconds`: wall-clock time by part. `settings`: what the audit was asked for.
    """

    base: str
    tasks: list[str]
    probes: list[str]
    base_results: dict[str, TaskResult]
    base_diversity: Diversity | None
    tuned: dict[str, TunedAudit]
    between: list[TunedPair] = field(default_factory=list)
    seconds: dict[str, float]
    settings: dict[str, Any]

    @property
    def short_names(self) -> dict[str, str]:
        """Tuned model -> its name without the folders before it ("demo/multi-token/model" -> "multi-token")."""
        return short_names(list(self.tuned))

    @property
    def named(self) -> dict[str, TunedAudit]:
        """Short name -> tuned model."""
        return dict(zip(self.short_names.values(), self.tuned.values(), strict=True))

    @property
    def columns(self) -> list[str]:
        """Headings: the tuned models, and then the pairs of `between`."""
        names = self.short_names
        return [*names.values(), *(f"{names[pair.second]} − {names[pair.first]}" for pair in self.between)]

    def changes(self, task: str, metric: str) -> tuple[list[Change | None], list[Change | None]]:
        """The change of one metric in each tuned model, and in each pair of `between`."""
        models, pairs = self.tuned.values(), self.between
        return [m.changes[task].get(metric) for m in models], [p.changes[task].get(metric) for p in pairs]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> the last part of it that says something (of a steered model, the base model's and the expert's), or the
    whole where two (or "base") would be called the same."""
    short = {name: " + ".join(map(_last_part, name.split(" + "))) for name in names}
    taken = Counter(["base", *short.values()])
    return {name: last if taken[last] == 1 else name for name, last in short.items()}


def _last_part(name: str) -> str:
    return next((part for part in reversed(Path(name).parts) if part not in ("/", "model")), name)
