"""The objective of a sequence without this or that unit of its chain, with what the sequences share computed once.

    log P(R \\ u, A | Q) = Σ_{t < p} ℓ_t + log P(x_{p+w} | x_{<p}) + Σ_{t > p+w} log P(x_t | x_{<t} \\ u)

for a unit u of w tokens at position p: the first sum is that of the whole sequence, the second term needs no pass
(x_{p+w} is predicted from position p - 1, which does not see u), and only the rest needs one of its own, from p + w on,
with the keys and values of what precedes p. After a deletion at q > p the sequence without u is up to q
what it was (`graftlm.pruning.known_sequences`), and only what comes after q needs a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from graftlm.decoding.batches import has_virtual_tokens, target_log_probs
from graftlm.errors import InputError
from graftlm.models.caches import keeps_only_keys_and_values
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import chunk_rows
from graftlm.pruning.config import Objective
from graftlm.pruning.known_sequences import KnownSequences
from graftlm.pruning.passes import cache_of, groups_of, moved, states_of

Span = tuple[int, int]
"""Where a unit starts in the sequence, and where it ends."""

PASS_COST = {"cpu": 32}
"""Cost of a pass besides its tokens, in tokens: reading the weights, starting the kernels."""
OTHER_PASS_COST = 1024

STATES_IN_PASS, STATES_KEPT = 16, 32
"""Tokens, in units of `batch_tokens`, of which keys, values and hidden states are in a pass, those that it does not
read itself included, and are kept for later passes."""


class Shortened(NamedTuple):
    """The sequence without one unit, a row of a pass.

    `known`: log-probabilities of its beginning that hold already. `begin`, `stop`: the positions that the pass has to
    find the log-probabilities of; before `begin` it takes keys and values from earlier passes.
    """

    unit: int
    span: Span
    ids: Tensor
    known: Tensor
    begin: int
    stop: int


class Best(NamedTuple):
    """Results of a pass over the sequence without `span`: all that is needed to go on from there."""

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

    InputError for a model whose parts are unknown, or with virtual tokens before its prompt.
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
        """For units: log P of the token after it, if the unit were not there, in nats; only values that still hold."""
        self.known = KnownSequences(self.first, STATES_KEPT * batch_tokens)
        self.best: Best | None = None
        """The unit with the highest score of those scored since the last deletion."""
        self._read(0)
        if self.cache is not None and not self._goes_on_alike():
            self.cache = None
            self._read(0)

    @property
    def value(self) -> float:
        """The objective of what is left, in nats."""
        return float(self.log_probs.sum())

    def spans(self) -> dict[int, Span]:
        """The span of each unit that is left."""
        spans, start = {}, self.first
        for unit in self.left:
            spans[unit] = (start, start + self.sizes[unit])
            start += self.sizes[unit]
        return spans

    @torch.no_grad()
    def scores(self, units: Sequence[int]) -> Tensor:
        """The objective [len(units)] in nats without each of `units`; float64."""
        log_probs = self.read_without(units)
        return torch.stack([log_probs[unit].sum() for unit in units])

    @torch.no_grad()
    def read_without(self, units: Sequence[int], ahead: int | None = None) -> dict[int, Tensor]:
        """Read the sequence without each of `units`: log-probabilities [time] as in `log_probs`, nats, float64.

        ahead: read only so many tokens from where the sequence is not what it was when it was read last; for the
            objective `joint`, and where a model's rows can start at different positions.
        """
        if self.objective == "answer" or self.cache is None or not self.decoder.takes_positions:
            ahead = None
        spans = self.spans()
        together = ahead is None
        rows = [self._shortened(unit, spans[unit], ahead) for unit in units]
        # Rows that start together end where the longest one does.
        rows.sort(key=lambda row: row.begin if together else row.begin - row.stop)
        lengths = [(len(self.ids) - 1 if together else row.stop) - row.begin for row in rows]
        # Rows that start at different positions are twice there for a moment, and may end further right.
        room = len(self.ids) if together else 2 * (len(self.ids) + lengths[0])
        most_rows = STATES_IN_PASS * self.batch_tokens // room
        pass_cost = PASS_COST.get(self.device.type, OTHER_PASS_COST)
        log_probs: dict[int, Tensor] = {}
        for group in groups_of(lengths, self.batch_tokens, most_rows, pass_cost):
            log_probs |= self._read_rows(rows[group], together=together)
        return log_probs

    @torch.no_grad()
    def estimates(self, units: Sequence[int]) -> Tensor:
        """`scores` as if no token but the one after the unit noticed; takes no pass."""
        spans, first_target = self.spans(), self._first_target()
        new = [unit for unit in units if spans[unit][1] >= first_target and unit not in self.following]
        if new:
            before, after = [spans[unit][0] - 1 for unit in new], [spans[unit][1] for unit in new]
            log_probs = self._log_probs(self.hidden[before], self.ids[after])
            self.following |= dict(zip(new, log_probs.tolist(), strict=True))
        sums = torch.cat([self.log_probs.new_zeros(1), self.log_probs.cumsum(0)])
        starts = [spans[unit][0] for unit in units]
        rests = [max(spans[unit][1] + 1, first_target) for unit in units]
        following = sums.new_tensor([self.following.get(unit, 0.0) for unit in units])
        return sums[starts] + following + sums[-1] - sums[rests]

    @torch.no_grad()
    def delete(self, unit: int) -> None:
        """Delete `unit` for good; without a pass where no other unit scored as high since the last deletion."""
        spans = self.spans()
        start, stop = span = spans[unit]
        self.left.remove(unit)
        self.following = {other: value for other, value in self.following.items() if spans[other][1] < start}
        if self.cache is not None:
            self.cache.crop(start - (len(self.ids) - 1))
        self.ids = torch.cat([self.ids[:start], self.ids[stop:]])
        self.known.delete(start)
        best, self.best = self.best, None
        if best is None or best.span != span:
            self._read(start)
        else:
            self.log_probs, self.hidden, self.cache = best.log_probs, best.hidden, best.cache

    # -- the whole sequence -----------------------------------------------------------------------------------------

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
        new = self._log_probs(self.hidden[first - 1 :], self.ids[first:])
        self.log_probs = _joined(self.log_probs[:start], first, new)

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

    # -- sequences without a unit -----------------------------------------------------------------------------------

    def _shortened(self, unit: int, span: Span, ahead: int | None) -> Shortened:
        ids = torch.cat([self.ids[: span[0]], self.ids[span[1] :]])
        known = self.known.log_probs(unit)
        known = self.log_probs[: span[0]] if known is None else known
        begin, stop = len(known) if self.cache is not None else 0, len(ids)
        if ahead is not None:
            stop = min(stop, max(begin, self.known.held_until(unit)) + ahead)
        return Shortened(unit, span, ids, known, begin, stop)

    def _read_rows(self, rows: Sequence[Shortened], *, together: bool) -> dict[int, Tensor]:
        """`read_without` in one pass; its rows start `together`, or each where it begins."""
        begins = [row.begin for row in rows]
        begins = [min(begins)] * len(rows) if together else begins
        cache, before = self._states_before(rows, begins)
        # No token sees the padding on the right, which comes after all that counts.
        new = [row.ids[begin : row.stop - 1] for row, begin in zip(rows, begins, strict=True)]
        after = self._run(pad_sequence(new, batch_first=True), cache, begins)
        back = [begin - max(begins) for begin in begins]
        states = [moved(state, back) for state in states_of(cache, torch.cat([before, after], dim=1))]
        log_probs = self._log_probs_of_rows(rows, states[-1])
        self._keep_best(rows, log_probs, states)
        if cache is not None:
            self.known.add({row.unit: row.span for row in rows}, log_probs, states)
        return {row.unit: each for row, each in zip(rows, log_probs, strict=True)}

    def _states_before(self, rows: Sequence[Shortened], begins: Sequence[int]) -> tuple[DynamicCache | None, Tensor]:
        """Keys and values, and hidden states [rows, time, hidden], of what comes before `begins`.

        They end at the same column in all rows.
        """
        if self.cache is None:
            return None, self.hidden[None, :0].expand(len(rows), -1, -1)
        shifts = [max(begins) - begin for begin in begins]
        states = self.known.before([row.unit for row in rows], states_of(self.cache, self.hidden[None]), max(begins))
        *keys_and_values, hidden = (moved(state, shifts) for state in states)
        return cache_of(keys_and_values), hidden

    def _log_probs_of_rows(self, rows: Sequence[Shortened], hidden: Tensor) -> list[Tensor]:
        """Log-probabilities [stop] of each row, in nats; `hidden`: [rows, time, hidden], from the first position on."""
        firsts = [max(len(row.known), self._first_target(len(row.ids))) for row in rows]
        targets = [row.ids[first : row.stop] for row, first in zip(rows, firsts, strict=True)]
        # Each is predicted by the position before it.
        predicting = [hidden[place, first - 1 : rows[place].stop - 1] for place, first in enumerate(firsts)]
        new = self._log_probs(torch.cat(predicting), torch.cat(targets)).split([len(each) for each in predicting])
        return [_joined(row.known, first, each) for row, first, each in zip(rows, firsts, new, strict=True)]

    def _keep_best(self, rows: Sequence[Shortened], log_probs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Keep the row with the highest score of those that were read to their end, if it is the best so far."""
        scores = {place: float(log_probs[place].sum()) for place, row in enumerate(rows) if row.stop == len(row.ids)}
        place = max(scores, key=scores.__getitem__, default=None)
        if place is None or (self.best is not None and self.best.score >= scores[place]):
            return
        row = rows[place]
        *keys_and_values, hidden = (state[place : place + 1, ..., : row.stop - 1, :].clone() for state in states)
        cache = cache_of(keys_and_values) if keys_and_values else None
        self.best = Best(row.span, scores[place], log_probs[place], hidden[0], cache)

    # -- passes -----------------------------------------------------------------------------------------------------

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
        parts = [torch.zeros(0, dtype=torch.float64)]
        count = chunk_rows(hidden.device)
        for rows, words in zip(hidden.split(count), targets.split(count), strict=True):
            parts.append(target_log_probs(self.decoder.logits_of_normed(rows), words).cpu().double())
        return torch.cat(parts)


def _joined(known: Tensor, first: int, new: Tensor) -> Tensor:
    """Log-probabilities of a sequence: those known, 0 for what does not count before `first`, and the new ones."""
    return torch.cat([known, known.new_zeros(first - len(known)), new])
