"""Speculative proxy decoding: the expert drafts, and base model and anti-expert check the draft in one pass each.

With q the expert's distribution and p that of the combined logits (both after processors, temperature and top-p), a
drafted token x is kept with probability min(1, p(x) / q(x)); the first that is not kept is replaced by a draw from
max(p - q, 0), renormalised, and after a draft that was kept whole one more token is drawn from p (Leviathan et al.,
arXiv 2211.17192, algorithm 1). So samples are distributed as without drafts. Greedy decoding keeps what is p's own
likeliest token, so that its tokens are the same.

The draft grows by two tokens where it was kept whole, and shrinks by one where it was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.generation import GenerateDecoderOnlyOutput

from graftlm.errors import InputError
from graftlm.proxy.experts import Inputs, run

FIRST_DRAFT, LONGEST_DRAFT = 4, 12


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """`sequences` [1, time] int64. `drafted`: tokens that the expert proposed; `accepted`: of them kept; `rounds`:
    passes of the base model after the prompt's."""

    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None


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

    InputError for a batch, or for beams.
    """
    if input_ids.shape[0] != 1 or generation_config.num_beams not in (None, 1):
        raise InputError("speculative decoding takes one prompt and one beam at a time: leave out speculative=True")
    prompt = _unpadded(input_ids, inputs.get("attention_mask"))
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
    """One of the three models with its cache; `read` gives it what it has not seen yet."""

    def __init__(self, run_model: Any, cache: Cache, prompt: Tensor) -> None:
        self.run_model, self.cache = run_model, cache
        self.ids = prompt
        self.seen = 0

    def read(self, tokens: Tensor, keep: int) -> Tensor:
        """Logits [keep, vocabulary] after the last `keep` of all tokens so far and `tokens` [time]."""
        self.ids = torch.cat([self.ids, tokens.to(self.ids.device)])
        new = self.ids[None, self.seen :]
        self.seen = len(self.ids)
        logits: Tensor = self.run_model(new, self.cache, keep)[0]
        return logits

    def forget(self, count: int) -> None:
        """The last `count` tokens."""
        if count:
            self.cache.crop(-count)
            self.ids = self.ids[:-count]
            self.seen = len(self.ids)


class Drafting:
    """The loop, a round of which yields one token or more."""

    def __init__(
        self, model: Any, sequence: Tensor, prompt: Tensor, own_prompt: Tensor | None, processor: Any, sample: bool
    ) -> None:
        self.model, self.processor, self.sample = model, processor, sample
        self.sequence = sequence
        experts = model.experts

        def base(ids: Tensor, cache: Cache, keep: int) -> Tensor:
            return run(model.base, _plain(ids), cache, keep)

        def expert(ids: Tensor, cache: Cache, keep: int) -> Tensor:
            return experts.expert_logits(_plain(ids), cache, keep)

        def antiexpert(ids: Tensor, cache: Cache, keep: int) -> Tensor:
            return experts.antiexpert_logits(_plain(ids), cache, keep)

        caches = experts.separate_caches(model.base)
        self.base = Reader(base, caches[0], prompt[:-1])
        self.expert = Reader(expert, caches[1], (prompt if own_prompt is None else own_prompt)[:-1])
        self.antiexpert = Reader(antiexpert, caches[2], prompt[:-1])
        self.pending = prompt[-1:]
        """What none of the models has read: the last token."""
        self.own_last = None if own_prompt is None else own_prompt[-1:]
        self.length = FIRST_DRAFT
        self.drafted = self.accepted = self.rounds = 0

    def tokens(self) -> Iterator[int]:
        while True:
            for token in self._round():
                self.sequence = torch.cat([self.sequence, self.sequence.new_tensor([[token]])], dim=-1)
                yield token

    def _round(self) -> list[int]:
        """Draft, check, and give the models back what they may keep."""
        first = self.pending if self.own_last is None else self.own_last
        self.own_last = None
        draft, expert, proposals = self._draft(first)
        block = torch.cat([self.pending, draft])
        kept = len(block)
        base = self.base.read(block, kept).float()
        antiexpert = self.antiexpert.read(block, kept)
        width = base.shape[-1]
        combined = self.model.combine(base[None], expert[None, :, :width], antiexpert[None])[0]
        chosen = self._chosen(draft, combined, proposals)
        matches = len(chosen) - 1
        self.rounds, self.drafted, self.accepted = self.rounds + 1, self.drafted + len(draft), self.accepted + matches
        for reader in (self.base, self.expert, self.antiexpert):
            reader.forget(len(draft) - matches)
        self.pending = self.sequence.new_tensor(chosen[-1:])
        self.length = min(self.length + 2, LONGEST_DRAFT) if matches == len(draft) else max(self.length - 1, 1)
        return chosen

    def _draft(self, first: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The drafted tokens [n], the expert's logits [n + 1, vocabulary] around them, and its distribution of each."""
        logits, proposals, drafted = [], [], []
        sequence, tokens = self.sequence, first
        for _ in range(self.length):
            logits.append(self.expert.read(tokens, 1).to(sequence.device))
            scores = self._processed(sequence, logits[-1])
            token = self._pick(scores)
            proposals.append(scores.softmax(-1))
            drafted.append(token)
            tokens = sequence.new_tensor([token])
            sequence = torch.cat([sequence, tokens[None]], dim=-1)
        logits.append(self.expert.read(tokens, 1).to(sequence.device))
        return sequence.new_tensor(drafted), torch.cat(logits), proposals

    def _chosen(self, draft: Tensor, combined: Tensor, proposals: list[Tensor]) -> list[int]:
        """The drafted tokens that are kept, and one more."""
        chosen: list[int] = []
        sequence = self.sequence
        for place, token in enumerate(draft.tolist()):
            scores = self._processed(sequence, combined[place : place + 1])
            if not self.sample:
                own = self._pick(scores)
                chosen.append(own)
                if own != token:
                    return chosen
            else:
                wanted, proposed = scores.softmax(-1), proposals[place]
                if float(torch.rand(())) * float(proposed[token]) >= float(wanted[token]):
                    rest = (wanted - proposed).clamp(min=0)
                    return [*chosen, int(torch.multinomial(rest if bool(rest.any()) else wanted, 1))]
                chosen.append(token)
            sequence = torch.cat([sequence, sequence.new_tensor([[token]])], dim=-1)
        return [*chosen, self._pick(self._processed(sequence, combined[-1:]))]

    def _processed(self, sequence: Tensor, logits: Tensor) -> Tensor:
        """Scores [vocabulary] of the next token after `sequence`, in float32."""
        width = self.model.config.vocab_size
        scores: Tensor = self.processor(sequence, logits[..., :width].to(sequence.device, torch.float32))
        return scores[0]

    def _pick(self, scores: Tensor) -> int:
        return int(torch.multinomial(scores.softmax(-1), 1) if self.sample else scores.argmax())


def _plain(ids: Tensor) -> Inputs:
    """One row without padding, which needs neither a mask nor positions."""
    return Inputs(input_ids=ids, attention_mask=None, position_ids=None)


def _unpadded(ids: Tensor | None, mask: Tensor | None) -> Any:
    """The tokens [time] of the one row that are no padding; None for None."""
    if ids is None:
        return None
    return ids[0] if mask is None else ids[0][mask[0].bool()]
