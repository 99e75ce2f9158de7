"""A probe out of a user's own file: rows of prompt and completion, with wrong choices where there are any."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from graftlm.data.readers import read_file
from graftlm.decoding.batches import completion_log_likelihoods, generate_completions
from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.errors import InputError
from graftlm.tasks.base import Progress, Split, Task, TaskResult, check_options, count_steps
from graftlm.tasks.facts import GREEDY, MAX_NEW_TOKENS, RANKING, Fact, names_answer
from graftlm.tasks.metric import NLL, PERPLEXITY
from graftlm.tasks.perplexity import likelihood_result

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST_ANSWER = 32
"""In tokens; whether two longer texts say the same, no comparison of words can tell."""
COLUMNS = ("prompt", "completion", "choices")
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet.gz")


class Question(NamedTuple):
    """`completion` as it follows the prompt, space included; `choices`: wrong completions."""

    prompt: str
    completion: str
    choices: tuple[str, ...]


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

    def __init__(self, path: Path) -> None:
        self.name = path.name.split(".")[0]  # type: ignore[misc]
        self.questions = [_question(place, row) for place, row in read_file(path)]
        if not self.questions:
            raise InputError(f"the probe {path} is empty: rows with prompt and completion are expected")

    def rows(self, split: Split) -> Dataset:
        from datasets import Dataset

        if split != "test":
            raise InputError(f"probe {self.name} is a file: it has no split {split!r}, only test")
        prompts, completions, _ = zip(*self.questions, strict=True)
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
        """No shots: a file's prompts stand as they are."""
        check_options(limit, shots, batch_size)
        if shots:
            raise InputError(f"probe {self.name} is a file: put the shots into its prompts")
        begin = time.perf_counter()
        questions = self.questions[:limit]
        on_batch = count_steps(progress, 2 * len(questions))
        prompts = [question.prompt for question in questions]
        pairs = [(question.prompt, question.completion) for question in questions]
        ranked = all(question.choices for question in questions)
        if ranked:
            groups = [[question.completion, *question.choices] for question in questions]
            scores = candidate_log_likelihoods(model, tokenizer, prompts, groups, batch_size, on_batch=on_batch)
            likelihoods = [group[0] for group in scores]
        else:
            likelihoods = completion_log_likelihoods(model, tokenizer, pairs, batch_size, on_batch=on_batch)
        longest = max(tokens for _, tokens in likelihoods)
        named = longest <= LONGEST_ANSWER
        outputs = [""] * len(prompts)
        if named:
            # Another tokenization of the same answer may be a little longer.
            most = max(MAX_NEW_TOKENS, longest + 2)
            outputs = generate_completions(model, tokenizer, prompts, most, batch_size, on_batch=on_batch)
        elif on_batch is not None:
            on_batch(len(prompts))
        found = likelihood_result(self.name, pairs, likelihoods, time.perf_counter() - begin)
        for place, (example, question, output) in enumerate(zip(found.examples, questions, outputs, strict=True)):
            if named:
                answer = question.completion.strip().split("\n", 1)[0]
                right = names_answer(output, Fact(question.prompt, answer))
                example |= {"output": output.strip(), GREEDY.name: float(right)}
            if ranked:
                # A tie is no knowledge.
                best = scores[place][0][0] > max(total for total, _ in scores[place][1:])
                example[RANKING.name] = float(best)
        kinds = [*([GREEDY.name] if named else []), *([RANKING.name] if ranked else [])]
        accuracies = {kind: sum(example[kind] for example in found.examples) / found.count for kind in kinds}
        guess = sum(1 / (1 + len(question.choices)) for question in questions) / len(questions)
        return TaskResult(
            task=self.name,
            metrics={**accuracies, **found.metrics},
            declared=self.metrics,
            floors={RANKING.name: guess},
            examples=found.examples,
            count=found.count,
            seconds=found.seconds,
        )


def is_probe_file(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _question(place: str, row: Mapping[str, Any]) -> Question:
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
    return Question(row["prompt"], row["completion"], tuple(choices))
