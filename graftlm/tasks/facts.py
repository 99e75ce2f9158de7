"""A probe of facts: questions with one right answer, asked greedily and by ranking.

To add one: a file data/NAME.tsv (split, subject, answer, other accepted answers) and a subclass with a template, which
elements.py is an example of.
"""

from __future__ import annotations

import random
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from graftlm.decoding.batches import generate_completions
from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.errors import InputError
from graftlm.tasks.base import Progress, Split, Task, TaskResult, check_options, count_steps
from graftlm.tasks.metric import Metric

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 7
CANDIDATES = 10  # the right answer and 9 others
GREEDY = Metric("greedy_accuracy", "greedy accuracy", higher_is_better=True, best=1.0, kind="accuracy")
RANKING = Metric("ranking_accuracy", "ranking accuracy", higher_is_better=True, best=1.0, kind="accuracy")


class Fact(NamedTuple):
    """`aliases`: other accepted answers."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()

    @property
    def completion(self) -> str:
        return f" {self.answer}"


class FactProbe(Task):
    """Metrics, both means over the test facts:

    - `greedy_accuracy`: the answer or an alias stands, as whole words, in the first line of the greedy completion of 7
      tokens; accents, punctuation but in numbers and, unless `keep_case` is set, case do not count;
    - `ranking_accuracy`: the right answer has the highest log-likelihood, summed over its tokens, of 10 candidates:
      itself and 9 answers of other test facts, drawn once for all models by `seed`.

    Floors: always the same answer, the most frequent one, for `greedy_accuracy`; a guess for `ranking_accuracy`.
    """

    metrics = (GREEDY, replace(RANKING, floor=1 / CANDIDATES))
    template: ClassVar[str]
    """The prompt, with {} for the subject."""
    shot_end: ClassVar[str] = ".\n"
    """What follows each solved example in a few-shot prompt."""
    keep_case: ClassVar[bool] = False
    """Whether an answer in another case is wrong."""

    @classmethod
    def facts(cls, split: Split) -> list[Fact]:
        """The facts of a split, in the file's order; InputError if there are none."""
        if split == "train":
            raise InputError(f"task {cls.name} is a probe of what a model knows: it has no split 'train'")
        found = [
            Fact(cls.template.format(subject), answer, aliases)
            for part, subject, answer, aliases in read_rows(f"{cls.name}.tsv")
            if part == split
        ]
        if not found:
            raise InputError(f"task {cls.name} has no split {split!r}: choose validation or test")
        return found

    def rows(self, split: Split) -> Dataset:
        from datasets import Dataset

        facts = self.facts(split)
        return Dataset.from_dict({"prompt": [f.prompt for f in facts], "completion": [f.completion for f in facts]})

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
        """`seed` draws the candidates and, from the validation facts, the `shots` examples before each prompt."""
        check_options(limit, shots, batch_size)
        begin = time.perf_counter()
        candidates = draw_candidates(self.facts("test"), seed)[:limit]
        facts = self.facts("test")[:limit]
        prefix = self.few_shot_prefix(shots, seed)
        on_batch = count_steps(progress, 2 * len(facts))
        prompts = [prefix + fact.prompt for fact in facts]
        choices = [[f" {answer}" for answer in group] for group in candidates]
        likelihoods = candidate_log_likelihoods(model, tokenizer, prompts, choices, batch_size, on_batch=on_batch)
        outputs = generate_completions(model, tokenizer, prompts, MAX_NEW_TOKENS, batch_size, on_batch=on_batch)
        rows = zip(facts, candidates, likelihoods, outputs, strict=True)
        examples = [score_fact(*row, keep_case=self.keep_case) for row in rows]
        most_frequent = max(Counter(fact.answer for fact in facts).values())
        return TaskResult(
            task=self.name,
            metrics={
                key: sum(example[key] for example in examples) / len(examples) for key in (GREEDY.name, RANKING.name)
            },
            declared=self.metrics,
            floors={GREEDY.name: most_frequent / len(facts)},
            examples=examples,
            count=len(examples),
            seconds=time.perf_counter() - begin,
        )

    def few_shot_prefix(self, shots: int, seed: int) -> str:
        """`shots` validation facts drawn by `seed`, solved, one after the other."""
        if shots == 0:
            return ""
        facts = self.facts("validation")
        if shots > len(facts):
            raise InputError(f"task {self.name} has {len(facts)} facts for its examples, not {shots} shots")
        drawn = random.Random(seed).sample(facts, shots)
        return "".join(f"{fact.prompt}{fact.completion}{self.shot_end}" for fact in drawn)


@cache
def read_rows(name: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """(split, subject, answer, aliases) of each line of a file of data/ but the first, its header."""
    text = files("graftlm.tasks").joinpath("data", name).read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [
        (split, subject, answer, tuple(filter(None, aliases.split("|")))) for split, subject, answer, aliases in rows
    ]


def draw_candidates(facts: Sequence[Fact], seed: int) -> list[list[str]]:
    """For each fact its answer and 9 others, shuffled, so that no tie favours the right one."""
    generator = random.Random(seed)
    answers = sorted({fact.answer for fact in facts})
    groups = []
    for fact in facts:
        others = [answer for answer in answers if answer != fact.answer and answer not in fact.aliases]
        groups.append(generator.sample([fact.answer, *generator.sample(others, CANDIDATES - 1)], CANDIDATES))
    return groups


def score_fact(
    fact: Fact, candidates: list[str], scores: list[tuple[float, int]], output: str, *, keep_case: bool = False
) -> dict[str, Any]:
    """One example of the result; `scores` are the candidates' log-likelihoods in nats and numbers of tokens."""
    sums = [total for total, _ in scores]
    ranked_first = candidates[sums.index(max(sums))]
    log_likelihood, tokens = scores[candidates.index(fact.answer)]
    return {
        "prompt": fact.prompt,
        "reference": fact.answer,
        "output": output.strip(),
        GREEDY.name: float(names_answer(output, fact, keep_case=keep_case)),
        RANKING.name: float(ranked_first == fact.answer),
        "ranked_first": ranked_first,
        "nll": -log_likelihood,
        "tokens": tokens,
    }


def names_answer(output: str, fact: Fact, *, keep_case: bool = False) -> bool:
    """Whether the output's first line names the answer, or an alias, as whole words."""

    def plain(text: str) -> str:
        return _plain(text if keep_case else text.casefold())

    line = f" {plain(output.strip().split(chr(10), 1)[0])} "
    return any(f" {plain(name)} " in line for name in (fact.answer, *fact.aliases))


def _plain(text: str) -> str:
    """Without accents, apostrophes and full stops; all other punctuation separates words.

    "Washington, D.C." and "Washington D.C." agree, as do "N'Djamena" and "N’Djaména", "Porto-Novo" and "Porto Novo".
    The point and the sign of a number stay: 1.5 is not 15, and -5 not 5.
    """
    text = unicodedata.normalize("NFKD", text)
    kept = []
    for place, character in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if character.isalnum():
            kept.append(character)
        elif after.isdigit() and (
            character == "." if before.isdigit() else character in ".-−" and not before.isalnum()
        ):
            kept.append(character.replace("−", "-"))
        elif not unicodedata.combining(character) and character not in ".'’‘`":
            kept.append(" ")
    return " ".join("".join(kept).split())
