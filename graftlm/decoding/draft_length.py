"""How many tokens heads draft: how often drafts are accepted, against what they cost.

    speed(m) = (1 + Σ_{k=1..m} a_1 ⋯ a_k) / (1 + c (b (1 + m) − 1) + h)         speed(0) = 1 / (1 + c (b − 1))

in tokens of each text for the cost of a pass over one token. a_k: how often the draft of head k is accepted where those
before it are, a moving average; c: what a further token adds to a pass; h: what the heads cost; b: texts in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

TOKEN_COST = {"cpu": (0.2, 0.5), "other": (0.03, 0.05)}
"""c in greedy decoding, and in sampling, which processes the logits of each token."""
HEADS_COST = 0.6
"""h for heads with as many parameters as the model. Chosen with the numbers below in simulations of recorded drafts."""
FIRST_RATE, FIRST_WEIGHT, MEMORY = 0.6, 4, 60
"""Acceptance rate before any draft, the number of drafts that it counts as, and how many drafts a rate remembers."""
PATIENCE = 12
"""Rounds in a row that do not pay, after which the heads rest for the call."""
RETRY = 8
"""Calls, of those in which the heads would rest from the beginning, until their rates are measured anew."""


class DraftLength:
    """Chooses the number of drafted tokens, and whether the heads are used in a call at all.

    `heads_cost` (h), `token_cost` (c): in passes over one token. The choice follows from the texts alone, not from a
    clock, so that a seed gives the same samples again.
    """

    def __init__(self, heads: int, heads_cost: float, token_cost: float) -> None:
        self.heads_cost, self.token_cost = heads_cost, token_cost
        self.rates, self.seen = [FIRST_RATE] * heads, [FIRST_WEIGHT] * heads
        self.unpaid = self.rested = 0

    def begin(self, batch: int) -> bool:
        """Begin a call on so many texts; returns whether the heads are used in it."""
        self.unpaid = 0
        if self.best(batch):
            return True
        self.rested += 1
        if self.rested % RETRY:
            return False
        self.rates, self.seen = [FIRST_RATE] * len(self.rates), [FIRST_WEIGHT] * len(self.rates)
        return self.best(batch) > 0

    def learn(self, drafted: int, accepted: Sequence[int]) -> None:
        """Take note of a round: tokens drafted for each text, and of them accepted, text by text."""
        for count in accepted:
            for head in range(min(count + 1, drafted)):
                self.seen[head] = min(self.seen[head] + 1, MEMORY)
                self.rates[head] += ((count > head) - self.rates[head]) / self.seen[head]

    def choose(self, batch: int) -> int:
        """The number of tokens to draft next; 0 where drafts have not paid for some rounds."""
        best = self.best(batch)
        self.unpaid = 0 if best else self.unpaid + 1
        return 0 if self.unpaid > PATIENCE else max(best, 1)

    def best(self, batch: int) -> int:
        """The number of drafted tokens that yields the highest speed; 0 where that is no draft and no heads."""
        expected = reached = 1.0
        speeds = [1 / (1 + self.token_cost * (batch - 1))]
        for drafted, rate in enumerate(self.rates, start=1):
            reached *= rate
            expected += reached
            speeds.append(expected / (1 + self.token_cost * (batch * (1 + drafted) - 1) + self.heads_cost))
        return max(range(len(speeds)), key=speeds.__getitem__)
