"""The probes besides capitals: their data, perplexity against a plain computation, and probes out of files."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.errors import InputError
from graftlm.tasks import TASKS, Code, Elements, FileProbe, GeneralText, Glosses, get_task
from graftlm.tasks.facts import FactProbe, names_answer


@pytest.mark.parametrize(("probe", "test", "validation"), [(Elements, 103, 15), (Glosses, 200, 20)])
def test_the_facts_are_as_many_as_the_readme_states_and_asked_once(
    probe: type[FactProbe], test: int, validation: int
) -> None:
    facts = [*probe.facts("test"), *probe.facts("validation")]
    assert (len(probe.facts("test")), len(probe.facts("validation"))) == (test, validation)
    assert len({fact.prompt for fact in facts}) == len({fact.answer for fact in facts}) == len(facts)


def test_no_definition_gives_its_word_away() -> None:
    for fact in Glosses.facts("test"):
        words = fact.prompt.removeprefix("There is a word for ").removesuffix(": the word").lower()
        assert not any(word[:4] in words for word in (fact.answer, *fact.aliases)), fact


def test_general_text_holds_no_definition_that_is_asked_elsewhere() -> None:
    asked = {fact.answer for fact in (*Glosses.facts("test"), *Glosses.facts("validation"))}
    defined = {prompt.removeprefix("Definition of ").removesuffix(":") for prompt, _ in GeneralText.pairs()}
    assert len(defined) == 200 and not asked & defined


def test_a_symbol_in_another_case_is_a_word_and_no_answer() -> None:
    arsenic = next(fact for fact in Elements.facts("test") if fact.answer == "As")
    assert Elements.keep_case and names_answer("As.", arsenic, keep_case=True)
    assert not names_answer("as soft as lead", arsenic, keep_case=True)
    assert names_answer("as soft as lead", arsenic)


def test_every_solution_of_code_is_python() -> None:
    pairs = Code.pairs()
    assert len(pairs) == 49
    for prompt, completion in pairs:
        compile(prompt + completion, "<humaneval>", "exec")


@pytest.mark.parametrize("name", ["elements", "glosses", "general-text", "code"])
def test_a_probe_has_no_training_rows(name: str) -> None:
    with pytest.raises(InputError, match="no split 'train'"):
        get_task(name).rows("train")
    assert set(get_task(name).rows("test").column_names) == {"prompt", "completion"} and name in TASKS


def test_perplexity_is_the_plain_one(make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    pairs = [("one", " two three"), ("a longer prompt", " x")]
    monkeypatch.setattr(GeneralText, "pairs", classmethod(lambda cls: pairs))
    result = GeneralText().evaluate(model, tokenizer)
    total, tokens = 0.0, 0
    for prompt, completion in pairs:
        ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
        first = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logs = torch.log_softmax(model(ids).logits[0], -1)
        total -= float(logs[first - 1 : -1].gather(1, ids[0, first:, None]).sum())
        tokens += ids.shape[1] - first
    assert result.metrics["nll_per_token"] == pytest.approx(total / tokens, rel=1e-6)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-6)
    assert [example["tokens"] for example in result.examples] == [10, 2]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_a_probe(make_successor_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """A model that always goes on with "b" until it ends after "c"."""
    model = make_successor_model({"b": ""}, "b")
    rows = [
        {"prompt": "a", "completion": "b", "choices": ["c", "d"]},
        {"prompt": "a", "completion": "c", "choices": ["b"]},
    ]
    probe = get_task(str(written(tmp_path / "mine.jsonl", rows)))
    assert isinstance(probe, FileProbe) and probe.name == "mine"
    result = probe.evaluate(model, tokenizer)
    assert result.metrics["greedy_accuracy"] == result.metrics["ranking_accuracy"] == 0.5
    assert [example["greedy_accuracy"] for example in result.examples] == [1.0, 0.0]
    assert result.floors == {"ranking_accuracy": pytest.approx((1 / 3 + 1 / 2) / 2)}
    unranked = FileProbe(written(tmp_path / "more.jsonl", [{"prompt": "a", "completion": "b"}]))
    assert set(unranked.evaluate(model, tokenizer).metrics) == {"greedy_accuracy", "nll_per_token", "perplexity"}
    alphabet = "abcdefghijklm\n"
    ended = make_successor_model({**dict(pairwise(alphabet)), "\n": ""}, "b")
    lines = FileProbe(written(tmp_path / "lines.jsonl", [{"prompt": "a", "completion": "bcdefghijklm\nmore"}]))
    assert lines.evaluate(ended, tokenizer).metrics["greedy_accuracy"] == 1, "as long as the longest answer"
    long = FileProbe(written(tmp_path / "long.jsonl", [{"prompt": "a", "completion": "b" * 40}]))
    assert set(long.evaluate(model, tokenizer).metrics) == {"nll_per_token", "perplexity"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completon": "b"}], "row 2 .* no column 'completion'"),
        ([{"prompt": "a", "completon": "b"}], "rename 'completon'"),
        ([{"prompt": "a", "completion": 3}], "'completion' is 3, but text"),
        ([{"prompt": "a", "completion": "b", "choices": "c"}], "'choices' is 'c', but a list"),
        ([{"prompt": "a", "completion": "b", "choices": ["b"]}], "its own wrong choices"),
    ],
)
def test_a_file_that_is_no_probe_is_refused_in_one_line(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FileProbe(written(tmp_path / "bad.jsonl", rows))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        get_task(str(tmp_path / "absent.jsonl"))
