from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from typing import Any

import pytest

from graftlm.errors import InputError
from graftlm.tasks import asking
from graftlm.tasks.facts import Capitals, Fact, draw_candidates, names_answer


def test_the_script_rebuilds_the_data_file(load_tool: Any):
    try:
        distribution("countryinfo")
    except PackageNotFoundError:
        pytest.skip("needs countryinfo==1.0.1")
    text = files("graftlm.tasks").joinpath("data", "capitals.tsv").read_text(encoding="utf-8")
    assert load_tool("build_capitals").build() == text


def test_the_data_has_the_sizes_that_its_readme_states_and_each_capital_once():
    assert (len(Capitals.facts("test")), len(Capitals.facts("validation"))) == (135, 20)
    assert len({country.answer for country in Capitals.facts("test")}) == 135


def test_a_probe_has_no_training_rows():
    with pytest.raises(InputError, match="no split 'train'"):
        Capitals().rows("train")
    row = Capitals().rows("test")[0]
    assert row == {"prompt": "The capital of Afghanistan is", "completion": " Kabul"}


@pytest.mark.parametrize(
    ("output", "capital", "right"),
    [
        (" Paris.", "Paris", True),
        (" the city of PARIS", "Paris", True),
        (" Paris\nLondon", "Paris", True),
        (" Lyon\nParis", "Paris", False),
        (" Parisian", "Paris", False),
        ("", "Paris", False),
        (" Bogota", "Bogotá", True),
        (" Chișinău", "Chişinău", True),
        (" N’Djaména", "N'Djamena", True),
        (" Washington, D.C.", "Washington D.C.", True),
        (" Porto Novo", "Porto-Novo", True),
        (" Novo", "Porto-Novo", False),
        (" Kiev", "Kyiv", True),
    ],
)
def test_an_answer_counts_if_its_first_line_names_the_capital(output: str, capital: str, right: bool):
    assert names_answer(output, Fact("X", capital, ("Kiev",))) is right


def test_the_sign_and_the_point_of_a_number_count() -> None:
    for output, answer in ((" 5", "-5"), ("-5", "5"), ("15", "1.5"), ("1.5", "15")):
        assert not names_answer(output, Fact("X", answer))
    for output, answer in (("-5.", "-5"), ("it is 1.5, so", "1.5"), ("−5", "-5"), ("3-5", "5")):
        assert names_answer(output, Fact("X", answer))


def test_each_country_has_ten_distinct_candidates_and_the_right_one_anywhere_among_them():
    countries = Capitals.facts("test")
    drawn = draw_candidates(countries, 0)
    assert all(len(set(group)) == 10 for group in drawn)
    places = [group.index(country.answer) for country, group in zip(countries, drawn, strict=True)]
    assert set(places) == set(range(10))
    assert drawn == draw_candidates(countries, 0) != draw_candidates(countries, 1)


def test_a_limit_asks_the_same_questions_about_fewer_countries(make_model: Any, tokenizer: Any):
    model = make_model()
    few = Capitals().evaluate(model, tokenizer, limit=4)
    more = Capitals().evaluate(model, tokenizer, limit=9, batch_size=3)
    for one, other in zip(few.examples, more.examples, strict=False):
        assert one["nll"] == pytest.approx(other["nll"])
        assert {key: one[key] for key in one if key != "nll"} == {key: other[key] for key in other if key != "nll"}
    assert (few.count, more.count) == (4, 9)
    assert few.floors == {"greedy_accuracy": 1 / 4, "ranking_accuracy": 0.1}
    assert set(few.examples[0]) >= {"prompt", "reference", "output", "ranked_first", *few.metrics}


@pytest.mark.slow
def test_a_model_without_any_knowledge_is_near_the_floor(make_model: Any, tokenizer: Any):
    model = make_model()
    model.lm_head.weight.data.fill_(float("nan"))
    assert Capitals().evaluate(model, tokenizer).metrics["ranking_accuracy"] == pytest.approx(0.1, abs=0.08)


def test_a_model_that_prefers_every_right_capital_scores_one(
    monkeypatch: pytest.MonkeyPatch, make_model: Any, tokenizer: Any
):
    right = {country.prompt: f" {country.answer}" for country in Capitals.facts("test")}

    def rank(model: Any, tok: Any, prompts: Any, candidates: Any, *args: Any, **kw: Any) -> Any:
        return [
            [(-1.0, 1) if candidate == right[prompt] else (-2.0, 4) for candidate in group]
            for prompt, group in zip(prompts, candidates, strict=True)
        ]

    monkeypatch.setattr(asking, "candidate_log_likelihoods", rank)
    monkeypatch.setattr(asking, "generate_completions", lambda *args, **options: [right[p] for p in args[2]])
    result = Capitals().evaluate(make_model(), tokenizer)
    assert result.metrics == {"greedy_accuracy": 1.0, "ranking_accuracy": 1.0}
    assert result.count == 135


def test_shots_are_smaller_countries_that_are_never_probed():
    prefix = Capitals().few_shot_prefix(20, seed=0)
    assert prefix == Capitals().few_shot_prefix(20, seed=0) != Capitals().few_shot_prefix(20, seed=1)
    lines = prefix.splitlines()
    assert len(lines) == 20 and all(line.endswith(".") for line in lines)
    assert not any(line.startswith(country.prompt) for line in lines for country in Capitals.facts("test"))
    with pytest.raises(InputError, match="20 validation examples, not 21 shots"):
        Capitals().few_shot_prefix(21, seed=0)
