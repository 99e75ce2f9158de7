"""Sampling many completions of each problem, and what a policy's samples say: formats, pass@k, majority@k."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from problems import FORMATS, Problem, Split, format_of, problems, read_answer
from torch import Tensor

NEW_TOKENS = 36  # the longest solution has 33 and <eos>
ROWS = 1024  # sampled at once


def some_problems(split: Split, count: int, seed: int = 0) -> list[Problem]:
    return list(itertools.islice(problems(split, seed), count))


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, each: int, temperature: float = 1.0, seed: int = 0
) -> list[list[str]]:
    """`each` completions of every prompt; temperature 0 is greedy. Prompts run once, their cache is shared out."""
    model.eval()
    draw = torch.Generator().manual_seed(seed)
    at_once = max(1, ROWS // each)
    texts = []
    for start in range(0, len(prompts), at_once):
        encoded = tokenizer(list(prompts[start : start + at_once]), return_tensors="pt", padding=True)
        ids = _continue(model, encoded["input_ids"], encoded["attention_mask"], each, temperature, draw)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [texts[place : place + each] for place in range(0, len(texts), each)]


def _continue(model: Any, ids: Tensor, mask: Tensor, each: int, temperature: float, draw: torch.Generator) -> Tensor:
    """ids, mask [prompts, time], padded left -> [prompts * each, new tokens], padded after the end.

    Once half of the rows have ended, those leave the batch.
    """
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(each, 0)
    cache.batch_repeat_interleave(each)
    mask = mask.repeat_interleave(each, 0)
    position = positions[:, -1:].repeat_interleave(each, 0)
    written = torch.full((len(mask), NEW_TOKENS), pad)
    rows = torch.arange(len(mask))  # of `written`: those still in the batch
    for step in range(NEW_TOKENS):
        if temperature:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)
        else:
            new = logits.argmax(-1, keepdim=True)
        written[rows, step] = new[:, 0]
        going = ~(written[rows] == eos).any(1)
        if not going.any() or step == NEW_TOKENS - 1:
            break
        if going.sum() <= len(rows) // 2:
            left = going.nonzero()[:, 0]
            cache.batch_select_indices(left)
            rows, new, mask, position = rows[left], new[left], mask[left], position[left]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        position = position + 1
        output = model(input_ids=new, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]
    ended = (written == eos).cumsum(1)
    return torch.where((ended > 0) & (written != eos), pad, written)


def pass_at(k: int, correct: int, count: int) -> float:
    """Chance that of k out of `count` samples, `correct` of which are right, one is right: 1 − C(n−c, k) / C(n, k)."""
    return 1.0 - math.comb(count - correct, k) / math.comb(count, k)


def majority(answers: Sequence[int | None]) -> int | None:
    """The most frequent answer, the first to reach that count among equals; samples without an answer don't vote."""
    votes = collections.Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def mean(values: Iterable[float]) -> float | None:
    those = list(values)
    return sum(those) / len(those) if those else None


def describe(tasks: Sequence[Problem], completions: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Share and accuracy of each format, pass@1, pass@k and majority@k, where k is the number of samples of each."""
    count = len(completions[0])
    read = [(format_of(text), read_answer(text) == task.answer)
            for task, texts in zip(tasks, completions, strict=True) for text in texts]  # fmt: skip
    answers = [[read_answer(text) for text in texts] for texts in completions]
    hits = [sum(answer == task.answer for answer in those) for task, those in zip(tasks, answers, strict=True)]
    return {
        "shares": {form: sum(found == form for found, _ in read) / len(read) for form in FORMATS},
        "accuracy": {form: mean(right for found, right in read if found == form) for form in FORMATS},
        "pass_at_1": mean(hit / count for hit in hits),
        "k": count,
        "pass_at_k": mean(pass_at(count, hit, count) for hit in hits),
        "pass_at_8": mean(pass_at(8, hit, count) for hit in hits) if count >= 8 else None,
        "majority_at_k": mean(majority(those) == task.answer for task, those in zip(tasks, answers, strict=True)),
    }


def condensed(history: Sequence[dict[str, Any]], every: int = 4) -> list[dict[str, Any]]:
    """Of a FormatMonitor's history: completions and correct ones of each format, `every` rollout batches together."""
    lines = []
    for place in range(0, len(history), every):
        together = history[place : place + every]
        counts = {form: sum(line["counts"][form] for line in together) for form in FORMATS}
        correct = {
            form: sum(round((line["accuracy"][form] or 0.0) * line["counts"][form]) for line in together)
            for form in FORMATS
        }
        lines.append({"step": together[0]["step"], "counts": counts, "correct": correct})
    return lines


def measure(model: Any, tokenizer: Any, tasks: Sequence[Problem], *, each: int, **options: Any) -> dict[str, Any]:
    """What `describe` finds in fresh samples of the held-out `tasks`."""
    return describe(tasks, sample(model, tokenizer, [task.prompt for task in tasks], each=each, **options))
