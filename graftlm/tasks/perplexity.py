"""Probes by likelihood alone: how surprising a model finds text that people wrote."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar

from graftlm.decoding.batches import completion_log_likelihoods
from graftlm.errors import InputError
from graftlm.tasks.base import Progress, Split, Task, TaskResult, check_options, count_steps
from graftlm.tasks.metric import NLL, PERPLEXITY

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PerplexityProbe(Task):
    """Metrics, over the tokens of all test completions, given their prompts:

    - `nll_per_token`: nats per token;
    - `perplexity`: its exponential.

    No floors. Both depend on the tokenizer, so they compare only models that share one.
    """

    metrics = (NLL, PERPLEXITY)

    @classmethod
    def pairs(cls) -> list[tuple[str, str]]:
        """(prompt, completion) of each test row, in an order such that the first n are a random sample."""
        return read_pairs(f"{cls.name}.jsonl.gz")

    def rows(self, split: Split) -> Dataset:
        from datasets import Dataset

        if split != "test":
            raise InputError(f"task {self.name} is a probe: it has no split {split!r}, only test")
        prompts, completions = zip(*self.pairs(), strict=True)
        return Dataset.from_dict({"prompt": prompts, "completion": completions})

    def evaluate(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        shots: int = 0,
        batch_size: int = 32,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> TaskResult:
        """`shots` and `seed` change nothing: there is nothing to show and nothing to draw."""
        check_options(limit, shots, batch_size)
        begin = time.perf_counter()
        pairs = self.pairs()[:limit]
        on_batch = count_steps(progress, len(pairs))
        scores = completion_log_likelihoods(model, tokenizer, pairs, batch_size, on_batch=on_batch)
        return likelihood_result(self.name, pairs, scores, time.perf_counter() - begin)


class GeneralText(PerplexityProbe):
    """Dictionary definitions of nouns, given the noun; none of them is in the probe `glosses`."""

    name: ClassVar[str] = "general-text"
    description: ClassVar[str] = "perplexity of general text: dictionary definitions"


class Code(PerplexityProbe):
    """HumanEval's reference solutions, given the function's head and description (Chen et al. 2021, arXiv
    2107.03374)."""

    name: ClassVar[str] = "code"
    description: ClassVar[str] = "perplexity of short Python functions: HumanEval's reference solutions"


@cache
def read_pairs(name: str) -> list[tuple[str, str]]:
    """(prompt, completion) of each line of a gzip'd JSONL file of data/."""
    data = gzip.decompress(files("graftlm.tasks").joinpath("data", name).read_bytes()).decode()
    rows = [json.loads(line) for line in data.splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def likelihood_result(
    task: str, pairs: Sequence[tuple[str, str]], scores: Sequence[tuple[float, int]], seconds: float
) -> TaskResult:
    """The result of a probe by likelihood; `scores`: log-likelihood and number of tokens of each completion."""
    examples = [
        {"prompt": prompt, "reference": completion, "output": "", "nll": -total, "tokens": tokens}
        for (prompt, completion), (total, tokens) in zip(pairs, scores, strict=True)
    ]
    nll = -sum(total for total, _ in scores) / max(sum(tokens for _, tokens in scores), 1)
    return TaskResult(
        task=task,
        metrics={NLL.name: nll, PERPLEXITY.name: math.exp(min(nll, 700.0))},
        declared=(NLL, PERPLEXITY),
        examples=examples,
        count=len(examples),
        seconds=seconds,
    )
