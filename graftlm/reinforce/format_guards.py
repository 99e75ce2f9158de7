"""Guards against format collapse: rewards reshaped so that RL does not bury a format.

With r_i the reward of a completion of format f, and shares measured over the rollout batch of all devices:

    WithinFormat       r_i − mean(r of format f) + mean(r)          formats do not compete, only completions within them
    FormatDivergence   r_i − c · ln(share_f / start_f)              the policy gradient of c · KL(shares ‖ start shares)

The first makes the formats' means alike over the batch. GRPO then subtracts each prompt's mean, so that a format which
has most of the hard prompts is still favoured a little on the easy ones. The second has the policy gradient of −KL:
∇ Σ_f p_f ln(p_f/q_f) = E[∇ ln π · (ln(p_f/q_f) + 1)], whose constant falls out in the advantage. Where GRPO divides by
a group's standard deviation (`scale_rewards="group"`), a group whose rewards are all alike is driven by the guard
alone; `scale_rewards="batch"` or `"none"` keeps its size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from graftlm.errors import InputError


class Guard(Protocol):
    """Rewards [n] and the format of each completion in, shaped rewards [n] out."""

    def shaped(self, rewards: Sequence[float], names: Sequence[str], start: Mapping[str, float]) -> list[float]:
        """start: share of each format in the start model's completions."""
        ...


@dataclass(frozen=True)
class WithinFormat:
    """A completion is compared with those of its own format."""

    def shaped(self, rewards: Sequence[float], names: Sequence[str], start: Mapping[str, float]) -> list[float]:
        counts = Counter(names)
        totals: Counter[str] = Counter()
        for reward, name in zip(rewards, names, strict=True):
            totals[name] += reward  # type: ignore[assignment]  # a Counter of floats
        mean = sum(rewards) / max(len(rewards), 1)
        return [reward - totals[name] / counts[name] + mean for reward, name in zip(rewards, names, strict=True)]


@dataclass(frozen=True)
class FormatDivergence:
    """A completion pays for how far its format's share has grown beyond the start model's, and gains where it shrank.

    coefficient: c, in rewards per nat.
    """

    coefficient: float = 0.3

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise InputError(f"the coefficient of the format guard is {self.coefficient}, but it must be positive")

    def shaped(self, rewards: Sequence[float], names: Sequence[str], start: Mapping[str, float]) -> list[float]:
        counts, total = Counter(names), len(names)
        # Half a completion is added to each format, so that one that the start model never wrote costs no infinity.
        price = {
            name: self.coefficient * math.log((counts[name] + 0.5) / (start.get(name, 0.0) * total + 0.5))
            for name in counts
        }
        return [reward - price[name] for reward, name in zip(rewards, names, strict=True)]
