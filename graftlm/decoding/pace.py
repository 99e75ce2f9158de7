"""How many tokens are worth drafting, by how often they were kept and how long passes took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROW_COST = {True: 0.2, False: 0.03}
"""What one more row adds to a pass of the model, in passes, on a CPU and elsewhere, until it is measured."""
PROCESSING_COST = {True: 0.15, False: 0.02}
"""What processing the logits of one more row adds, where tokens are sampled."""
PRIOR_RATE, PRIOR_WEIGHT = 0.6, 4.0
MEMORY = 40.0
"""Drafts that a rate remembers."""
SMOOTHING = 0.2
"""Of the newest measurement of a time, in its moving average."""
TRY_PLAIN = 24
"""Every so many rounds one without a draft, so that its time is known."""
PATIENCE = 6
"""Rounds in a row without a draft after which the heads rest for the call."""
LONGEST_REST = 32


class Times(dict[tuple[int, int], float]):
    """Moving averages of seconds."""

    def __init__(self, values: Iterable[tuple[tuple[int, int], float]] = ()) -> None:
        super().__init__(values)
        self.once: set[tuple[int, int]] = set()
        """Keys with a single measurement."""

    def learn(self, key: tuple[int, int], seconds: float) -> None:
        """The first measurement counts for no more than the second: the first pass of a shape can take many times as
        long, such as where a GPU loads its kernels."""
        if key not in self:
            self[key] = seconds
            self.once.add(key)
        elif key in self.once:
            self[key] = min(self[key], seconds)
            self.once.discard(key)
        else:
            self[key] += SMOOTHING * (seconds - self[key])


class Pace:
    """Decides `choose`, the number of tokens to draft, and `heads`, how many heads to keep at work in a call.

    `head_layers`, `unembedding`: the parameters of one head's layers and of the unembedding, as shares of the model's.
    `timed`: whether passes are timed, or estimated from those, so that a seed gives the same samples again.
    """

    def __init__(self, count: int, head_layers: float, unembedding: float, *, on_cpu: bool, timed: bool = True) -> None:
        self.count, self.head_layers, self.unembedding, self.on_cpu = count, head_layers, unembedding, on_cpu
        self.timed = timed
        self.kept = [PRIOR_RATE * PRIOR_WEIGHT] * count
        self.seen = [PRIOR_WEIGHT] * count
        self.reads = Times()
        """(batch, drafted) -> seconds of a pass with its check."""
        self.head_times = Times()
        """(batch, heads) -> seconds to run the heads and to draft."""
        self.heads = count
        self.resting = self.rest = 0
        self.rested = False
        self.rounds = self.idle = 0

    def fresh(self) -> Pace:
        """One that has learnt nothing and takes no times, so that a seed gives the same samples in every call."""
        return Pace(self.count, self.head_layers, self.unembedding, on_cpu=self.on_cpu, timed=False)

    def begin(self) -> None:
        """A call begins. Where the last ones gained nothing from the heads, most do without them."""
        if self.heads and self.rounds > PATIENCE:  # they were worth their while to the last call's end
            self.rest = 0
        self.rounds = self.idle = 0
        if self.resting > 0:
            self.resting -= 1
            self.heads, self.rested = 0, True
            return
        self.heads = self.count
        if self.rested:  # what was learnt before may not hold of this text
            self.rested = False
            self.kept, self.seen = [PRIOR_RATE * PRIOR_WEIGHT] * self.count, [PRIOR_WEIGHT] * self.count
            self.reads = Times((key, seconds) for key, seconds in self.reads.items() if key[1] == 0)

    def rate(self, head: int) -> float:
        """How often the draft of a head is kept when it is reached."""
        return self.kept[head] / self.seen[head]

    def learn(self, batch: int, drafted: int, kept: Sequence[int], seconds: float) -> None:
        """A pass over a batch, of whose `drafted` tokens each row kept so many."""
        if self.timed:
            self.reads.learn((batch, drafted), seconds)
        for count in kept:
            for head in range(min(count + 1, drafted)):
                self.kept[head] += count > head
                self.seen[head] += 1
        for head in range(self.count):
            if self.seen[head] > MEMORY:
                self.kept[head] *= MEMORY / self.seen[head]
                self.seen[head] = MEMORY

    def learn_heads(self, batch: int, heads: int, seconds: float) -> None:
        if self.timed:
            self.head_times.learn((batch, heads), seconds)

    def choose(self, batch: int) -> int:
        """The number of drafted tokens, up to `heads`, that yields most tokens a second; 0 for none."""
        if self.heads == 0:
            return 0
        self.rounds += 1
        if self.timed and (self.rounds % TRY_PLAIN == 2 or (batch, 0) in self.reads.once):
            return 0
        best, found = self.speed(batch, 0, heads=0), 0
        for drafted in range(1, self.heads + 1):
            speed = self.speed(batch, drafted, heads=self.heads)
            if speed > best:
                best, found = speed, drafted
        self.idle = 0 if found else self.idle + 1
        if self.idle >= PATIENCE:
            self.heads = 0
            self.rest = min(LONGEST_REST, 2 * self.rest + 1)
            self.resting = self.rest
        return found

    def speed(self, batch: int, drafted: int, *, heads: int) -> float:
        """Tokens of a row a second, at the rates and times known so far."""
        reached, expected = 1.0, 1.0
        for head in range(drafted):
            reached *= self.rate(head)
            expected += reached
        return expected / (self._read_seconds(batch, drafted) + self._head_seconds(batch, heads))

    def _read_seconds(self, batch: int, drafted: int) -> float:
        if (batch, drafted) in self.reads:
            return self.reads[batch, drafted]
        known = {other: seconds for (size, other), seconds in self.reads.items() if size == batch}
        if not known:
            return self._cost(batch, drafted)
        nearest = min(known, key=lambda other: abs(other - drafted))
        return known[nearest] * self._cost(batch, drafted) / self._cost(batch, nearest)

    def _cost(self, batch: int, drafted: int) -> float:
        """Of a pass, in passes over one row."""
        row = ROW_COST[self.on_cpu] + (0.0 if self.timed else PROCESSING_COST[self.on_cpu])
        return 1 + row * (batch * (1 + drafted) - 1)

    def _head_seconds(self, batch: int, heads: int) -> float:
        if heads == 0:
            return 0.0
        if (batch, heads) in self.head_times:
            return self.head_times[batch, heads]
        share = heads * self.head_layers + self.unembedding
        return share * self._cost(batch, heads) * self._read_seconds(batch, 0) / self._cost(batch, 0)
