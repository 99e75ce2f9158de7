"""The sequences of a batch that is decoded with drafts: which tokens are chosen, proposed and appended."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    StoppingCriteriaList,
)

from graftlm.decoding.speculation import accepted_or_drawn


@dataclass
class Draft:
    """Drafted tokens [batch, count], and `first` [batch], the model's own tokens before them; in sampling also the
    distribution [batch, vocabulary] that each was drawn from."""

    first: Tensor
    tokens: Tensor
    distributions: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.tokens.shape[1]


@dataclass
class DecodedSequence:
    """Tokens [1, time], the padding before them included, and the logits processors as they treat this sequence."""

    tokens: Tensor
    processors: LogitsProcessorList
    done: bool = False

    def scores(self, following: Sequence[int], logits: Tensor) -> Tensor:
        """Processed `logits` [vocabulary] of the token after those so far and `following` ones, in float32."""
        tokens = torch.cat([self.tokens, self.tokens.new_tensor([[*following]], dtype=torch.int64)], dim=-1)
        scores: Tensor = self.processors(tokens, logits[None].to(tokens.device, torch.float32))
        return scores[0]


class Sequences:
    """All sequences of a batch. `live`: the numbers of those that are not done, in the order of the tensors' rows."""

    def __init__(
        self, input_ids: Tensor, processors: Iterable[Any], criteria: Iterable[Any], streamer: Any, *, sampled: bool
    ) -> None:
        processors, criteria = list(processors), list(criteria)
        self.chooser = next((each for each in processors if hasattr(each, "choose_rows")), None)
        others = [each for each in processors if each is not self.chooser]
        self.all = [
            DecodedSequence(ids[None], processors_of_sequence(others, number, len(input_ids)))
            for number, ids in enumerate(input_ids)
        ]
        self.live = list(range(len(self.all)))
        self.criteria = StoppingCriteriaList(each for each in criteria if is_transformers_own(each))
        self.criteria_of_batch = StoppingCriteriaList(each for each in criteria if not is_transformers_own(each))
        """Those that may know sequences by their number."""
        self.streamer, self.sampled = streamer, sampled
        self.likeliest = not sampled and not others
        """Whether the likeliest token of the logits as they are is chosen."""

    def choose(self, logits: Tensor, draft: Draft) -> list[list[int]]:
        """The drafted tokens of each live sequence that are accepted, and the model's own token after them.

        `logits` [batch, 1 + count, vocabulary]: the model's after the first token and after each drafted one. A list
        is empty where the chooser says that the sequence is done.
        """
        drafted: list[list[int]] = draft.tokens.tolist()
        if self.chooser is not None:
            return self._choose_elsewhere(logits, drafted)
        if self.likeliest:
            return [_agreeing(tokens, own) for tokens, own in zip(drafted, logits.argmax(-1).tolist(), strict=True)]
        return [self._choose_one(place, logits[place], draft) for place in range(len(self.live))]

    def _choose_one(self, place: int, logits: Tensor, draft: Draft) -> list[int]:
        """Choose for one sequence, token by token, until a draft is not accepted."""
        sequence, drafted = self.all[self.live[place]], draft.tokens[place].tolist()
        chosen: list[int] = []
        for step in range(len(drafted) + 1):
            scores = sequence.scores(chosen, logits[step])
            if not self.sampled:
                chosen.append(int(scores.argmax()))
            elif step == len(drafted):
                chosen.append(int(torch.multinomial(scores.softmax(-1), 1)))
            else:
                proposed = draft.distributions[step][place]
                chosen.append(accepted_or_drawn(drafted[step], scores.softmax(-1), proposed))
            if chosen[-1:] != drafted[step : step + 1]:
                break
        return chosen

    def _choose_elsewhere(self, logits: Tensor, drafted: list[list[int]]) -> list[list[int]]:
        """Ask the chooser step by step about the sequences whose draft has been accepted so far."""
        choose_rows: Any = self.chooser.choose_rows  # type: ignore[union-attr]
        chosen: list[list[int]] = [[] for _ in self.live]
        places = list(range(len(self.live)))
        for step in range(logits.shape[1]):
            scores = logits[places, step].float()
            if not self.likeliest:
                each = [self.all[self.live[p]].scores(chosen[p], logits[p, step]) for p in places]
                scores = torch.stack(each)
            tokens: list[int | None] = choose_rows([self.live[place] for place in places], scores)
            agreeing = []
            for place, token in zip(places, tokens, strict=True):
                chosen[place] += [] if token is None else [token]
                if token is not None and drafted[place][step : step + 1] == [token]:
                    agreeing.append(place)
            if not (places := agreeing):
                break
        return chosen

    def propose(self, logits: Tensor) -> Draft:
        """Draft after the newest token of each live sequence, from the heads' logits [count, batch, vocabulary]."""
        live = [self.all[number] for number in self.live]
        first = torch.tensor([int(each.tokens[0, -1]) for each in live], device=logits.device)
        if self.likeliest or not len(logits):
            return Draft(first, logits.argmax(-1).t())
        drafted: list[list[int]] = [[] for _ in live]
        distributions = []
        for of_head in logits:
            scores = torch.stack([each.scores(*pair) for each, *pair in zip(live, drafted, of_head, strict=True)])
            distributions.append(scores.softmax(-1))
            drawn = torch.multinomial(distributions[-1], 1)[:, 0] if self.sampled else scores.argmax(-1)
            for tokens, token in zip(drafted, drawn.tolist(), strict=True):
                tokens.append(token)
        return Draft(first, torch.tensor(drafted, device=logits.device), distributions)

    def append(self, chosen: Sequence[Sequence[int]]) -> int:
        """Append the chosen tokens of each live sequence until it ends; returns how many of them were drafted."""
        drafted = 0
        for number, tokens in zip(self.live, chosen, strict=True):
            sequence = self.all[number]
            sequence.done = not tokens
            for count, token in enumerate(tokens, start=1):
                sequence.tokens = torch.cat([sequence.tokens, sequence.tokens.new_tensor([[token]])], dim=-1)
                if self.streamer is not None:
                    self.streamer.put(torch.tensor([token]))
                drafted += count < len(tokens)
                if self._ends(number):
                    sequence.done = True
                    break
        return drafted

    def _ends(self, number: int) -> bool:
        tokens = self.all[number].tokens
        if bool(self.criteria(tokens, None)[0]):
            return True
        others = self.criteria_of_batch
        return bool(others) and bool(others(tokens.repeat(len(self.all), 1), None)[number])

    def drop_done(self) -> list[bool]:
        """Drop what is done from `live`; returns for each sequence that was live whether it still is."""
        alive = [not self.all[number].done for number in self.live]
        self.live = [number for number, lives in zip(self.live, alive, strict=True) if lives]
        return alive


def _agreeing(tokens: Sequence[int], likeliest: Sequence[int]) -> list[int]:
    """`tokens` as far as they are the model's likeliest, and its own token after them."""
    matches = 0
    while matches < len(tokens) and tokens[matches] == likeliest[matches]:
        matches += 1
    return [*tokens[:matches], likeliest[matches]]


class ProcessorOfSequence(LogitsProcessor):
    """A processor that may know sequences by their number: it is asked about a batch of copies of one of them."""

    def __init__(self, processor: Any, number: int, batch: int) -> None:
        self.processor, self.number, self.batch = processor, number, batch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        processed: Tensor = self.processor(input_ids.repeat(self.batch, 1), scores.repeat(self.batch, 1))
        return processed[self.number : self.number + 1]


def is_transformers_own(each: Any) -> bool:
    """Whether a processor or criterion is one of transformers', of which it is known how it treats a batch."""
    return type(each).__module__.startswith("transformers.")


def processors_of_sequence(processors: Sequence[Any], number: int, batch: int) -> LogitsProcessorList:
    """Processors that treat one sequence alone as the given ones treat it in its batch."""
    own = LogitsProcessorList()
    for each in processors:
        if batch == 1:
            own.append(each)
        elif not is_transformers_own(each):
            own.append(ProcessorOfSequence(each, number, batch))
        elif (processor := _transformers_own(each, number, batch)) is not None:
            own.append(processor)
    return own


def _transformers_own(processor: Any, number: int, batch: int) -> Any:
    """A copy that knows only one sequence of the batch; None where the processor leaves that sequence alone."""
    own = copy.copy(processor)
    if isinstance(own, PrefixConstrainedLogitsProcessor):
        allowed = own._prefix_allowed_tokens_fn  # it has no public name
        own._prefix_allowed_tokens_fn = lambda _, ids: allowed(number, ids)
    elif isinstance(own, EncoderNoRepeatNGramLogitsProcessor):
        own.generated_ngrams = [own.generated_ngrams[number * own.batch_size // batch]]
        own.batch_size = 1
    elif isinstance(own, EncoderRepetitionPenaltyLogitsProcessor):
        # Of several sequences to a prompt `generate` penalises only the first ones.
        own.encoder_input_ids = own.encoder_input_ids[number : number + 1]
        return own if len(own.encoder_input_ids) else None
    elif isinstance(lengths := getattr(own, "prompt_ignore_length", None), Tensor):
        own.prompt_ignore_length = lengths[number : number + 1]
    return own
