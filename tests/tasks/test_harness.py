"""Tasks of the LM Evaluation Harness, read from a file of its own format so that nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graftlm.auditing.intervals import bootstrap_change
from graftlm.decoding.batches import completion_log_likelihoods
from graftlm.errors import InputError
from graftlm.proxy import ProxyTunedModel
from graftlm.tasks import get_task
from graftlm.tasks.harness import guess_floors, merged_examples, read_metrics
from tests.conftest import byte_tokenizer, tiny_model
from tests.proxy.models import sharp

pytest.importorskip("lm_eval", reason="needs the extra eval")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

ROWS = [
    {"question": "sky is", "choices": ["blue", "red"], "answer": 0},
    {"question": "snow is", "choices": ["black", "white", "green"], "answer": 1},
]


def document(folder: Path, *metrics: dict[str, Any], **settings: Any) -> str:
    rows, file = folder / "rows.jsonl", folder / "own.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "metric_list": metrics,
    }  # fmt: skip
    file.write_text(json.dumps(task | settings))  # JSON is YAML
    return f"lm-eval:{file}"


@pytest.fixture
def task(tmp_path: Path) -> str:
    metrics = {"metric": "acc"}, {"metric": "acc_norm"}
    return document(tmp_path, *metrics, output_type="multiple_choice", doc_to_choice="{{choices}}")


@pytest.mark.slow
def test_the_harness_measures_the_model_that_is_loaded(task: str, make_model: Any, tokenizer: Any) -> None:
    model = make_model()
    result = get_task(task).evaluate(model, tokenizer)
    pairs = [(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]  # type: ignore[attr-defined]
    scores = [total for total, _ in completion_log_likelihoods(model, tokenizer, pairs)]
    right = [float(scores[0] > scores[1]), float(scores[3] > max(scores[2], scores[4]))]
    assert result.metrics["accuracy"] == pytest.approx(sum(right) / 2)
    assert [example["accuracy"] for example in result.examples] == right
    assert [(e["prompt"], e["reference"]) for e in result.examples] == [("sky is", "blue"), ("snow is", "white")]
    assert result.floors == {"accuracy": pytest.approx(5 / 12), "normalised_accuracy": pytest.approx(5 / 12)}
    assert get_task(task).rows("test").to_list()[1] == {"prompt": "snow is", "completion": " white"}


@pytest.mark.slow
def test_the_harness_reads_prompts_open_though_the_tokenizer_ends_each_text(task: str) -> None:
    results = []
    for ends in (False, True):
        tokenizer = byte_tokenizer()
        tokenizer.add_bos_token, tokenizer.add_eos_token = True, ends
        results.append(get_task(task).evaluate(tiny_model(), tokenizer).examples)
    assert results[0] == results[1]


@pytest.mark.slow
def test_the_harness_measures_a_steered_model_as_any_other(task: str, tokenizer: Any) -> None:
    """base + (expert - base) is the expert: likelihoods through HFLM, and generation through `generate`."""
    base, expert = sharp(tiny_model(seed=1)), sharp(tiny_model(seed=2))
    steered = get_task(task).evaluate(ProxyTunedModel(base, expert, base), tokenizer)
    alone = get_task(task).evaluate(expert, tokenizer)
    assert steered.examples == alone.examples and steered.metrics == alone.metrics
    request = Instance("generate_until", {}, ("sky is", {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}), 0)
    written = [
        HFLM(pretrained=model, tokenizer=tokenizer).generate_until([request])
        for model in (ProxyTunedModel(base, expert, base), expert)
    ]
    assert written[0] == written[1] and written[0] != HFLM(pretrained=base, tokenizer=tokenizer).generate_until(
        [request]
    )


@pytest.mark.slow
def test_a_name_that_stands_for_several_tasks_is_refused_with_their_names() -> None:
    with pytest.raises(InputError, match=r"stands for 2 tasks.*lm-eval:arc_challenge, lm-eval:arc_easy"):
        get_task("lm-eval:ai2_arc")
    with pytest.raises(InputError, match=r"stands for \d+ tasks"):
        get_task("lm-eval:arc_*")


@pytest.mark.slow
def test_a_metric_of_the_harness_goes_the_way_that_it_declares(tmp_path: Path, make_model: Any, tokenizer: Any) -> None:
    """Bits per byte by lm-eval's registry, the other by the task's file."""
    name = document(
        tmp_path,
        {"metric": "bits_per_byte"},
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
    )  # fmt: skip
    result = get_task(name).evaluate(make_model(), tokenizer)
    assert {metric.name: metric.higher_is_better for metric in result.declared} == {
        "bits_per_byte": False, "byte_perplexity": False,
    }  # fmt: skip
    worse = replace(result, metrics={each: value + 1 for each, value in result.metrics.items()})
    change = bootstrap_change(result, worse, "bits_per_byte")
    assert change is not None and not change.better


def test_a_metric_of_the_harness_that_declares_no_direction_is_refused(tmp_path: Path) -> None:
    scores = {"process_results": "{{ {'wit': 1.0} }}", "output_type": "generate_until"}
    name = document(tmp_path, {"metric": "wit", "aggregation": "mean", "higher_is_better": None}, **scores)
    with pytest.raises(InputError, match=r"does not say whether wit of lm-eval:.*own\.yaml is better high or low"):
        get_task(name).metrics  # noqa: B018


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(InputError, match="lm-eval has no task 'arc_eazy'"):
        get_task("lm-eval:arc_eazy")


def test_a_document_is_one_example_whatever_the_filters_and_errors_are_no_metrics() -> None:
    sample = {
        "doc_id": 0,
        "doc_hash": "h",
        "target": "#### 4",
        "arguments": [["2 + 2", {}]],
        "metrics": ["exact_match"],
    }
    both = [{**sample, "filter": name, "exact_match": value, "filtered_resps": ["4"]}
            for name, value in (("strict", 0.0), ("flexible", 1.0))]  # fmt: skip
    assert merged_examples(both) == [
        {"prompt": "2 + 2", "reference": "#### 4", "output": "4",
         "exact_match (strict)": 0.0, "exact_match (flexible)": 1.0}
    ]  # fmt: skip
    assert guess_floors(both) == {}
    assert read_metrics({"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_stderr": "N/A"}) == {
        "accuracy": 0.5
    }
