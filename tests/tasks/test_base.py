"""Tasks of one's own: examples and a score are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from graftlm.errors import InputError
from graftlm.tasks import TASKS, Answer, Example, Metric, Task, facts
from graftlm.tasks.base import Split
from graftlm.tasks.evaluation import evaluate
from graftlm.tasks.facts import FactProbe
from graftlm.tasks.metric import NLL


class NextLetter(Task):
    """The letter after another one in the alphabet."""

    name, description = "next-letter", "letter -> the next one"
    metrics = (Metric("exact", "exact match", higher_is_better=True, best=1.0, kind="accuracy"), NLL)
    max_new_tokens = 4
    shot_end = "\n"

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        letters = {"train": "abc", "validation": "de", "test": "fgh"}[split]
        return [Example(f"after {letter}", f"{chr(ord(letter) + 1)}") for letter in letters]

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        return {"exact": float(answer.text == example.reference)}

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        return {"exact": 1 / len(examples)}


class Rivers(FactProbe):
    """Country -> its longest river."""

    name, description = "rivers", "knowledge probe: longest rivers"
    template = "The longest river of {} is the"


@pytest.fixture
def model(make_successor_model: Any) -> Any:
    """Writes g after f, then ends the line; after all others an x."""
    return make_successor_model({"f": "g", "g": "\n"}, "x")


def test_a_task_is_examples_and_a_score(model: Any, tokenizer: Any) -> None:
    [result] = evaluate(model, tokenizer, [NextLetter()]).values()
    assert [example["output"] for example in result.examples] == ["g", "", "xxxx"]
    assert result.metrics["exact"] == pytest.approx(1 / 3) == result.floors["exact"]
    assert result.metrics["nll_per_token"] == sum(e["nll"] for e in result.examples) / 3
    assert result.count == 3 and result.examples[0]["reference"] == "g"


def test_its_examples_are_training_rows_and_shots(model: Any, tokenizer: Any) -> None:
    task = NextLetter()
    assert task.rows("train")[0] == {"prompt": "after a", "completion": "b"}
    assert sorted(task.few_shot_prefix(3, seed=0).splitlines()) == ["after ab", "after bc", "after cd"]
    with pytest.raises(InputError, match="next-letter has 3 train examples, not 4 shots"):
        task.evaluate(model, tokenizer, shots=4)


def test_the_command_line_knows_it_once_it_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    from graftlm.data import load_rows
    from graftlm.tasks import get_task

    monkeypatch.setitem(TASKS, "next-letter", NextLetter)
    assert isinstance(get_task("next-letter"), NextLetter)
    assert load_rows("next-letter", "validation")[0] == {"prompt": "after d", "completion": "e"}


def test_a_probe_of_facts_is_a_table_and_a_template(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [("test", f"land {n}", f"river {n}", ()) for n in range(12)]
    monkeypatch.setattr(facts, "read_rows", {"rivers.tsv": table}.__getitem__)
    [result] = evaluate(model, tokenizer, [Rivers()], limit=4).values()
    assert result.examples[1]["prompt"] == "The longest river of land 1 is the"
    assert result.floors == {"greedy_accuracy": 0.25, "ranking_accuracy": 0.1}
    assert set(result.metrics) == {"greedy_accuracy", "ranking_accuracy"}


def test_a_task_without_examples_says_so(model: Any, tokenizer: Any) -> None:
    class Empty(Task):
        name = description = "empty"
        metrics = (NLL,)

    with pytest.raises(InputError, match="task empty has no examples: define examples"):
        Empty().evaluate(model, tokenizer)
