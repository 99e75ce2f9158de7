"""What a user sees of the command line: results on stdout, one line for an error, the exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import graftlm
import graftlm.proxy.steering as proxy
import graftlm.tasks.evaluation as evaluation
from graftlm.cli import main
from graftlm.data.readers import read_lines
from graftlm.decoding.draft_length import DraftLength
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.runs.files import read_json_lines
from graftlm.runs.run import Run
from graftlm.runs.yaml_text import parse_yaml
from graftlm.tasks import TASKS, Metric, TaskResult
from graftlm.tasks.metric import NLL
from graftlm.tuning.config import TuneConfig

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "rdkit", "matplotlib", "numpy"}


def call(*arguments: str) -> int:
    """Exit status of `graftlm arguments`."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def tune_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts a function in the place of the training."""
    return lambda tune: replace_module(monkeypatch, "graftlm.tuning.tune", tune=tune)


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["tune", "--help"], ["--version"], ["tune", "--nonsense"]])
def test_import_and_help_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, graftlm\nfrom graftlm.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("HEAVY []\n"), result.stdout + result.stderr


def test_the_public_names_are_listed_and_lazy() -> None:
    assert {"load_model", "evaluate", "MultiTokenHeads", "head_losses", "distill_heads"} <= set(dir(graftlm))
    assert graftlm.InputError is InputError
    assert graftlm.TaskResult is TaskResult
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = graftlm.nonsense


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"graftlm {graftlm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "graftlm: --heads is not given, but multi-token tuning needs them"),
        (["tune", "--heads", "cold", "--lora-rank", "many"], "graftlm: --lora-rank is 'many'"),
        (["tune", "nowhere.yaml"], "graftlm: config file nowhere.yaml cannot be read"),
        (["evaluate", "a", "a"], "graftlm: a model is given twice"),
        (["evaluate", "a", "--task", "molecule"], "did you mean 'molecules'?"),
        (["evaluate"], "graftlm: MODEL is not given; see --help"),
        (["evaluate", "a", "--output", "made/x.json"], "graftlm: model 'a' is neither a folder"),
        (["generate", "a"], "graftlm: there is no prompt"),
        (["generate", "a", "--file", "nowhere.txt"], "graftlm: --file nowhere.txt cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tune", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_a_failure_is_one_line_and_status_1_and_debug_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tune_with: Callable[[Any], None]
) -> None:
    def fail(config: TuneConfig, run: Run, *, dry_run: bool = False) -> None:
        raise RuntimeError("loss is NaN\nat batch 7")

    tune_with(fail)
    arguments = ["tune", "--heads", "cold", "--output", str(tmp_path / "run")]
    assert call(*arguments) == 1
    err = capsys.readouterr().err
    assert err == "graftlm: RuntimeError: loss is NaN at batch 7 (--debug shows where)\n"
    assert call(*arguments, "--overwrite", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_says_how_to_continue_and_is_status_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tune_with: Callable[[Any], None]
) -> None:
    calls: list[bool] = []

    def interrupt_once(config: TuneConfig, run: Run, *, dry_run: bool = False) -> None:
        calls.append(run.resumed)
        run.log({"step": 1})
        if len(calls) == 1:
            raise KeyboardInterrupt

    tune_with(interrupt_once)
    assert call("tune", "--heads", "cold", "--output", str(tmp_path / "run")) == 130
    line = capsys.readouterr().err
    command = f"tune --config {tmp_path / 'run' / 'run.yaml'} --resume"
    assert line == f"graftlm: interrupted; continue with: graftlm {command}\n"
    assert call(*command.split()) == 0
    assert calls == [False, True]


def test_the_run_yaml_of_an_old_run_repeats_it(tmp_path: Path, tune_with: Callable[[Any], None]) -> None:
    configs: list[TuneConfig] = []
    tune_with(lambda config, run, dry_run=False: configs.append(config))
    first, second = tmp_path / "first", tmp_path / "second"
    given = ["--heads", "cold", "--learning-rate", "1e-5", "--trainer", "weight_decay=0.1", "--packing"]
    assert call("tune", *given, "--output", str(first)) == 0
    assert call("tune", str(first / "run.yaml"), "--output", str(second)) == 0
    documents = [parse_yaml((folder / "run.yaml").read_text()) for folder in (first, second)]
    assert configs[0].trainer == {"weight_decay": 0.1}
    assert {**documents[0]["config"], "output": ""} == {**documents[1]["config"], "output": ""}
    assert documents[0]["sources"]["learning_rate"] == "flag"
    assert documents[1]["sources"]["learning_rate"] == "config file"
    assert call("distill", str(first / "run.yaml")) == 2


def test_a_dry_run_prints_a_config_that_can_be_used_and_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tune_with: Callable[[Any], None]
) -> None:
    dry: list[bool] = []
    tune_with(lambda config, run, dry_run=False: dry.append(dry_run))
    arguments = ["--heads", "cold", "--output", str(tmp_path / "run"), "--trainer", "a={b: [1, 2]}"]
    assert call("tune", *arguments, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert dry == [True]
    assert "heads: cold  # flag" in shown
    assert "lora_rank: 16  # default" in shown
    assert parse_yaml(shown)["trainer"] == {"a": {"b": [1, 2]}}
    assert list(tmp_path.iterdir()) == []


def test_distill_gets_its_config_the_run_and_a_progress_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distill(config: Any, run: Run, progress: Callable[[str, int, int], None]) -> None:
        for step in range(1, 101):
            progress("heads", step, 100)
        run.log({"step": config.num_heads})

    replace_module(monkeypatch, "graftlm.heads.distill", distill=distill)
    assert call("distill", "--num-heads", "2", "--output", str(tmp_path / "heads")) == 0
    assert capsys.readouterr() == ("", "heads: 1/100\nheads: 100/100\n")
    assert json.loads((tmp_path / "heads" / "metrics.jsonl").read_text()) == {"step": 2}


@pytest.fixture
def fake_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A model name is its own model; returns what `evaluate` was called with."""
    calls: list[dict[str, Any]] = []

    def evaluate(model: str, tokenizer: None, tasks: list[Any], **settings: Any) -> dict[str, TaskResult]:
        settings.pop("progress")("molecules", 1, 1)
        calls.append(settings)
        metrics = {"validity": 0.5 if model == "base" else 0.9375, "nll_per_token": 2.0}
        results = [
            TaskResult(
                task=task.name,
                metrics=metrics,
                declared=[Metric("validity", "validity", higher_is_better=True, floor=0.25), NLL],
                examples=[{"prompt": "p", "output": "o"}],
                count=16,
                seconds=1.0,
            )
            for task in tasks
        ]
        return {result.task: result for result in results}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(proxy, "load_steered", lambda name, config: (name, None))
    return calls


def test_evaluate_prints_models_side_by_side_with_the_floor(
    capsys: pytest.CaptureFixture[str], fake_evaluation: list[dict[str, Any]]
) -> None:
    assert call("evaluate", "base", "a/very/long/folder/[red]", "--task", "molecules", "--limit", "16") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["task", "metric", "floor", "base", "a/very/long/folder/[red]"],
        ["molecules", "(16)", "validity", "0.250", "0.500", "0.938"],
        ["nll_per_token", "-", "2.000", "2.000"],
    ]
    assert fake_evaluation == [{"limit": 16, "shots": 0, "batch_size": 32, "seed": 0}] * 2


def test_evaluate_json_is_all_there_is_on_stdout_and_the_file_adds_the_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_evaluation: list[dict[str, Any]]
) -> None:
    file = tmp_path / "results.json"
    assert call("evaluate", "base", "--json", "--output", str(file)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["results"]["base"]) == list(TASKS)
    shown = printed["results"]["base"]["molecules"]
    [validity, _] = shown.pop("declared")
    assert (validity["label"], validity["higher_is_better"], validity["floor"]) == ("validity", True, 0.25)
    assert shown == {
        "metrics": {"validity": 0.5, "nll_per_token": 2.0},
        "floors": {"validity": 0.25},
        "count": 16,
        "seconds": 1.0,
    }
    written = json.loads(file.read_text())["results"]["base"]["molecules"]
    assert written["examples"] == [{"prompt": "p", "output": "o"}]
    assert call("evaluate", "base", "--output", str(file)) == 2
    assert "results.json holds a run; give --overwrite or another --output" in capsys.readouterr().err
    assert call("evaluate", "--config", str(tmp_path / "results.run.yaml"), "--output", str(tmp_path / "again")) == 0
    assert (tmp_path / "again" / "results.json").read_text() == file.read_text()


def test_generate_writes_the_text_to_stdout_and_repeats_itself(
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved(tmp_path / "model", model, tokenizer)
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    arguments = ["generate", folder, "--file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "4"]
    outputs = []
    for extra in ([], [], ["--no-chat"], ["--temperature", "2"], ["--temperature", "2"]):
        assert call(*arguments, *extra) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[3] == outputs[4]
    assert all(output.endswith("\n") for output in outputs)


def test_generate_with_heads_writes_the_same_text_and_says_how_much_faster(
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DraftLength, "best", lambda length, batch: len(length.rates))
    folder = saved(tmp_path / "model", model, tokenizer)
    MultiTokenHeads.from_model(model, 2).save_pretrained(tmp_path / "heads")
    arguments = ["generate", folder, "--no-chat", "--prompt", "abc", "--max-new-tokens", "12"]
    assert call(*arguments) == 0
    plain = capsys.readouterr().out
    output = tmp_path / "texts"
    assert call(*arguments, "--draft", str(tmp_path / "heads"), "--compare", "--output", str(output)) == 0
    shown = capsys.readouterr()
    assert shown.out == plain
    assert shown.err.startswith("graftlm: draft is now heads; the old name goes in the next release\n")
    [line] = read_json_lines(output / "texts.jsonl")
    assert (line["prompt"], line["text"] + "\n", line["tokens"]) == ("abc", plain, 12)
    pattern = (
        r"12 tokens in \d+ passes \(\d+ of \d+ drafts accepted\): [\d.]+ tokens/s, "
        r"[\d.]+ times the [\d.]+ without drafts, the same tokens"
    )
    assert re.fullmatch(pattern, shown.err.strip().splitlines()[-1])
    for options, message in (
        (["--heads", str(tmp_path)], "holds no heads"),
        (["--compare"], "--compare needs --heads FOLDER"),
        (["--heads", "heads", "--expert", "expert"], "--heads and --expert exclude each other"),
    ):
        assert call(*arguments, *options) == 2
        assert message in capsys.readouterr().err


def test_a_file_of_prompts_has_a_line_each_whatever_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\u2028still one\r\n\r\ntwo\r\n".encode())
    assert read_lines(tmp_path / "prompts.txt", "--file") == ["one\u2028still one", "two"]


def test_signs_that_the_platforms_encoding_lacks_reach_a_file() -> None:
    code = (
        "import graftlm.cli.training as training; from graftlm.cli import main; "
        "training.read_recipe = lambda name: '→ α'; print('before'); main(['recipes', 'dapo'])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[1] == "→ α".encode()


def test_generate_refuses_a_prompt_that_does_not_fit(
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved(tmp_path / "model", model, tokenizer)
    assert call("generate", folder, "--no-chat", "--prompt", "x" * 250, "--max-new-tokens", "7") == 2
    assert "has 250 tokens, and with 7 new ones that is more than the model's 256" in capsys.readouterr().err
    tokenizer.chat_template, kept = None, tokenizer.chat_template
    folder = saved(tmp_path / "plain", model, tokenizer)
    tokenizer.chat_template = kept
    assert call("generate", folder, "--chat", "--prompt", "x") == 2
    assert "no chat template; give --no-chat" in capsys.readouterr().err


def test_env_as_table_and_as_json_say_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path))
    assert call("env", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["graftlm"] == graftlm.__version__
    assert facts["cache_folder"] == str(tmp_path)
    assert isinstance(facts["extras"]["molecules"], bool)
    assert call("env") == 0
    table = capsys.readouterr().out
    assert str(tmp_path) in table
    assert facts["versions"]["torch"] in table


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "nowhere", "nowhere/too", "--task", "capitals"],
        ["evaluate", "nowhere", "--task", "capitals"],
        ["proxy", "sweep", "nowhere", "--expert", "nowhere/too", "--task", "capitals"],
        ["restore", "nowhere", "--layers", "0"],
        ["export", "nowhere", "--heads", "nowhere/too"],
        ["prune", "nowhere.jsonl", "--pruner", "nowhere"],
        ["prune fit", "nowhere.jsonl", "--pruner", "nowhere"],
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_anything_is_loaded(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    output = tmp_path / "file" / "out.jsonl"
    assert call(*arguments[0].split(" "), *arguments[1:], "--output", str(output)) == 2
    told = capsys.readouterr().err
    assert "out.jsonl" in told and "nowhere" not in told
