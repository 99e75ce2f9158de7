"""A probe out of a user's own file: rows of prompt and completion, with wrong choices where there are any."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from graftlm.data.readers import read_file
from graftlm.errors import InputError
from graftlm.tasks.asking import Answer, Example
from graftlm.tasks.base import Split, Task
from graftlm.tasks.facts import GREEDY, MAX_NEW_TOKENS, RANKING, Fact, names_answer
from graftlm.tasks.metric import NLL, PERPLEXITY

LONGEST_ANSWER = 32
"""In tokens; whether two longer texts say the same, no comparison of words can tell."""
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet.gz")


class FileProbe(Task):
    """Metrics over the rows of a JSON(L), CSV or Parquet file:

    - `greedy_accuracy`, where no row's completion has more than 32 tokens: the first line of the greedy completion
      names the first line of the row's (see `FactProbe`);
    - `ranking_accuracy`, where every row has `choices`: the completion has the highest log-likelihood among them;
    - `nll_per_token` and `perplexity` of the completions.

    Floors: none for the first, a guess for the second. Raises InputError for an empty file or a wrong column.
    """

    name: ClassVar[str] = "file"
    description: ClassVar[str] = "probe out of a file with the columns prompt and completion"
    metrics = (GREEDY, RANKING, NLL, PERPLEXITY)

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(self, path: Path) -> None:
        self.name = path.name.split(".")[0]  # type: ignore[misc]
        self.questions = [_question(place, row) for place, row in read_file(path)]
        if not self.questions:
            raise InputError(f"the probe {path} is empty: rows with prompt and completion are expected")

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        if split != "test":
            raise InputError(f"probe {self.name} is a file: it has no split {split!r}, only test")
        return self.questions

    def new_tokens(self, longest: int) -> int:
        """Another tokenization of the same answer may be a little longer than the longest."""
        return max(MAX_NEW_TOKENS, longest + 2) if longest <= LONGEST_ANSWER else 0

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        if answer.output is not None:
            right = Fact(example.prompt, example.reference.split("\n", 1)[0])
            scores[GREEDY.name] = float(names_answer(answer.output, right))
        if answer.choices:
            (best, _), *others = answer.choices
            scores[RANKING.name] = float(best > max(total for total, _ in others))  # a tie is no knowledge
        return scores

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        return {RANKING.name: sum(1 / max(len(example.choices), 1) for example in examples) / len(examples)}

    def few_shot_prefix(self, shots: int, seed: int) -> str:
        """Empty: the prompts of a file stand as they are."""
        if shots:
            raise InputError(f"probe {self.name} is a file: put the shots into its prompts")
        return ""


def _question(place: str, row: Mapping[str, Any]) -> Example:
    for name in ("prompt", "completion"):
        if name not in row:
            near = difflib.get_close_matches(name, list(row), n=1)
            hint = f"; rename {near[0]!r}?" if near else ""
            raise InputError(f"{place} has no column {name!r}; it has {', '.join(map(str, row))}{hint}")
        if not isinstance(row[name], str) or not row[name].strip():
            raise InputError(f"{place}: {name!r} is {row[name]!r}, but text is expected")
    choices = row.get("choices")
    if choices is not None and hasattr(choices, "tolist"):
        choices = choices.tolist()
    if choices is None:
        choices = []
    if not isinstance(choices, list) or not all(isinstance(each, str) and each.strip() for each in choices):
        raise InputError(f"{place}: 'choices' is {choices!r}, but a list of wrong completions is expected")
    if row["completion"] in choices:
        raise InputError(f"{place}: the completion {row['completion']!r} stands among its own wrong choices")
    return Example(row["prompt"], row["completion"], (row["completion"], *choices) if choices else ())
