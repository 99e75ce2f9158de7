"""The rows of a batch that is decoded with drafts, each with the logits processors as they treat it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
)


@dataclass
class Row:
    """A sequence [1, time], the padding before it included, and the logits processors as they treat it."""

    sequence: Tensor
    processors: LogitsProcessorList
    done: bool = False

    def processed(self, sequence: Tensor, logits: Tensor) -> Tensor:
        """Scores [vocabulary] of the token after `sequence` [1, time], in float32."""
        scores: Tensor = self.processors(sequence, logits[None].to(sequence.device, torch.float32))
        return scores[0]


class OfRow(LogitsProcessor):
    """A processor that may know rows by their number, as it treats one of them: it is asked about a batch of copies."""

    def __init__(self, processor: Any, row: int, batch: int) -> None:
        self.processor, self.row, self.batch = processor, row, batch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found: Tensor = self.processor(input_ids.repeat(self.batch, 1), scores.repeat(self.batch, 1))
        return found[self.row : self.row + 1]


def is_transformers_own(each: Any) -> bool:
    """Whether a processor or criterion is one of transformers', of which it is known how it treats rows."""
    return type(each).__module__.startswith("transformers.")


def processors_of_row(processors: Sequence[Any], row: int, batch: int) -> LogitsProcessorList:
    """As they treat one row of a batch."""
    found = LogitsProcessorList()
    for each in processors:
        if batch == 1:
            found.append(each)
        elif not is_transformers_own(each):
            found.append(OfRow(each, row, batch))
        elif (own := transformers_own_of_row(each, row, batch)) is not None:
            found.append(own)
    return found


def transformers_own_of_row(processor: Any, row: int, batch: int) -> Any:
    """What it knows of the batch cut to the row; None where it leaves the row alone."""
    own = copy.copy(processor)
    if isinstance(own, PrefixConstrainedLogitsProcessor):
        allowed = own._prefix_allowed_tokens_fn  # it has no public name
        own._prefix_allowed_tokens_fn = lambda _, ids: allowed(row, ids)
    elif isinstance(own, EncoderNoRepeatNGramLogitsProcessor):
        own.generated_ngrams = [own.generated_ngrams[row * own.batch_size // batch]]
        own.batch_size = 1
    elif isinstance(own, EncoderRepetitionPenaltyLogitsProcessor):
        # Of several sequences to a prompt `generate` penalises only the first ones.
        own.encoder_input_ids = own.encoder_input_ids[row : row + 1]
        return own if len(own.encoder_input_ids) else None
    elif isinstance(lengths := getattr(own, "prompt_ignore_length", None), Tensor):
        own.prompt_ignore_length = lengths[row : row + 1]
    return own
