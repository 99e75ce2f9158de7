"""A probe of facts: questions with one right answer, asked greedily and by ranking.

To add one: a file data/NAME.tsv (split, subject, answer, other accepted answers) and a subclass with a template, as
at the end of this module.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, NamedTuple

from graftlm.errors import InputError
from graftlm.tasks.asking import Answer, Example
from graftlm.tasks.base import Split, Task
from graftlm.tasks.metric import Metric

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
    keep_case: ClassVar[bool] = False
    """Whether an answer in another case is wrong."""
    max_new_tokens = MAX_NEW_TOKENS
    shots_from = "validation"
    shot_end = ".\n"

    @classmethod
    def facts(cls, split: Split) -> list[Fact]:
        """The facts of a split, in the file's order; InputError if there are none."""
        if split == "train":
            raise InputError(f"task {cls.name} is a probe of what a model knows: it has no split 'train'")
        facts = [
            Fact(cls.template.format(subject), answer, aliases)
            for part, subject, answer, aliases in read_rows(f"{cls.name}.tsv")
            if part == split
        ]
        if not facts:
            raise InputError(f"task {cls.name} has no split {split!r}: choose validation or test")
        return facts

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        """With candidates as choices in the test split, drawn among the answers of all its facts."""
        facts = self.facts(split)
        candidates = draw_candidates(facts, seed) if split == "test" else [[] for _ in facts]
        return [
            Example(fact.prompt, fact.completion, [f" {answer}" for answer in group], data=fact)
            for fact, group in zip(facts, candidates, strict=True)
        ]

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        totals = [total for total, _ in answer.choices]
        ranked_first = example.choices[totals.index(max(totals))]
        return {
            GREEDY.name: float(names_answer(answer.text, example.data, keep_case=self.keep_case)),
            RANKING.name: float(ranked_first == example.completion),
            "ranked_first": ranked_first.strip(),
        }

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        return {GREEDY.name: max(Counter(example.completion for example in examples).values()) / len(examples)}


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
    characters = []
    for place, character in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if character.isalnum():
            characters.append(character)
        elif after.isdigit() and (
            character == "." if before.isdigit() else character in ".-−" and not before.isalnum()
        ):
            characters.append(character.replace("−", "-"))
        elif not unicodedata.combining(character) and character not in ".'’‘`":
            characters.append(" ")
    return " ".join("".join(characters).split())


class Capitals(FactProbe):
    """Country -> capital."""

    name: ClassVar[str] = "capitals"
    description: ClassVar[str] = "knowledge probe: capitals of the countries of more than 3 million people"
    template: ClassVar[str] = "The capital of {} is"


class Elements(FactProbe):
    """Chemical element -> symbol; the transactinides serve as few-shot examples."""

    name: ClassVar[str] = "elements"
    description: ClassVar[str] = "knowledge probe: symbols of the chemical elements up to lawrencium"
    template: ClassVar[str] = "The chemical symbol of {} is"
    keep_case: ClassVar[bool] = True  # "as", "in", "no", "at" and "he" are words, not arsenic, indium, ...


class Glosses(FactProbe):
    """Dictionary definition -> noun."""

    name: ClassVar[str] = "glosses"
    description: ClassVar[str] = "knowledge probe: the noun that a dictionary defines so"
    template: ClassVar[str] = "There is a word for {}: the word"
