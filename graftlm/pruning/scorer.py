"""The objective of a sequence without this or that unit of its chain, with what the sequences share computed once.

    log P(R \\ u, A | Q) = Σ_{t < p} ℓ_t + log P(x_{p+w} | x_{<p}) + Σ_{t > p+w} log P(x_t | x_{<t} \\ u)

for a unit u of w tokens at position p: the first sum and the second term are read off the pass over the whole
sequence (x_{p+w} is predicted from position p - 1, which does not see u), and only the rest needs a pass of its own,
from p + w on, with the keys and values of what precedes p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from graftlm.errors import InputError
from graftlm.multitoken.decoder import Decoder
from graftlm.multitoken.linear_cross_entropy import CHUNK_ROWS
from graftlm.pruning.choices import Objective
from graftlm.pruning.grouping import cheapest_groups
from graftlm.tasks.generation import has_virtual_tokens, target_log_probs

Span = tuple[int, int]
"""Where a unit starts in the sequence, and where it ends."""

PASS_COST = {"cpu": 32}
"""What a pass costs besides its tokens, in tokens: reading the weights, starting the kernels."""
OTHER_PASS_COST = 1024


class Best(NamedTuple):
    """What a pass found about the sequence without `span`: all that is needed to go on from there."""

    span: Span
    score: float
    log_probs: Tensor  # [time], from the span on
    begin: int
    hidden: Tensor  # [time, hidden], from `begin` on
    cache: DynamicCache | None


class Scorer:
    """A sequence [question][chain][answer] whose chain loses unit after unit.

    `left`: the units that remain, by their number in `units`, in their order. `batch_tokens`: at most so many tokens
    are in one pass, but at least one sequence. Logits exist for CHUNK_ROWS positions at a time.

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
        self.cache = DynamicCache() if reuse and _keeps_only_keys_and_values(self.decoder.config) else None
        self.hidden = torch.empty(0)
        """[time - 1, hidden], final, of all tokens but the last."""
        self.log_probs = torch.zeros(0, dtype=torch.float64)
        """[time], of each token that counts for the objective, in nats; 0 for the others."""
        self.following: dict[int, float] = {}
        """Of units: log P of the token after it, if the unit were not there, in nats; only what still holds."""
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
        """The objective [len(units)] in nats without each of `units`, which are in their order; float64."""
        every = self.spans()
        spans = [every[unit] for unit in units]
        before, following = self._unchanged(units, spans)
        ends = len(self.ids) - 1
        lengths = [ends - start if self.cache is not None else ends for start, _ in spans]
        groups = cheapest_groups(lengths, self.batch_tokens, PASS_COST.get(self.device.type, OTHER_PASS_COST))
        return torch.cat([self._score_group(spans[group], before[group], following[group]) for group in groups])

    @torch.no_grad()
    def estimates(self, units: Sequence[int]) -> Tensor:
        """`scores` as if no token but the one after the unit noticed; takes no pass."""
        every = self.spans()
        spans = [every[unit] for unit in units]
        before, following = self._unchanged(units, spans)
        after = torch.cat([self.log_probs.flip(0).cumsum(0).flip(0), self.log_probs.new_zeros(1)])
        return before + following + after[[self._first_of_rest(stop) for _, stop in spans]]

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
        best, self.best = self.best, None
        if best is None or best.span != span:
            self._read(start)
            return
        self.cache = best.cache
        self.hidden = torch.cat([self.hidden[: best.begin], best.hidden])
        self.log_probs = torch.cat([self.log_probs[:start], best.log_probs])

    def _first_target(self) -> int:
        """The first position that counts for the objective."""
        return self.first if self.objective == "joint" else len(self.ids) - self.answer

    def _first_of_rest(self, stop: int) -> int:
        """The first that counts from the second after a span on."""
        return max(stop + 1, self._first_target())

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

    def _unchanged(self, units: Sequence[int], spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
        """Of each unit: what the tokens before it add to the objective, and what the one after it does without it."""
        before = torch.cat([self.log_probs.new_zeros(1), self.log_probs.cumsum(0)])[[start for start, _ in spans]]
        counting = [
            (unit, span) for unit, span in zip(units, spans, strict=True)
            if span[1] >= self._first_target() and unit not in self.following
        ]  # fmt: skip
        if counting:
            previous, after = ([span[0] - 1 for _, span in counting], [span[1] for _, span in counting])
            found = self._log_probs(self.hidden[previous], self.ids[after])
            self.following |= dict(zip((unit for unit, _ in counting), found.tolist(), strict=True))
        following = [
            self.following[unit] if stop >= self._first_target() else 0.0
            for unit, (_, stop) in zip(units, spans, strict=True)
        ]
        return before, before.new_tensor(following)

    def _score_group(self, spans: Sequence[Span], before: Tensor, following: Tensor) -> Tensor:
        """The objective [len(spans)] without each span, in one pass from where the first one starts."""
        begin = spans[0][0] if self.cache is not None else 0
        rows = [torch.cat([self.ids[begin:start], self.ids[stop:-1]]) for start, stop in spans]
        cache = None if self.cache is None else _part(self.cache, begin, rows=len(rows))
        # No token sees the padding, which comes after all that counts.
        hidden = self._run(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), cache)
        targets = [torch.arange(self._first_of_rest(stop), len(self.ids), device=self.device) for _, stop in spans]
        # x_t is predicted by the token before it, which is w places further left without the span.
        predicted = [
            hidden[row, places - 1 - (stop - start) - begin]
            for row, ((start, stop), places) in enumerate(zip(spans, targets, strict=True))
        ]
        found = self._log_probs(torch.cat(predicted), self.ids[torch.cat(targets)]).split([len(p) for p in targets])
        scores = before + following + torch.stack([rest.sum() for rest in found])
        row = int(scores.argmax())
        if self.best is None or scores[row] > self.best.score:
            start, stop = spans[row]
            length = len(self.ids) - (stop - start)
            log_probs = torch.zeros(length - start, dtype=torch.float64)
            log_probs[0] = following[row]
            log_probs[len(log_probs) - len(found[row]) :] = found[row]
            kept = None if cache is None else _part(cache, length - 1, row=row)
            own = hidden[row, : length - 1 - begin]
            self.best = Best(spans[row], float(scores[row]), log_probs, begin, own, kept)
        return scores

    def _run(self, ids: Tensor, cache: DynamicCache | None) -> Tensor:
        """Final hidden states [rows, time, hidden] of `ids` [rows, time], which come after what the cache holds."""
        if not ids.shape[1]:
            return self.hidden.new_empty(*ids.shape, self.hidden.shape[-1])
        output = self.decoder.trunk(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state

    def _log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log P(target) [rows] in nats; float64, on the CPU."""
        found = [torch.zeros(0, dtype=torch.float64)]
        scale, cap = self.decoder.logit_scale, self.decoder.logit_softcap
        for rows, words in zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
            logits = self.decoder.unembedding(rows)
            logits = logits if scale == 1 else logits * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            found.append(target_log_probs(logits, words).cpu().double())
        return torch.cat(found)


def _keeps_only_keys_and_values(config: Any) -> bool:
    """Sliding windows among them: a cache that drops nothing does for those, too, since the mask hides the rest."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _part(cache: DynamicCache, length: int, *, row: int = 0, rows: int = 1) -> DynamicCache:
    """A copy of the first `length` keys and values of a row, `rows` times."""
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = (part[row, :, :length].expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
        copy.update(keys, values, index)
    return copy
