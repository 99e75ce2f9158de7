"""Speculative proxy decoding: the expert drafts, and base model and anti-expert check the draft.

With q the expert's distribution and p that of the combined logits (both after processors, temperature and top-p), a
drafted token x is kept with probability min(1, p(x) / q(x)); the first that is not kept is replaced by a draw from
max(p - q, 0), renormalised (Leviathan et al., arXiv 2211.17192, algorithm 1). So samples are distributed as without
drafts. Greedy decoding keeps what is p's own likeliest token, so that its tokens are the same.

Where this differs from that algorithm:

1. No further token is drawn after a draft that was kept whole: the expert's logits there cost as much as one more
   drafted token, which says the same. So all models have always read the same tokens.
2. An expert that is an adapter on the anti-expert reads each token together with it, so that the anti-expert's logits
   are there when the draft is. Two models read apart: the anti-expert reads the draft in one pass, as the base does.
3. A draft ends where one more token is not worth its pass: `Drafting.worth_another`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from graftlm.decoding.speculation import READ, SpeculativeOutput, check_call, check_can_forget, kept_or_drawn
from graftlm.errors import InputError
from graftlm.proxy.experts import Experts, Inputs, of_width, run

LONGEST_DRAFT = 16
ROW_COST = 0.1
"""What checking one more token adds to a pass of the base model, in such passes: measured on a CPU; less on a GPU."""


@torch.no_grad()
def speculative_decoding(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    streamer: Any = None,
    **inputs: Any,
) -> Any:
    """A decoding method for `generate(custom_generate=...)` of a ProxyTunedModel; one prompt at a time.

    InputError for a batch, for positions of one's own, and for what `check_call` refuses.
    """
    check_call(generation_config, logits_processor, inputs, (*READ, "expert_input_ids", "expert_attention_mask"))
    if input_ids.shape[0] != 1:
        raise InputError("speculative decoding takes one prompt at a time: leave out speculative=True")
    prompt = _unpadded(input_ids, inputs.get("attention_mask"))
    places = _unpadded(inputs.get("position_ids"), inputs.get("attention_mask"))
    if places is not None and not torch.equal(places, torch.arange(len(places), device=places.device)):
        raise InputError("speculative decoding counts the positions itself: leave out position_ids")
    own_prompt = _unpadded(inputs.get("expert_input_ids"), inputs.get("expert_attention_mask"))
    state = Drafting(model, input_ids, prompt, own_prompt, logits_processor, bool(generation_config.do_sample))
    for token in state.tokens():
        if streamer is not None:
            streamer.put(torch.tensor([token]))
        if bool(stopping_criteria(state.sequence, None).all()):
            break
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return state.sequence
    return SpeculativeOutput(
        sequences=state.sequence, drafted=state.drafted, accepted=state.accepted, rounds=state.rounds
    )


class Reader:
    """A model with its cache, which reads what comes after the tokens it has read."""

    def __init__(self, run_model: Callable[[Inputs, Cache, int], Tensor], cache: Cache, prompt: Tensor) -> None:
        self.run_model, self.cache = run_model, cache
        self.unread = prompt

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [rows, time, vocabulary] after each of `tokens` [time]."""
        new = torch.cat([self.unread, tokens.to(self.unread.device)])
        self.unread = new[:0]
        inputs = Inputs(input_ids=new[None], attention_mask=None, position_ids=None)
        return self.run_model(inputs, self.cache, len(tokens))

    def forget(self, count: int) -> None:
        """The last `count` tokens."""
        if count:
            self.cache.crop(-count)


class PairReader:
    """Expert and anti-expert that share their weights and read each token together."""

    passes = 0.0
    """Of the small model for each check of a draft."""

    def __init__(self, experts: Experts, prompt: Tensor) -> None:

        def run_both(inputs: Inputs, cache: Cache, keep: int) -> Tensor:
            return torch.cat(experts.logits(inputs, inputs, [cache], keep))

        self.reader = Reader(run_both, DynamicCache(), prompt)
        self.antiexpert_logits: list[Tensor] = []

    def draft(self, token: Tensor) -> Tensor:
        """The expert's logits [1, vocabulary] after one more token [1]."""
        expert, antiexpert = self.reader.read(token)
        self.antiexpert_logits.append(antiexpert)
        return expert

    def antiexpert(self, block: Tensor) -> Tensor:
        """Logits [time, vocabulary] after each token of what was read since the last call."""
        found, self.antiexpert_logits = torch.cat(self.antiexpert_logits), []
        return found

    def forget(self, count: int) -> None:
        self.reader.forget(count)


class ApartReader:
    """Expert and anti-expert that read each for itself: two models, or an expert with a prompt of its own."""

    passes = 1.0

    def __init__(self, experts: Experts, prompt: Tensor, own_prompt: Tensor) -> None:
        self.readers = (
            Reader(experts.expert_logits, DynamicCache(), own_prompt),
            Reader(experts.antiexpert_logits, DynamicCache(), prompt),
        )

    def draft(self, token: Tensor) -> Tensor:
        return self.readers[0].read(token)[0]

    def antiexpert(self, block: Tensor) -> Tensor:
        return self.readers[1].read(block)[0]

    def forget(self, count: int) -> None:
        for reader in self.readers:
            reader.forget(count)


class Acceptance:
    """How often drafted tokens were kept, by the probability that the expert gave them.

    Before anything is known a token counts as kept as often as the expert believes in it.
    """

    BINS = 5
    PRIOR = 2.0

    def __init__(self) -> None:
        self.kept = [self.PRIOR * (place + 0.5) / self.BINS for place in range(self.BINS)]
        self.seen = [self.PRIOR] * self.BINS

    def rate(self, probability: float) -> float:
        place = self._bin(probability)
        return self.kept[place] / self.seen[place]

    def learn(self, probability: float, kept: bool) -> None:
        place = self._bin(probability)
        self.kept[place] += kept
        self.seen[place] += 1

    def _bin(self, probability: float) -> int:
        return min(int(probability * self.BINS), self.BINS - 1)


class Drafting:
    """The loop, a round of which yields one token or more."""

    def __init__(
        self, model: Any, sequence: Tensor, prompt: Tensor, own_prompt: Tensor | None, processor: Any, sample: bool
    ) -> None:
        self.model, self.processor, self.sample = model, processor, sample
        self.sequence = sequence

        def run_base(inputs: Inputs, cache: Cache, keep: int) -> Tensor:
            logits: Tensor = run(model.base, inputs, cache, keep).logits
            return logits

        experts = model.experts
        for part in (model.base, experts.expert_model, experts.antiexpert_model):
            check_can_forget(part)
        self.base = Reader(run_base, DynamicCache(), prompt[:-1])
        self.experts: PairReader | ApartReader
        if experts.shared and own_prompt is None:
            self.experts = PairReader(experts, prompt[:-1])
        else:
            self.experts = ApartReader(experts, prompt[:-1], (prompt if own_prompt is None else own_prompt)[:-1])
        self.pending = prompt[-1:]
        """What none of the models has read: the last token."""
        longest = max(len(prompt), 0 if own_prompt is None else len(own_prompt))
        limit = getattr(model.config, "max_position_embeddings", None)
        self.room = None if limit is None else limit - longest + 1
        """Tokens that the longest text may still be drafted by."""
        self.own_last = None if own_prompt is None else own_prompt[-1:]
        self.acceptance = Acceptance()
        small, large = (sum(p.numel() for p in part.parameters()) for part in (experts.antiexpert_model, model.base))
        self.cost = small / large
        """Of a pass of the small model, in passes of the base model: their weights are what both wait for."""
        self.drafted = self.accepted = self.rounds = 0

    def tokens(self) -> Iterator[int]:
        while True:
            for token in self._round():
                self.sequence = torch.cat([self.sequence, self.sequence.new_tensor([[token]])], dim=-1)
                if self.room is not None:
                    self.room -= 1
                yield token

    def _round(self) -> list[int]:
        """Draft, check, and let the models forget what was not kept."""
        draft = self._draft()
        count = len(draft.tokens)
        block = torch.cat([self.pending, self.pending.new_tensor(draft.tokens[:-1])])
        base = self.base.read(block).float()
        combined = self.model.combine(base, torch.cat(draft.logits)[None], self.experts.antiexpert(block)[None])[0]
        chosen = self._chosen(draft, combined)
        matches = sum(ours == theirs for ours, theirs in zip(chosen, draft.tokens, strict=False))
        for place in range(min(matches + 1, count)):
            self.acceptance.learn(draft.probabilities[place], place < matches)
        self.rounds, self.drafted, self.accepted = self.rounds + 1, self.drafted + count, self.accepted + matches
        for reader in (self.base, self.experts):
            reader.forget(count - len(chosen))
        self.pending = self.pending.new_tensor(chosen[-1:])
        return chosen

    def _draft(self) -> Draft:
        draft = Draft()
        sequence = self.sequence
        token = self.pending if self.own_last is None else self.own_last
        self.own_last = None
        expected, reached = 1.0, 1.0  # tokens that the round yields, chance that it comes to the next one
        while True:
            draft.logits.append(self.experts.draft(token))
            scores = self._processed(sequence, draft.logits[-1])
            distribution = scores.softmax(-1)
            drawn = int(torch.multinomial(distribution, 1) if self.sample else scores.argmax())
            draft.add(drawn, distribution)
            reached *= self.acceptance.rate(draft.probabilities[-1])
            if not self.worth_another(len(draft.tokens), expected, reached):
                return draft
            expected += reached
            token = sequence.new_tensor([drawn])
            sequence = torch.cat([sequence, token[None]], dim=-1)

    def worth_another(self, count: int, expected: float, reached: float) -> bool:
        """Whether one more pass of the expert yields more tokens for its cost than the round of `count` does.

        `expected`: tokens that the round yields so far; `reached`: the chance that all of its draft are kept, which is
        what one more pass adds to it.
        """
        token_cost = self.cost + ROW_COST
        round_cost = 1 + self.cost * self.experts.passes + token_cost * count
        most = LONGEST_DRAFT if self.room is None else min(LONGEST_DRAFT, self.room)
        return count < most and reached * round_cost > expected * token_cost

    def _chosen(self, draft: Draft, combined: Tensor) -> list[int]:
        """The drafted tokens that are kept, and one instead of the first that is not."""
        chosen: list[int] = []
        sequence = self.sequence
        for place, token in enumerate(draft.tokens):
            scores = self._processed(sequence, combined[place : place + 1])
            if not self.sample:
                chosen.append(int(scores.argmax()))
            else:
                chosen.append(kept_or_drawn(token, scores.softmax(-1), draft.distributions[place]))
            if chosen[-1] != token:
                break
            sequence = torch.cat([sequence, sequence.new_tensor([[token]])], dim=-1)
        return chosen

    def _processed(self, sequence: Tensor, logits: Tensor) -> Tensor:
        """Scores [vocabulary] of the next token after `sequence`, in float32."""
        width = self.model.config.vocab_size
        known = of_width(logits[..., :width].to(sequence.device, torch.float32), width, -torch.inf)
        scores: Tensor = self.processor(sequence, known)
        return scores[0]


@dataclass
class Draft:
    """Drafted tokens, and of each the expert's logits [1, vocabulary] and distribution [vocabulary] it comes from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    distributions: list[Tensor] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def add(self, token: int, distribution: Tensor) -> None:
        self.tokens.append(token)
        self.distributions.append(distribution)
        self.probabilities.append(float(distribution[token]))


def _unpadded(ids: Tensor | None, mask: Tensor | None) -> Any:
    """The tokens [time] of the one row that are no padding; None for None."""
    if ids is None:
        return None
    return ids[0] if mask is None else ids[0][mask[0].bool()]
