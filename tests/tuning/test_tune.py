"""`graftlm tune` from end to end on a tiny model: what it leaves, what it refuses, how it resumes."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from graftlm import load_model
from graftlm.cli import main
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.runs.config import load_config
from graftlm.runs.run import Run
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.terms.settings import KLAnchorSettings
from graftlm.tuning.tune import build_trainer, tune
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING, assert_same

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")]
ROOT = Path(__file__).parents[2]
WORDS = ["alpha", "be", "gamma delta", "epsilon", "zeta eta theta", "iota"]


@pytest.fixture
def model_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 24)


def write_rows(path: Path, count: int) -> Path:
    rows = [
        {"prompt": f"{i}: {WORDS[i % 6]} ->", "completion": f" {WORDS[(5 * i + 1) % 6]} {i % 7}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


NEXT_TOKEN = {"objective": "next-token", "heads": None, "num_heads": 4, "mtp_coefficient": 0.01}


def config(model_folder: Path, data: Path, output: Path, **settings: Any) -> TuneConfig:
    given = {"heads": "cold", "num_heads": 2, "batch_size": 4, "max_steps": 6, "mtp_coefficient": 0.3, **settings}
    return TuneConfig(model=str(model_folder), data=str(data), output=str(output), **given)


def run(given: TuneConfig, **how: bool) -> Path:
    with Run.create(given.output, "tune", given, {}, **how) as opened:
        tune(given, opened)
    return Path(given.output)


def graftlm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in this process: another one would import for seconds what is here already."""
    out, errors, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(SystemExit) as stopped:
                main(list(arguments))
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, int(stopped.value.code or 0), out.getvalue(), errors.getvalue())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["multi-token", "next-token"])
@pytest.mark.parametrize("method", ["lora", "full", "frozen-unembedding"])
def test_a_run_leaves_a_model_that_loads_its_log_and_its_settings(
    objective: str, method: str, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    settings = {} if objective == "multi-token" else NEXT_TOKEN
    folder = run(config(model_folder, data, tmp_path / "run", method=method, learning_rate=1e-2, **settings))
    tuned, _ = load_model(str(folder / "model"))
    untrained, _ = load_model(str(model_folder))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert not torch.equal(tuned(input_ids=ids).logits, untrained(input_ids=ids).logits)
    assert (folder / "model" / "heads").exists() == (objective == "multi-token")
    assert not list((folder / "model").rglob("*.bin"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ("head_2_loss" in lines[0]) == (objective == "multi-token")
    assert "finished" in (folder / "run.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["--packing"], ["--method", "full", "--train-heads"]])
def test_kill_9_then_resume_ends_with_the_same_weights(
    settings: list[str], model_folder: Path, data: Path, tmp_path: Path
) -> None:
    flags = ["tune", "--model", str(model_folder), "--data", str(data), "--heads", "cold", "--num-heads", "2"]
    flags += ["--batch-size", "4", "--epochs", "3", "--save-steps", "2", "--lora-dropout", "0.1", "--max-length", "64"]
    flags += settings
    whole = graftlm(*flags, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = subprocess.Popen(
        [sys.executable, "-m", "graftlm", *flags, "--output", "killed"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoints" / "checkpoint-4").exists() and killed.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    again = graftlm(*flags, "--output", "killed", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    name = "model.safetensors" if "full" in settings else "adapter_model.safetensors"
    for file in (name, "heads/model.safetensors"):
        assert_same(load_file(tmp_path / "killed/model" / file), load_file(tmp_path / "whole/model" / file), 0.0)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "killed")
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(model_folder: Path, data: Path, tmp_path: Path) -> None:
    flags = ["tune", "--model", str(model_folder), "--data", str(data), "--heads", "cold", "--num-heads", "2"]
    flags += ["--output", "run", "--batch-size", "1", "--max-steps", "100000", "--trainer", "logging_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "graftlm", *flags], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert "checkpoint saved at step" in last
    assert "graftlm tune --config run/run.yaml --resume" in last
    step = int(last.split("at step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").is_file()


@pytest.mark.slow
def test_an_adapter_is_trained_on_instead_of_stacked(model_folder: Path, data: Path, tmp_path: Path) -> None:
    first = run(config(model_folder, data, tmp_path / "first", **NEXT_TOKEN))
    second = run(config(first / "model", data, tmp_path / "second", **NEXT_TOKEN))
    one, two = (load_file(f / "model" / "adapter_model.safetensors") for f in (first, second))
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)
    settings = json.loads((second / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model_folder)


def test_modules_that_an_adapter_saves_whole_are_trained_on_and_other_adapters_refused(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, data: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    whole = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    for name, adapter in (("whole", whole), ("ia3", IA3Config(task_type="CAUSAL_LM"))):
        get_peft_model(copy.deepcopy(base), adapter).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        settings = json.loads((tmp_path / name / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(model_folder)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    folder = run(config(tmp_path / "whole", data, tmp_path / "run", **NEXT_TOKEN))
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "whole", folder / "model"))
    [head] = [name for name in before if "lm_head" in name]
    assert not torch.equal(before[head], after[head])
    with pytest.raises(InputError, match="the adapter is IA3, and only LoRA is trained on"):
        run(config(tmp_path / "ia3", data, tmp_path / "other", **NEXT_TOKEN))


@pytest.mark.slow
def test_a_run_that_was_at_its_last_step_is_resumed_without_another(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"max_steps": 3, "save_steps": 3, "trainer": {"lr_scheduler_type": "constant", "warmup_steps": 0}}
    given = config(model_folder, data, tmp_path / "run", **settings)
    folder = run(given)
    before = load_file(folder / "model" / "adapter_model.safetensors")
    shutil.rmtree(folder / "model")  # as if it had been killed before it was saved
    run(given, resume=True)
    after = load_file(folder / "model" / "adapter_model.safetensors")
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert MultiTokenHeads.from_pretrained(folder / "model" / "heads", load_model(str(folder / "model"))[0])


@pytest.mark.slow
def test_early_stopping_goes_on_counting_after_a_resume(model_folder: Path, data: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "train.jsonl", 24)
    write_rows(rows / "validation.jsonl", 6)
    settings = {"eval_split": "validation", "eval_steps": 1, "early_stopping": 4, "max_steps": 40, "method": "full",
                "learning_rate": 1e-30, "trainer": {"save_total_limit": 40}}  # fmt: skip
    whole = run(config(model_folder, rows, tmp_path / "run", **settings))
    steps = len([line for line in (whole / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line])
    assert steps == 5  # a loss that stays the same is no improvement
    for folder in (whole / "checkpoints").glob("checkpoint-*"):  # as if killed two evaluations before the end
        if int(folder.name.rpartition("-")[2]) > 3:
            shutil.rmtree(folder)
    run(config(model_folder, rows, tmp_path / "run", **settings), resume=True)
    again = [line for line in (whole / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line]
    assert len(again) == steps
    shutil.rmtree(whole / "model")  # as if killed before it was saved
    run(config(model_folder, rows, tmp_path / "run", **settings), resume=True)
    assert (whole / "model").is_dir()
    assert len([line for line in (whole / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line]) == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchor_data": "text.jsonl"}, "--anchor-data is 'text.jsonl', but it needs --anchor kl"),
        ({"anchor_weight": 0.5}, "--anchor-weight is 0.5, but it needs --anchor kl"),
        ({"mtp_coefficient": 5.0}, "--mtp-coefficient is 5.0, but it needs --objective multi-token"),
        ({"heads": "nowhere"}, "--heads is 'nowhere', but it needs --objective multi-token"),
        ({"train_heads": True}, "--train-heads is True, but it needs --objective multi-token"),
        ({"terms": {"kl_anchor": {"weight": 1.0}}, "anchor_weight": 0.5}, "terms gives the settings of kl_anchor"),
        ({"terms": {"multi_token": {}}}, "--objective is 'next-token', but terms has multi_token"),
        ({"terms": {"kl_anker": {}}}, "unknown term 'kl_anker'; did you mean 'kl_anchor'?"),
        (
            {"terms": {"kl_anchor": {"wieght": 1.0}}},
            "kl_anchor: unknown setting 'wieght'; did you mean 'weight'",
        ),
        ({"terms": {"kl_anchor": {"weight": "much"}}}, "terms: kl_anchor: weight is 'much', but a finite number"),
        ({"terms": {"kl_anchor": {"weight": -1.0}}}, "terms: kl_anchor: weight is -1.0, but it must be at least 0"),
        ({"terms": {"kl_anchor": 3}}, "terms: kl_anchor is 3, but a mapping"),
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"early_stopping": 2, "eval_split": "validation", "save_steps": 5}, "each evaluation is a checkpoint"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuneConfig(objective="next-token", **settings)


def test_a_block_of_terms_says_what_its_flags_say() -> None:
    settings = {"weight": 0.3, "token_weights": "entropy"}
    block = TuneConfig(heads="cold", terms={"multi_token": settings, "kl_anchor": {"weight": 1.0}})
    flags = TuneConfig(heads="cold", mtp_coefficient=0.3, mtp_weights="entropy", anchor="kl", anchor_weight=1.0)
    assert block.term_settings() == flags.term_settings()
    assert TuneConfig(terms={}).objective == "next-token" and TuneConfig(terms={}).term_settings() == {}
    assert TuneConfig(terms={}, anchor="kl").term_settings() == {"kl_anchor": KLAnchorSettings()}


def test_earlier_names_are_taken_from_python_a_file_and_flags_for_one_release(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="weights is now mtp_weights"):
        assert TuneConfig(heads="cold", weights="entropy").mtp_weights == "entropy"
    file = tmp_path / "tune.yaml"
    file.write_text("heads: cold\ncoefficient: 0.5\n")
    with pytest.warns(FutureWarning, match="is now mtp_"):
        made, _ = load_config(TuneConfig, file, {"decay": "0.7"})
    assert (made.mtp_coefficient, made.mtp_decay) == (0.5, 0.7)


def test_the_model_is_loaded_as_the_trainers_settings_say(model_folder: Path, data: Path, tmp_path: Path) -> None:
    given = config(
        model_folder, data, tmp_path / "run", trainer={"model_init_kwargs": {"attn_implementation": "eager"}}
    )
    with Run.create(given.output, "tune", given, {}) as opened:
        assert build_trainer(given, opened).model.config._attn_implementation == "eager"


@pytest.mark.slow
def test_early_stopping_keeps_the_best_model(model_folder: Path, data: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "train.jsonl", 24)
    write_rows(rows / "validation.jsonl", 6)
    given = config(
        model_folder,
        rows,
        tmp_path / "run",
        eval_split="validation",
        eval_steps=1,
        early_stopping=2,
        max_steps=60,
        learning_rate=0.5,
        method="full",
    )
    folder = run(given)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(evaluated) < 60
    assert evaluated.index(min(evaluated)) == len(evaluated) - 3


@pytest.mark.slow
@pytest.mark.parametrize("anchor", ["none", "kl"])
def test_protected_and_anchored_runs_train(anchor: str, model_folder: Path, data: Path, tmp_path: Path) -> None:
    folder = run(config(model_folder, data, tmp_path / "run", anchor=anchor, protect_layers=0.5, max_steps=2))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ("anchor_divergence" in lines[0]) == (anchor == "kl")
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    trained = {name for name, value in adapter.items() if "lora_B" in name and value.any()}
    assert trained and not any(".layers.0." in name for name in trained)


def test_importance_weights_come_from_the_data(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a:", "completion": " bcd", "importance": [0.0, 1.0, 0.5, 1.0]}] * 8
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(config(model_folder, path, tmp_path / "run", mtp_weights="importance", max_steps=2))
    assert (folder / "model").is_dir()


def test_a_dry_run_shows_a_row_with_its_mask_and_leaves_nothing(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(model_folder, data, tmp_path / "run")
    with Run.create(tmp_path / "scratch", "tune", given, {}) as opened:
        tune(given, opened, dry_run=True)
    printed = capsys.readouterr().out
    for part in ("are trained", "steps: 6 of 4 rows", "loss: next_token + multi_token\n", "0: alpha ->[[ be"):
        assert part in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_are_cut_are_counted_before_training_and_in_a_dry_run(
    packing: bool, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b" * length} for length in (2997, 30, 31, 2, 50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config(model_folder, path, tmp_path / "run", max_length=32, packing=packing, max_steps=1)
    line = "3 of 5 rows (train) are cut: they have more than --max-length 32 tokens (the longest 2999)"
    with Run.create(tmp_path / "scratch", "tune", given, {}) as opened:
        tune(given, opened, dry_run=True)
    assert line in capsys.readouterr().out
    run(given)
    assert line in capsys.readouterr().err
    for settings in ({"max_length": 2999}, {"packing": True, "trainer": {"packing_strategy": "wrapped"}}):
        uncut = config(model_folder, path, tmp_path / "uncut", **{"max_length": 32, **settings})
        with Run.create(tmp_path / "scratch", "tune", uncut, {}, overwrite=True) as opened:
            tune(uncut, opened, dry_run=True)
        assert "are cut" not in capsys.readouterr().out


# -- what is refused: one line that names the culprit, exit code 2, nothing lost ------------------------------------


def bad_inputs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[list[str], str]]:
    """What is wrong -> (flags, what the line must say)."""
    model, rows = str(folder / "tiny"), str(folder / "rows.jsonl")
    write_rows(folder / "rows.jsonl", 8)
    (folder / "unknown-key.yaml").write_text("learning_rte: 1.0e-3\n")
    (folder / "no-column.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "answer": "b"}\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "x" * 100, "completion": "y"}) + "\n")
    MultiTokenHeads.from_model(tiny_model(vocab_size=300), 1).save_pretrained(folder / "other-heads")
    MultiTokenHeads.from_model(tiny_model(), 1).save_pretrained(folder / "cut-heads")
    cut = folder / "cut-heads" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:3000])
    (folder / "pickled-heads").mkdir()
    torch.save({}, folder / "pickled-heads" / "heads.pt")
    tiny_model().save_pretrained(folder / "cut-model")
    cut = folder / "cut-model" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:3000])
    tiny_model().save_pretrained(folder / "pickled-model")
    for name in ("cut-model", "pickled-model"):
        tokenizer.save_pretrained(folder / name)
    (folder / "pickled-model" / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pickled-model" / "pytorch_model.bin")
    base = ["--model", model, "--data", rows, "--heads", "cold"]
    return {
        "unknown YAML key": (["--config", "unknown-key.yaml", *base], "learning_rate"),
        "missing column": (["--model", model, "--heads", "cold", "--data", "no-column.jsonl"], "row 2"),
        "empty data": (["--model", model, "--heads", "cold", "--data", "empty.jsonl"], "empty.jsonl"),
        "long prompt": (["--model", model, "--heads", "cold", "--data", "long.jsonl", "--max-length", "50"], "row 1"),
        "other heads": (["--model", model, "--data", rows, "--heads", "other-heads"], "another model"),
        "cut heads": (["--model", model, "--data", rows, "--heads", "cut-heads"], "truncated"),
        "pickled heads": (["--model", model, "--data", rows, "--heads", "pickled-heads"], "pickle"),
        "cut model": (["--data", rows, "--heads", "cold", "--model", "cut-model"], "model.safetensors"),
        "pickled model": (["--data", rows, "--heads", "cold", "--model", "pickled-model"], "pytorch_model.bin"),
        "unknown model": (["--data", rows, "--heads", "cold", "--model", "smolm2-135m"], "smollm2-135m"),
        "unknown trainer field": ([*base, "--trainer", "max_grad_nrm=1"], "max_grad_norm"),
        "what a model is not loaded with": (
            [*base, "--trainer", "model_init_kwargs={load_in_4bit: true}"],
            "does not take 'load_in_4bit'",
        ),
        "no heads": (["--model", model, "--data", rows], "distill"),
        "wrong number": ([*base, "--mtp-coefficient", "-1"], "--mtp-coefficient"),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_with_exit_code_2_and_loses_nothing(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    cases = bad_inputs(tmp_path, tokenizer)
    before = sorted(path.name for path in tmp_path.iterdir())
    for number, (name, (flags, _)) in enumerate(cases.items()):
        done = graftlm("tune", "--output", f"run-{number}", *flags, cwd=tmp_path)
        errors = done.stderr
        said = [line for line in errors.splitlines() if "examples/s" not in line and "Loading weights" not in line]
        assert done.returncode == 2, (name, errors)
        assert len([line for line in said if line.strip()]) == 1, (name, errors)
        assert said[-1].startswith("graftlm: ") and cases[name][1] in said[-1], (name, errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_output_folder_in_use_is_refused(model_folder: Path, data: Path, tmp_path: Path) -> None:
    folder = run(config(model_folder, data, tmp_path / "run", max_steps=1))
    kept = (folder / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="holds a run"):
        run(config(model_folder, data, folder, max_steps=1))
    with FileLock(folder / ".lock"), pytest.raises(InputError, match="in use by another process"):
        run(config(model_folder, data, folder, max_steps=1), overwrite=True)
    assert (folder / "metrics.jsonl").read_text() == kept
