"""What a metric says of itself, so that nothing has to be guessed from its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from graftlm.errors import InputError

Kind = Literal["mean", "accuracy", "nll", "perplexity"]
HIGHER = {"accuracy": True, "nll": False, "perplexity": False}


@dataclass(frozen=True)
class Metric:
    """A measure of a task.

    `name` is its key in results and conditions, `label` its name in reports. `floor`: what a trivial answer reaches, an
    upper bound where lower is better; None where there is none. `best`: the value that nothing beats, if there is one.
    `kind` says how it follows from the examples:

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
        """What turns a difference so that more is better."""
        return 1 if self.higher_is_better else -1

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def gain_words(self) -> str:
        """What an axis says on which more is better."""
        if self.kind == "nll":
            return "nats per token saved"
        return self.label if self.higher_is_better else f"{self.label}, how far it fell"

    def is_better(self, difference: float) -> bool:
        """Whether a change by `difference` is for the better."""
        return self.sign * difference > 0


NLL = Metric("nll_per_token", "NLL per token", higher_is_better=False, kind="nll")
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, kind="perplexity")


def read_metrics(declared: Sequence[Any]) -> list[Metric]:
    """Metrics out of a JSON document."""
    return [each if isinstance(each, Metric) else Metric(**each) for each in declared]
