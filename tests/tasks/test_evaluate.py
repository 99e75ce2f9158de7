from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import graftlm.models.given as given
from graftlm.errors import InputError
from graftlm.tasks import TASKS, Metric, Task, TaskResult, get_task
from graftlm.tasks.evaluation import evaluate


class Recorder(Task):
    """Notes how it was called."""

    name = "recorder"
    description = "for tests"
    metrics = (Metric("calls", "calls", higher_is_better=True),)

    def rows(self, split: Any) -> Any:
        raise InputError("no rows")

    def evaluate(self, model: Any, tokenizer: Any, **options: Any) -> TaskResult:
        tokenizer.padding_side = "left"
        options["progress"] and options["progress"](1, 2)
        self.modes = [module.training for module in model.modules()]
        self.options, self.tokenizer = options, tokenizer
        return TaskResult(task=self.name, metrics={"calls": 1.0}, declared=self.metrics, count=0, seconds=0.0)


def test_every_task_is_found_by_its_name():
    for name, task in TASKS.items():
        assert isinstance(get_task(name), task) and task.name == name and task.description


def test_an_unknown_task_is_answered_with_the_nearest_name():
    with pytest.raises(InputError, match="unknown task 'molecule': did you mean 'molecules'"):
        get_task("molecule")
    with pytest.raises(InputError, match="choose one of molecules, capitals"):
        get_task("zzz")


def test_results_come_in_the_order_of_the_tasks(make_model: Any, tokenizer: Any):
    pytest.importorskip("rdkit")
    results = evaluate(make_model(), tokenizer, ["capitals", "molecules"], limit=2)
    assert list(results) == ["capitals", "molecules"]
    assert all(result.count == 2 and result.seconds > 0 for result in results.values())


def test_the_model_is_measured_in_eval_mode_and_each_modules_mode_comes_back(make_model: Any, make_tokenizer: Any):
    model, task, tokenizer = make_model(), Recorder(), make_tokenizer()
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    tokenizer.padding_side = "right"
    evaluate(model, tokenizer, [task])
    assert not any(task.modes)
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2
    assert tokenizer.padding_side == "right"


def test_the_mode_comes_back_after_a_failure_too(make_model: Any, tokenizer: Any):
    model = make_model().train()
    with pytest.raises(InputError, match="limit must be at least 1"):
        evaluate(model, tokenizer, ["capitals"], limit=0)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shots": -1}, "shots must not be negative"), ({"batch_size": 0}, "batch_size must be")],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str, make_model: Any, tokenizer: Any):
    with pytest.raises(InputError, match=message):
        evaluate(make_model(), tokenizer, ["capitals"], **options)


def test_no_task_and_a_task_twice_are_refused_before_the_model_is_loaded(tokenizer: Any):
    with pytest.raises(InputError, match="no task given"):
        evaluate("a-model-that-does-not-exist", None, [])
    with pytest.raises(InputError, match="'capitals' is given twice"):
        evaluate("a-model-that-does-not-exist", None, ["capitals", "capitals"])


def test_a_model_given_by_name_is_loaded_with_its_tokenizer(
    make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []

    def load_model(name: str) -> Any:
        loaded.append(name)
        return make_model(), tokenizer

    monkeypatch.setattr(given, "load_model", load_model)
    task, calls = Recorder(), []
    evaluate("some-model", None, [task], shots=2, seed=3, progress=lambda *call: calls.append(call))
    assert loaded == ["some-model"] and task.tokenizer is tokenizer
    assert (task.options["shots"], task.options["seed"]) == (2, 3)
    assert calls == [("recorder", 1, 2)]


def test_a_model_without_a_tokenizer_is_refused(make_model: Any):
    with pytest.raises(InputError, match="was not loaded by name: pass its tokenizer along"):
        evaluate(make_model(), None, ["capitals"])


def test_importing_tasks_loads_no_heavy_library():
    code = (
        "import sys, graftlm.tasks.evaluation, graftlm.tasks; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'rdkit', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
