"""Variety of a model's outputs, and the formats it answers in (the collapse of Zhao et al. 2025, arXiv
2504.07912: reinforcement learning amplifies one format and buries the rest)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from graftlm.auditing.result import Diversity
from graftlm.data.encoding import encode_prompt
from graftlm.decoding.batches import logits_at
from graftlm.errors import InputError
from graftlm.models.decoder import end_tokens
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
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    entropy = sum(_entropy(model, ids) for ids in encoded) / len(encoded)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        outputs = _sample(model, tokenizer, encoded, samples, max_new_tokens)
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


def _sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[list[int]], samples: int, max_new_tokens: int
) -> list[str]:
    """Output after output, all samples of a prompt together."""
    width, pad = max(map(len, encoded)), tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=model.device)
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, no_repeat_ngram_size=0,
        num_beams=1, num_return_sequences=samples, max_new_tokens=max_new_tokens, min_new_tokens=0, use_cache=True,
        return_dict_in_generate=False, pad_token_id=pad, eos_token_id=end_tokens(model, tokenizer) or None,
    )  # fmt: skip
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [text.strip() for text in tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)]
