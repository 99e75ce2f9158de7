"""capitals: a probe of general knowledge that tuning on another domain should leave alone (see
data/README.md)."""

from __future__ import annotations

import random
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from graftlm.errors import InputError
from graftlm.tasks.base import Progress, Split, Task, TaskResult, check_options, count_steps
from graftlm.tasks.generation import generate_completions
from graftlm.tasks.ranking import candidate_log_likelihoods

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 7
CANDIDATES = 10  # the right capital and 9 others


class Country(NamedTuple):
    """`name` as it stands in a sentence ("the United States"); `aliases`: other accepted names of the
    capital."""

    name: str
    capital: str
    aliases: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"The capital of {self.name} is"

    @property
    def completion(self) -> str:
        return f" {self.capital}"


class Capitals(Task):
    """Metrics, both means over the test countries:

    - `greedy_accuracy`: the capital or an alias stands, as whole words, in the first line of the greedy
      completion of 7 tokens; accents, case and punctuation do not count;
    - `ranking_accuracy`: the right capital has the highest log-likelihood, summed over its tokens, of 10
      candidates: itself and 9 capitals of other test countries, drawn once for all models by `seed`.

    Floors: always the same answer, the most frequent one, for `greedy_accuracy`; a guess for
    `ranking_accuracy`.
    """

    name: ClassVar[str] = "capitals"
    description: ClassVar[str] = "knowledge probe: capitals of the countries of more than 3 million people"

    def rows(self, split: Split) -> Dataset:
        from datasets import Dataset

        if split == "train":
            raise InputError("task capitals is a probe of what a model knows: it has no split 'train'")
        countries = read_countries(split)
        prompts = [country.prompt for country in countries]
        return Dataset.from_dict({"prompt": prompts, "completion": [c.completion for c in countries]})

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
        """`seed` draws the candidates and, from the smaller countries, the `shots` examples before each
        prompt."""
        check_options(limit, shots, batch_size)
        begin = time.perf_counter()
        candidates = draw_candidates(read_countries("test"), seed)[:limit]
        countries = read_countries("test")[:limit]
        prefix = few_shot_prefix(shots, seed)
        on_batch = count_steps(progress, 2 * len(countries))
        prompts = [prefix + country.prompt for country in countries]
        choices = [[f" {capital}" for capital in group] for group in candidates]
        likelihoods = candidate_log_likelihoods(model, tokenizer, prompts, choices, batch_size, on_batch=on_batch)
        outputs = generate_completions(model, tokenizer, prompts, MAX_NEW_TOKENS, batch_size, on_batch=on_batch)
        rows = zip(countries, candidates, likelihoods, outputs, strict=True)
        examples = [score_country(*row) for row in rows]
        most_frequent = max(Counter(country.capital for country in countries).values())
        return TaskResult(
            task=self.name,
            metrics={
                key: sum(example[key] for example in examples) / len(examples)
                for key in ("greedy_accuracy", "ranking_accuracy")
            },
            floors={"greedy_accuracy": most_frequent / len(countries), "ranking_accuracy": 1 / CANDIDATES},
            examples=examples,
            count=len(examples),
            seconds=time.perf_counter() - begin,
        )


@cache
def read_countries(split: Split) -> list[Country]:
    """The rows of a split, by name."""
    text = files("graftlm.tasks").joinpath("data", "capitals.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    countries = [
        Country(name, capital, tuple(filter(None, aliases.split("|"))))
        for part, name, capital, aliases in rows
        if part == split
    ]
    if not countries:
        raise InputError(f"task capitals has no split {split!r}: choose validation or test")
    return countries


def draw_candidates(countries: Sequence[Country], seed: int) -> list[list[str]]:
    """For each country its capital and 9 others, shuffled, so that no tie favours the right one."""
    generator = random.Random(seed)
    capitals = sorted({country.capital for country in countries})
    groups = []
    for country in countries:
        others = [capital for capital in capitals if capital != country.capital]
        groups.append(generator.sample([country.capital, *generator.sample(others, CANDIDATES - 1)], CANDIDATES))
    return groups


def score_country(
    country: Country, candidates: list[str], scores: list[tuple[float, int]], output: str
) -> dict[str, Any]:
    """One example of the result; `scores` are the candidates' log-likelihoods and numbers of tokens."""
    sums = [total for total, _ in scores]
    ranked_first = candidates[sums.index(max(sums))]
    log_likelihood, tokens = scores[candidates.index(country.capital)]
    return {
        "prompt": country.prompt,
        "reference": country.capital,
        "output": output.strip(),
        "greedy_accuracy": float(names_capital(output, country)),
        "ranking_accuracy": float(ranked_first == country.capital),
        "ranked_first": ranked_first,
        "nll": -log_likelihood,
        "tokens": tokens,
    }


def few_shot_prefix(shots: int, seed: int) -> str:
    """`shots` smaller countries drawn by `seed`, one sentence a line."""
    countries = read_countries("validation")
    if shots > len(countries):
        raise InputError(f"task capitals has {len(countries)} countries for its examples, not {shots} shots")
    return "".join(f"{c.prompt}{c.completion}.\n" for c in random.Random(seed).sample(countries, shots))


def names_capital(output: str, country: Country) -> bool:
    """Whether the output's first line names the capital, or an alias, as whole words."""
    line = f" {_plain(output.strip().split(chr(10), 1)[0])} "
    return any(f" {_plain(name)} " in line for name in (country.capital, *country.aliases))


def _plain(text: str) -> str:
    """Lower case without accents, apostrophes and full stops; all other punctuation separates words.

    "Washington, D.C." and "Washington D.C." agree, as do "N'Djamena" and "N’Djaména", "Porto-Novo" and "Porto
    Novo".
    """
    kept = []
    for character in unicodedata.normalize("NFKD", text.casefold()):
        if character.isalnum():
            kept.append(character)
        elif not unicodedata.combining(character) and character not in ".'’‘`":
            kept.append(" ")
    return " ".join("".join(kept).split())
