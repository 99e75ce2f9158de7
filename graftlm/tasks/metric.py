"""Metric: a measure that declares its direction, floor and kind, so that nothing is guessed from its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from graftlm.errors import InputError

Kind = Literal["mean", "accuracy", "nll", "perplexity"]
HIGHER = {"accuracy": True, "nll": False, "perplexity": False}


@dataclass(frozen=True)
class Metric:
    """A measure of a task.

    `name` is its key in results and conditions, `label` its name in reports. `floor`: the value that a trivial answer
    reaches, an upper bound where lower is better; None where there is none. `best`: the value that nothing beats, if
    there is one. `kind` says how it follows from the examples:

    - "mean": the mean of their values under its name;
    - "accuracy": the same, as the share of right answers; retention is read from it;
    - "nll": the sum of their "nll" over the sum of their "tokens", in nats; gain is read from it, and retention where
      no answer is right;
    - "perplexity": the exponential of that.
    """

    name: str
    label: str
    _: KW_ONLY
    higher_is_better: bool
    floor: float | None = None
    best: float | None = None
    kind: Kind = "mean"

    def __post_init__(self) -> None:
        if HIGHER.get(self.kind, self.higher_is_better) != self.higher_is_better:
            way = "higher" if HIGHER[self.kind] else "lower"
            raise InputError(f"metric {self.name!r} is of the kind {self.kind!r}, of which {way} is better")

    @property
    def sign(self) -> int:
        """Factor that turns a difference so that more is better."""
        return 1 if self.higher_is_better else -1

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def gain_words(self) -> str:
        """Label of an axis on which more is better."""
        if self.kind == "nll":
            return "nats per token saved"
        return self.label if self.higher_is_better else f"{self.label}, how far it fell"

    def is_better(self, difference: float) -> bool:
        """Whether a change by `difference` is for the better."""
        return self.sign * difference > 0

    @property
    def needs_likelihood(self) -> bool:
        return self.kind in ("nll", "perplexity")

    def value(self, examples: Sequence[Mapping[str, Any]]) -> float | None:
        """Value over these examples (at least one), as the kind says; None where the first does not have it."""
        if not self.needs_likelihood:
            measured = self.name in examples[0]
            return sum(example[self.name] for example in examples) / len(examples) if measured else None
        if "nll" not in examples[0]:
            return None
        nll = sum(example["nll"] for example in examples) / max(sum(example["tokens"] for example in examples), 1)
        return nll if self.kind == "nll" else math.exp(min(nll, 700.0))


NLL = Metric("nll_per_token", "NLL per token", higher_is_better=False, kind="nll")
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, kind="perplexity")


def read_metrics(declared: Sequence[Any]) -> list[Metric]:
    """Metrics as a JSON document holds them."""
    return [each if isinstance(each, Metric) else Metric(**each) for each in declared]
