"""Restoration: put the base model's weights back, one group of layers at a time, and measure what comes back.

With NLL_M of a set of references under model M, and R the tuned model with some layers restored:

    share of the task's gain left      (NLL_base - NLL_R) / (NLL_base - NLL_tuned)      on what was tuned for
    share of the probes' loss left     (NLL_R - NLL_base) / (NLL_tuned - NLL_base)      on what was known before

The likelihood of the references is measured and nothing is generated: it moves with every change of the weights, where
a right answer often stays right.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.auditing.result import Restored
from graftlm.data.written_text import Progress
from graftlm.decoding.batches import completion_log_likelihoods
from graftlm.models.pair import ModelPair
from graftlm.tasks import Task

LEAST_CHANGE = 1e-3  # nats per token: below it a share would be of noise
Pairs = Mapping[str, Sequence[tuple[str, str]]]


def restore_each(
    pair: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Pairs,
    probes: Pairs,
    *,
    groups: int = 6,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Restored]:
    """Restore each of `groups` groups of neighbouring layers by itself; one entry a group, from the lowest up.

    `tasks`, `probes`: name -> (prompt, completion) pairs. `progress` gets the measurements done and their number.
    """
    spans = layer_spans(pair.layers, groups)
    steps = len(spans) + 2

    def measure(opened: AbstractContextManager[Any], step: int) -> tuple[dict[str, float], dict[str, float]]:
        with opened as model:
            task, probe = (
                {name: nll_per_token(model, tokenizer, pairs, batch_size) for name, pairs in kind.items()}
                for kind in (tasks, probes)
            )
        if progress is not None:
            progress(step, steps)
        return task, probe

    base, tuned = measure(pair.base(), 1), measure(pair.tuned(), 2)
    restored = []
    for step, (first, last) in enumerate(spans, start=3):
        task, probe = measure(pair.tuned({f"layer {index}" for index in range(first, last + 1)}), step)
        restored.append(
            Restored(
                layers=(first, last),
                task=task,
                probes=probe,
                task_share=_share(base[0], tuned[0], task, fallen=True),
                probe_share=_share(base[1], tuned[1], probe, fallen=False),
            )
        )
    return restored


def layer_spans(layers: int, groups: int) -> list[tuple[int, int]]:
    """(first, last) of at most `groups` groups of like size that cover all layers."""
    groups = min(groups, layers)
    starts = [round(index * layers / groups) for index in range(groups + 1)]
    return [(start, end - 1) for start, end in itertools.pairwise(starts)]


def reference_pairs(task: Task, limit: int | None) -> list[tuple[str, str]]:
    """(prompt, completion) of the first test rows of a task."""
    rows = task.rows("test")[:limit]
    return list(zip(rows["prompt"], rows["completion"], strict=True))


def nll_per_token(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], batch_size: int
) -> float:
    """Nats per token of the completions, given their prompts."""
    scores = completion_log_likelihoods(model, tokenizer, pairs, batch_size)
    return -sum(total for total, _ in scores) / max(sum(tokens for _, tokens in scores), 1)


def _share(
    base: Mapping[str, float], tuned: Mapping[str, float], now: Mapping[str, float], *, fallen: bool
) -> float | None:
    """Place of `now` between base (0) and tuned (1), means over the names; None if tuning did not make the mean fall
    (or, if not `fallen`, rise)."""
    if not base:
        return None
    before, after, restored = (statistics.fmean(values.values()) for values in (base, tuned, now))
    moved = after - before
    return None if (-moved if fallen else moved) < LEAST_CHANGE else (restored - before) / moved
