"""Variety of a model's outputs, and the formats it answers in (the collapse of Zhao et al. 2025, arXiv
2504.07912: reinforcement learning amplifies one format and buries the rest)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from graftlm.auditing.result import Diversity
from graftlm.data.encoding import encode_prompt
from graftlm.decoding.batches import logits_at, sample_completions
from graftlm.errors import InputError
from graftlm.reinforce.formats import OTHER, Format, format_of

Pattern = str | Callable[[str], bool]
"""A regular expression that is searched in the output, or a function of it."""

FORMATS: dict[str, Pattern] = {
    "code block": r"```",
    "JSON": r"^\s*[\[{][\s\S]*[\]}]?\s*$",
    "list": r"(?m)^\s*(?:[-*•]|\d+[.)])\s+\S",
    "mathematics": r"\\boxed|\\frac|\$[^$]+\$|\d\s*[-+*/=]\s*\d",
    "one word": r"^\s*\S+\s*$",
    "sentences": r"[A-Za-z]{2,}\s+[a-z]{2,}\s+\S+",
}
"""The first that fits counts; an output that none fits is `other`."""


@torch.no_grad()
def measure_diversity(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int = 4,
    max_new_tokens: int = 32,
    formats: Mapping[str, Pattern] = FORMATS,
    seed: int = 0,
) -> Diversity:
    """`samples` outputs of each prompt, sampled at temperature 1 from the whole distribution.

    The caller's random state stays as it is. InputError for no prompt, or a format that is no regular expression.
    """
    if not prompts:
        raise InputError("diversity needs at least one prompt")
    tried = [Format(name, pattern) for name, pattern in formats.items()]
    entropy = statistics.fmean(_entropy(model, encode_prompt(tokenizer, prompt)) for prompt in prompts)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        written = sample_completions(model, tokenizer, prompts, samples=samples, max_new_tokens=max_new_tokens)
    outputs = [text.strip() for text in written]
    # Two prompts may be answered alike: outputs are told apart within a prompt.
    distinct = len({(place // samples, output) for place, output in enumerate(outputs)})
    counts = Counter(format_of(output, tried) for output in outputs)
    return Diversity(
        distinct=distinct / len(outputs),
        start_entropy=entropy,
        formats={name: counts[name] / len(outputs) for name in (*formats, OTHER)},
        outputs=len(outputs),
    )


def _entropy(model: Any, ids: list[int]) -> float:
    """Entropy of the distribution of the first token after the prompt, in nats."""
    row = torch.tensor([ids], device=model.device)
    logits, _ = logits_at(model, torch.tensor([-1], device=model.device), input_ids=row, use_cache=False)
    logs = torch.log_softmax(logits[0, -1].double(), dim=-1)
    return float(torch.special.entr(logs.exp()).sum())
