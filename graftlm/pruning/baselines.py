"""Baselines of greedy pruning: orders that take one pass or none.

- random: uniform, of a seed.
- surprisal: -log P(x_t | Q, x_<t); the least surprising goes first (Selective Context, arXiv 2310.06201).
- attention: Σ over layers, heads and queries of the attention that a token gets; the least attended goes first (H2O,
  arXiv 2306.14048).
- truncation: the last goes first.
- llmlingua2: the probability that LLMLingua-2 (arXiv 2403.12968) keeps it, as TokenSkip has it (arXiv 2502.12067).

Where these differ from their sources:

1. H2O evicts while it generates; here the sums are those of one pass over question, chain and answer.
2. Selective Context adds up a phrase's surprisal, LLMLingua-2 averages over a word; here a unit's score is the mean of
   its tokens', and a chain token's keep-probability the mean over its characters, or, where it is white space that
   the classifier's tokenizer leaves out, that of the next character.
3. LLMLingua-2 runs on transformers alone, without the package `llmlingua`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from graftlm.errors import InputError
from graftlm.pruning.attention import pass_with_attention
from graftlm.pruning.config import PruneSettings
from graftlm.pruning.encoding import Encoding
from graftlm.pruning.scorer import Scorer

LLMLINGUA2 = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"


def scores(model: Any, encoding: Encoding, chain: str, settings: PruneSettings) -> list[float]:
    """Worth of each token of `chain` to the baseline `settings.mode`: the least goes first."""
    count = len(encoding.chain)
    match settings.mode:
        case "random":
            generator = random.Random(f"{settings.seed} {chain}")  # other scores for each chain
            return [generator.random() for _ in range(count)]
        case "surprisal":
            scorer = Scorer(model, encoding.question, [[token.id] for token in encoding.chain], encoding.answer)
            return (-scorer.log_probs[scorer.first : scorer.first + count]).tolist()
        case "attention":
            return attention_scores(model, encoding)
        case "llmlingua2":
            return keep_probabilities(encoding, chain, settings.llmlingua_model or LLMLINGUA2)
        case _:
            return [float(count - place) for place in range(count)]


def attention_scores(model: Any, encoding: Encoding) -> list[float]:
    """The attention that each chain token gets from all tokens in all heads and layers."""
    received = torch.zeros(len(encoding), dtype=torch.float64)
    pass_with_attention(model, encoding.ids, lambda weights: received.add_(weights.sum(dim=(0, 1)).cpu().double()))
    first = len(encoding.question)
    return received[first : first + len(encoding.chain)].tolist()


@torch.no_grad()
def keep_probabilities(encoding: Encoding, text: str, scorer_model: str) -> list[float]:
    """Mean keep-probability over each chain token's characters, from a token classifier whose class 1 is "keep".

    InputError where that model cannot be loaded.
    """
    tokenizer, classifier = token_classifier(scorer_model)
    # Two positions less: those of RoBERTa start at 2.
    longest = min(512, int(classifier.config.max_position_embeddings) - 2)
    windows = tokenizer(
        text, truncation=True, max_length=longest, return_overflowing_tokens=True, return_offsets_mapping=True
    )
    kept = torch.full((len(text),), math.nan, dtype=torch.float64)
    for ids, offsets in zip(windows["input_ids"], windows["offset_mapping"], strict=True):
        probabilities = classifier(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1]
        for probability, (start, stop) in zip(probabilities, offsets, strict=True):
            kept[start:stop] = float(probability)
    return [_mean_known(kept, token.start, max(token.stop, token.start + 1)) for token in encoding.chain]


def _mean_known(values: torch.Tensor, start: int, stop: int) -> float:
    """Mean of the values there that are no NaN; else the next such value, or the last one before; else 0."""
    known = ~values.isnan()
    if known[start:stop].any():
        return float(values[start:stop][known[start:stop]].mean())
    nearest = [*values[stop:][known[stop:]][:1].tolist(), *values[:start][known[:start]][-1:].tolist(), 0.0]
    return float(nearest[0])


@lru_cache(maxsize=1)
def token_classifier(name: str) -> tuple[Any, Any]:
    """Load tokenizer and model once for all chains; InputError where they cannot be."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name), AutoModelForTokenClassification.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"mode llmlingua2 needs the model {name}, which cannot be loaded: {reason}") from None


def order_of(scores: Sequence[float], units: Sequence[Sequence[int]], protected: set[int]) -> list[int]:
    """Order units by their mean score, least first, equal ones by position; those in `protected` come last."""
    means = [sum(scores[place] for place in unit) / len(unit) for unit in units]
    return sorted(range(len(units)), key=lambda unit: (unit in protected, means[unit], unit))
