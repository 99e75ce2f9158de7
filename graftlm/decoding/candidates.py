"""Log-likelihoods of several candidate completions of one prompt, the prompt computed only once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftlm.data.batches import batches_that_fit, padded
from graftlm.data.encoding import encode_pair
from graftlm.decoding.batches import (
    MAX_LOGIT_ROWS,
    OnBatch,
    completion_log_likelihoods,
    has_virtual_tokens,
    logits_at,
    target_log_probs,
)
from graftlm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

Scores = list[list[tuple[float, int]]]
Group = list[tuple[list[int], list[int]]]  # (prompt ids, candidate's ids) of each candidate of one prompt
Candidate = tuple[int, int, list[int]]  # row of the prompt in its batch, column of the candidate, its ids

SMALL_BATCH = 32


def candidate_log_likelihoods(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    batch_size: int = 32,
    *,
    on_batch: OnBatch | None = None,
) -> Scores:
    """For each prompt the (sum of log-probabilities in nats, number of tokens) of each of its candidates.

    Equal to `completion_log_likelihoods` of all pairs. Each prompt runs once: its last position scores the
    first token of all candidates, and only those of two tokens or more run on from its cache. Prompts of one
    length share a batch, so no prompt is padded. Models that keep other states than keys and values, and PEFT's
    virtual tokens, take pair by pair.
    """
    from graftlm.models.caches import keeps_only_keys_and_values

    if has_virtual_tokens(model):
        return _pair_by_pair(model, tokenizer, prompts, candidates, batch_size, on_batch)
    encoded = [
        [encode_pair(tokenizer, prompt, candidate) for candidate in group]
        for prompt, group in zip(prompts, candidates, strict=True)
    ]
    if not all(group and all(completion for _, completion in group) for group in encoded):
        raise InputError("each prompt needs at least one candidate, and each candidate at least one token")
    scores: Scores = [[] for _ in prompts]

    def prompt_length(index: int) -> int:
        return len(encoded[index][0][0])

    def fits(batch: list[int]) -> bool:
        return len(batch) <= batch_size and prompt_length(batch[0]) == prompt_length(batch[-1])

    for chosen in batches_that_fit(sorted(range(len(prompts)), key=prompt_length), fits):
        batch = [encoded[index] for index in chosen]
        first, cache = _first_tokens(model, batch)
        if not keeps_only_keys_and_values(cache):
            return _pair_by_pair(model, tokenizer, prompts, candidates, batch_size, on_batch)
        rest = _further_tokens(model, batch, cache)
        for row, index in enumerate(chosen):
            scores[index] = [
                (first[row][column] + rest.get((row, column), 0.0), len(completion))
                for column, (_, completion) in enumerate(encoded[index])
            ]
        if on_batch is not None:
            on_batch(len(chosen))
    return scores


def _first_tokens(model: PreTrainedModel | PeftModel, batch: list[Group]) -> tuple[list[list[float]], Any]:
    """Log-probability of each candidate's first token, and the cache after the prompts (all of one length)."""
    import torch

    ids = torch.tensor([group[0][0] for group in batch], device=model.device)
    with torch.no_grad():
        last = torch.tensor([-1], device=model.device)
        logits, cache = logits_at(model, last, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    scores = []
    for row, group in enumerate(batch):
        firsts = torch.tensor([completion[0] for _, completion in group])
        scores.append(target_log_probs(logits[row].expand(len(group), -1), firsts).tolist())
    return scores, cache


def _further_tokens(
    model: PreTrainedModel | PeftModel, batch: list[Group], cache: DynamicCache
) -> dict[tuple[int, int], float]:
    """(row, column) -> log-probability of all tokens but the first, for the candidates that have more than one."""
    import torch

    longer = [
        (row, column, completion)
        for row, group in enumerate(batch)
        for column, (_, completion) in enumerate(group)
        if len(completion) > 1
    ]
    scores = {}
    for part in batches_that_fit(sorted(longer, key=lambda entry: -len(entry[2])), _fits):
        past = copy.deepcopy(cache)
        past.batch_select_indices(torch.tensor([row for row, _, _ in part], device=model.device))
        tokens = padded([ids for _, _, ids in part], 0, "right")[0].to(model.device)
        read = tokens[:, :-1]
        mask = read.new_ones(len(part), past.get_seq_length() + read.shape[1])
        every = torch.arange(-read.shape[1], 0, device=model.device)
        with torch.no_grad():
            logits, _ = logits_at(
                model, every, input_ids=read, attention_mask=mask, past_key_values=past, use_cache=True
            )
            log_probs = target_log_probs(logits, tokens[:, 1:]).double().cpu()
        for place, (row, column, ids) in enumerate(part):
            scores[row, column] = float(log_probs[place, : len(ids) - 1].sum())
    return scores


def _fits(batch: list[Candidate]) -> bool:
    """Whether candidates in falling order of length make a batch: it ends where shorter ones begin, unless it would be
    too small to keep the processor busy."""
    longest, shortest = len(batch[0][2]), len(batch[-1][2])
    few = len(batch) * (longest - 1) <= MAX_LOGIT_ROWS // 4
    return few and (len(batch) <= SMALL_BATCH or shortest == longest)


def _pair_by_pair(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    batch_size: int,
    on_batch: OnBatch | None,
) -> Scores:
    pairs = [(prompt, candidate) for prompt, group in zip(prompts, candidates, strict=True) for candidate in group]
    flat = iter(completion_log_likelihoods(model, tokenizer, pairs, batch_size))
    if on_batch is not None:
        on_batch(len(prompts))
    return [[next(flat) for _ in group] for group in candidates]
