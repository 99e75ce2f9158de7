"""The objective of a sequence without this or that unit of its chain, with what the sequences share computed once.

    log P(R \\ u, A | Q) = Σ_{t < p} ℓ_t + log P(x_{p+w} | x_{<p}) + Σ_{t > p+w} log P(x_t | x_{<t} \\ u)

for a unit u of w tokens at position p: the first sum is that of the whole sequence, the second term needs no pass
(x_{p+w} is predicted from position p - 1, which does not see u), and only the rest needs one of its own, from p + w on,
with the keys and values of what precedes p. After a deletion at q > p the sequence without u is up to q
what it was (`graftlm.pruning.known_sequences`), and only what comes after q needs a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from graftlm.decoding.batches import has_virtual_tokens, target_log_probs
from graftlm.errors import InputError
from graftlm.models.caches import keeps_only_keys_and_values
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import chunk_rows
from graftlm.pruning.choices import Objective
from graftlm.pruning.grouping import cheapest_groups
from graftlm.pruning.known_sequences import KnownSequences

Span = tuple[int, int]
"""Where a unit starts in the sequence, and where it ends."""

PASS_COST = {"cpu": 32}
"""What a pass costs besides its tokens, in tokens: reading the weights, starting the kernels."""
OTHER_PASS_COST = 1024

STATES_IN_PASS, STATES_KEPT = 16, 32
"""Tokens, in units of `batch_tokens`, of which keys, values and hidden states are in a pass, those that it does not
read itself included, and are kept for later passes."""


class Best(NamedTuple):
    """What a pass found out about the sequence without `span`: all that is needed to go on from there."""

    span: Span
    score: float
    log_probs: Tensor  # [time]
    hidden: Tensor  # [time - 1, hidden]
    cache: DynamicCache | None


class Scorer:
    """A sequence [question][chain][answer] whose chain loses unit after unit.

    `left`: the units that remain, by their number in `units`, in their order. `batch_tokens`: at most so many tokens
    are read in one pass, but at least one sequence. Keys, values and hidden states exist of at most STATES_IN_PASS +
    STATES_KEPT times as many, logits for `chunk_rows` positions at a time.

    `reuse`: whether keys and values are used again; off by itself for a model whose layers keep other states than
    those, or where a pass that goes on from them gives other results than the whole one (tried on the chain).

    InputError for a model whose parts are not found, or with virtual tokens before its prompt.
    """

    def __init__(
        self,
        model: Any,
        question: Sequence[int],
        units: Sequence[Sequence[int]],
        answer: Sequence[int],
        objective: Objective = "joint",
        *,
        batch_tokens: int = 512,
        reuse: bool = True,
    ) -> None:
        if has_virtual_tokens(model):
            raise InputError("pruning does not take prompt or prefix tuning: their tokens are in no text")
        self.decoder = Decoder(model)
        self.decoder.verify()
        self.device = self.decoder.model.device
        self.batch_tokens = batch_tokens
        self.first = len(question)
        self.answer = len(answer)
        self.objective = objective
        self.sizes = [len(unit) for unit in units]
        self.left = list(range(len(units)))
        flat = [token for unit in units for token in unit]
        self.ids = torch.tensor([*question, *flat, *answer], device=self.device)
        # A cache that drops nothing does for sliding windows, too, since the mask hides the rest.
        plain = reuse and keeps_only_keys_and_values(DynamicCache(config=self.decoder.config))
        self.cache = DynamicCache() if plain else None
        self.hidden = torch.empty(0)
        """[time - 1, hidden], final, of all tokens but the last."""
        self.log_probs = torch.zeros(0, dtype=torch.float64)
        """[time], of each token that counts for the objective, in nats; 0 for the others."""
        self.following: dict[int, float] = {}
        """Of units: log P of the token after it, if the unit were not there, in nats; only what still holds."""
        self.known = KnownSequences(self.first, STATES_KEPT * batch_tokens)
        self.best: Best | None = None
        """Of the units scored since the last deletion the one with the highest score."""
        self._read(0)
        if self.cache is not None and not self._goes_on_alike():
            self.cache = None
            self._read(0)

    @property
    def value(self) -> float:
        """The objective of what is left, in nats."""
        return float(self.log_probs.sum())

    def spans(self) -> dict[int, Span]:
        """Of each unit that is left."""
        found, start = {}, self.first
        for unit in self.left:
            found[unit] = (start, start + self.sizes[unit])
            start += self.sizes[unit]
        return found

    @torch.no_grad()
    def scores(self, units: Sequence[int]) -> Tensor:
        """The objective [len(units)] in nats without each of `units`; float64."""
        found = self.read_without(units)
        return torch.stack([found[unit].sum() for unit in units])

    @torch.no_grad()
    def read_without(self, units: Sequence[int], reach: int | None = None) -> dict[int, Tensor]:
        """Of the sequence without each of `units` what `log_probs` is for the whole: [time], nats, float64.

        reach: only so many tokens from where the sequence is not what it was when it was read last; for the objective
            `joint`, and where a model's rows can start at different positions.
        """
        every = self.spans()
        if self.objective == "answer" or self.cache is None or not self.decoder.takes_positions:
            reach = None
        known = {unit: len(self._known(unit, every[unit])) if self.cache is not None else 0 for unit in units}
        stops, room = dict.fromkeys(units, len(self.ids) - 1), len(self.ids)
        if reach is not None:
            changed = {unit: max(known[unit], self.known.held_until(unit)) for unit in units}
            stops = {unit: min(len(self.ids) - self.sizes[unit], changed[unit] + reach) for unit in units}
            # Rows that start at different positions are twice there for a moment, and may end further right.
            room = 2 * (room + max(stops[unit] - known[unit] for unit in units))
        ordered = sorted(units, key=lambda unit: known[unit] - stops[unit])
        lengths = [stops[unit] - known[unit] for unit in ordered]
        most_rows = STATES_IN_PASS * self.batch_tokens // room
        pass_cost = PASS_COST.get(self.device.type, OTHER_PASS_COST)
        groups = cheapest_groups(lengths, self.batch_tokens, most_rows, pass_cost)
        found: dict[int, Tensor] = {}
        for group in groups:
            spans = {unit: every[unit] for unit in ordered[group]}
            found |= self._read_shortened(spans, None if reach is None else stops)
        return found

    @torch.no_grad()
    def estimates(self, units: Sequence[int]) -> Tensor:
        """`scores` as if no token but the one after the unit noticed; takes no pass."""
        every = self.spans()
        counting = [unit for unit in units if every[unit][1] >= self._first_target() and unit not in self.following]
        if counting:
            previous, after = ([every[unit][0] - 1 for unit in counting], [every[unit][1] for unit in counting])
            found = self._log_probs(self.hidden[previous], self.ids[after])
            self.following |= dict(zip(counting, found.tolist(), strict=True))
        sums = torch.cat([self.log_probs.new_zeros(1), self.log_probs.cumsum(0)])
        starts, rest = zip(
            *((every[unit][0], max(every[unit][1] + 1, self._first_target())) for unit in units), strict=True
        )
        following = sums.new_tensor([self.following.get(unit, 0.0) for unit in units])
        return sums[list(starts)] + following + sums[-1] - sums[list(rest)]

    @torch.no_grad()
    def delete(self, unit: int) -> None:
        """For good; without a pass where no other unit scored as high since the last deletion."""
        every = self.spans()
        start, stop = span = every[unit]
        self.left.remove(unit)
        self.following = {other: found for other, found in self.following.items() if every[other][1] < start}
        if self.cache is not None:
            self.cache.crop(start - (len(self.ids) - 1))
        self.ids = torch.cat([self.ids[:start], self.ids[stop:]])
        self.known.delete(start)
        best, self.best = self.best, None
        if best is None or best.span != span:
            self._read(start)
        else:
            self.log_probs, self.hidden, self.cache = best.log_probs, best.hidden, best.cache

    def _first_target(self, length: int | None = None) -> int:
        """The first position that counts for the objective, in a sequence of that length."""
        return self.first if self.objective == "joint" else (length or len(self.ids)) - self.answer

    @torch.no_grad()
    def _read(self, start: int) -> None:
        """Bring hidden states and log-probabilities up to date from position `start` on."""
        begin = start if self.cache is not None else 0
        hidden = self._run(self.ids[None, begin:-1], self.cache)[0]
        self.hidden = torch.cat([self.hidden[:begin].to(hidden), hidden])
        first = max(start, self._first_target())
        found = self._log_probs(self.hidden[first - 1 :], self.ids[first:])
        before = self.log_probs[:start]
        self.log_probs = torch.cat([before, before.new_zeros(first - len(before)), found])

    def _goes_on_alike(self) -> bool:
        """Whether half of the sequence, read after the other half, has the log-probabilities it had in one piece."""
        whole, half = self.log_probs, len(self.ids) // 2
        assert self.cache is not None
        if any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            return False
        self.cache.crop(half - (len(self.ids) - 1))
        self._read(half)
        tolerance = 1e-3 if self.hidden.dtype in (torch.float32, torch.float64) else 0.5
        return bool(torch.allclose(self.log_probs, whole, rtol=tolerance, atol=tolerance))

    def _known(self, unit: int, span: Span) -> Tensor:
        """Log-probabilities at the start of the sequence without `unit` that hold already."""
        found = self.known.log_probs(unit)
        return self.log_probs[: span[0]] if found is None else found

    def _read_shortened(self, spans: Mapping[int, Span], stops: Mapping[int, int] | None) -> dict[int, Tensor]:
        """`read_without` in one pass, whose rows start together and end with the sequence, or, with `stops`, each start
        where its sequence is known to, and end before that position."""
        units = list(spans)
        whole = [torch.cat([self.ids[:start], self.ids[stop:]]) for start, stop in spans.values()]
        ids = whole if stops is None else [each[: stops[unit]] for unit, each in zip(units, whole, strict=True)]
        known = [self._known(unit, span) for unit, span in spans.items()]
        cache, before, begins = None, self.hidden[None, :0].expand(len(units), -1, -1), [0] * len(units)
        if self.cache is not None:
            begins = [min(map(len, known))] * len(units) if stops is None else [len(old) for old in known]
        shifts = [max(begins) - begin for begin in begins]
        if self.cache is not None:
            states = self.known.before(units, _states(self.cache, self.hidden[None]), max(begins))
            *keys_and_values, before = (_moved(state, shifts) for state in states)
            cache = _cache(keys_and_values)
            del states, keys_and_values  # or they would stay beside those that the pass makes of them
        # No token sees the padding on the right, which comes after all that counts.
        new = [each[begin:-1] for each, begin in zip(ids, begins, strict=True)]
        hidden = self._run(torch.nn.utils.rnn.pad_sequence(new, batch_first=True), cache, begins)
        every = _states(cache, torch.cat([before, hidden], dim=1))
        *states, hidden = (_moved(state, [-shift for shift in shifts]) for state in every)
        firsts = [max(len(old), self._first_target(len(each))) for old, each in zip(known, whole, strict=True)]
        targets = torch.cat([each[first:] for first, each in zip(firsts, ids, strict=True)])
        # Each is predicted by the position before it.
        predicting = [hidden[row, first - 1 : len(ids[row]) - 1] for row, first in enumerate(firsts)]
        found = self._log_probs(torch.cat(predicting), targets).split([len(each) for each in predicting])
        log_probs = [
            torch.cat([old, old.new_zeros(first - len(old)), new])
            for old, first, new in zip(known, firsts, found, strict=True)
        ]
        scores = {row: float(each.sum()) for row, each in enumerate(log_probs) if len(each) == len(whole[row])}
        best = max(scores, key=scores.__getitem__, default=None)
        if best is not None and (self.best is None or scores[best] > self.best.score):
            kept = [state[best : best + 1, ..., : len(whole[best]) - 1, :].clone() for state in (*states, hidden)]
            cache = _cache(kept[:-1]) if states else None
            self.best = Best(spans[units[best]], scores[best], log_probs[best], kept[-1][0], cache)
        if states:
            self.known.add(spans, log_probs, [*states, hidden])
        return dict(zip(units, log_probs, strict=True))

    def _run(self, ids: Tensor, cache: DynamicCache | None, begins: Sequence[int] = (0,)) -> Tensor:
        """Final hidden states [rows, time, hidden] of `ids` [rows, time], which come after what the cache holds; in
        each row that is so many positions, at the cache's end."""
        if not ids.shape[1]:
            return self.hidden.new_empty(*ids.shape, self.hidden.shape[-1])
        placed: dict[str, Tensor] = {}
        if len(set(begins)) > 1:
            first, past = torch.tensor(begins, device=self.device)[:, None], max(begins)
            columns = torch.arange(past + ids.shape[1], device=self.device)
            placed = {
                "attention_mask": (columns >= past - first).long(),
                # Padding may lie beyond what a model has positions for.
                "position_ids": (first + columns[: ids.shape[1]]).clamp(max=len(self.ids) - 1),
            }
        output = self.decoder.trunk(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **placed)
        return output.last_hidden_state

    def _log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log P(target) [rows] in nats; float64, on the CPU."""
        found = [torch.zeros(0, dtype=torch.float64)]
        count = chunk_rows(hidden.device)
        for rows, words in zip(hidden.split(count), targets.split(count), strict=True):
            found.append(target_log_probs(self.decoder.logits_of_normed(rows), words).cpu().double())
        return torch.cat(found)


def _moved(state: Tensor, places: Sequence[int]) -> Tensor:
    """[rows, ..., time, size], each row so many places further; what is moved in is of no account."""
    if not any(places):
        return state
    count = state.shape[-2]
    columns = torch.arange(count) - torch.tensor(places)[:, None]
    index = columns.clamp(0, count - 1).to(state.device).view(len(places), *[1] * (state.dim() - 3), count, 1)
    return state.gather(-2, index.expand_as(state))


def _states(cache: DynamicCache | None, hidden: Tensor) -> list[Tensor]:
    """Keys and values of each layer [rows, heads, time, size], and the final hidden states [rows, time, hidden]."""
    layers = [] if cache is None else cache.layers
    return [*(part for layer in layers for part in (layer.keys, layer.values)), hidden]


def _cache(states: Sequence[Tensor]) -> DynamicCache:
    """With these keys and values of each layer, not copies of them."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(states[::2], states[1::2], strict=True)):
        cache.update(keys[..., :0, :], values[..., :0, :], index)
        cache.layers[index].keys, cache.layers[index].values = keys, values
    return cache
