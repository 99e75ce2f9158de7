"""Probes by likelihood alone: how surprising a model finds text that people wrote."""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import ClassVar

from graftlm.errors import InputError
from graftlm.tasks.asking import Example
from graftlm.tasks.base import Split, Task
from graftlm.tasks.metric import NLL, PERPLEXITY


class PerplexityProbe(Task):
    """Metrics, over the tokens of all test completions, given their prompts:

    - `nll_per_token`: nats per token;
    - `perplexity`: its exponential.

    No floors. Both depend on the tokenizer, so they compare only models that share one.
    """

    metrics = (NLL, PERPLEXITY)

    @classmethod
    @cache
    def pairs(cls) -> list[tuple[str, str]]:
        """(prompt, completion) of each test row, in an order such that the first n are a random sample."""
        data = files("graftlm.tasks").joinpath("data", f"{cls.name}.jsonl.gz").read_bytes()
        rows = [json.loads(line) for line in gzip.decompress(data).decode().splitlines()]
        return [(row["prompt"], row["completion"]) for row in rows]

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        if split != "test":
            raise InputError(f"task {self.name} is a probe: it has no split {split!r}, only test")
        return [Example(prompt, completion) for prompt, completion in self.pairs()]

    def few_shot_prefix(self, shots: int, seed: int) -> str:
        """Empty: there is nothing to show."""
        return ""


class GeneralText(PerplexityProbe):
    """Dictionary definitions of nouns, given the noun; none of them is in the probe `glosses`."""

    name: ClassVar[str] = "general-text"
    description: ClassVar[str] = "perplexity of general text: dictionary definitions"


class Code(PerplexityProbe):
    """HumanEval's reference solutions, given the function's head and description (Chen et al. 2021, arXiv
    2107.03374)."""

    name: ClassVar[str] = "code"
    description: ClassVar[str] = "perplexity of short Python functions: HumanEval's reference solutions"
