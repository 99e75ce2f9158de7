"""`graftlm reinforce` from end to end on a tiny model: what it leaves, what it refuses, how it resumes."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from graftlm import audit, load_model
from graftlm.errors import InputError
from graftlm.reinforce.config import ReinforceConfig
from graftlm.reinforce.prompts import load_prompts
from graftlm.reinforce.reinforce import build_trainer, reinforce, step_cells
from graftlm.runs.config import load_config
from graftlm.runs.run import Run
from graftlm.tuning.callbacks import TableCallback
from tests.models.test_adapters import Saved, logits, lora
from tests.tuning.plain import PEFT_WARNING
from tests.tuning.test_tune import environment, graftlm, model_folder  # noqa: F401  # a fixture

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
TINY = {"num_generations": 4, "prompts_per_step": 2, "batch_size": 8, "max_completion_length": 6, "max_steps": 3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"{i} + {i % 3} =", "answer": i + i % 3}) + "\n" for i in range(12))
    )
    return path


def config(folder: Path, data: Path, output: Path, **settings: Any) -> ReinforceConfig:
    given = {"reward": "regex:[a-m]", "learning_rate": 1e-2, **TINY, **settings}
    return ReinforceConfig(model=str(folder), data=str(data), output=str(output), **given)


def run(given: ReinforceConfig, **how: bool) -> Path:
    with Run.create(given.output, "reinforce", given, {}, **how) as opened:
        reinforce(given, opened)
    return Path(given.output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "full", "beta": 0.01},
        {"guard": "divergence", "updates_per_rollout": 2, "batch_size": 4},
        {"overlong_buffer": 3, "forking_tokens": "rest", "guard": "within-format"},
    ],
)
def test_a_run_leaves_a_model_its_logs_and_a_report(
    settings: dict[str, Any],
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    formats = {"letter": "^[a-zA-Z]", "digit": "^[0-9]"}
    folder = run(config(model_folder, data, tmp_path / "run", formats=formats, **settings))
    tuned, _ = load_model(str(folder / "model"))
    untrained, _ = load_model(str(model_folder))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert not torch.equal(tuned(input_ids=ids).logits, untrained(input_ids=ids).logits)
    assert not list((folder / "model").rglob("*.bin"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    rollouts = 2 if "updates_per_rollout" in settings else 3
    assert len(steps) == rollouts and all(
        {"entropy", "pass_at_1", "formats/letter/share"} <= set(line) for line in steps
    )
    assert ("rewards/soft_overlong_punishment_reward/mean" in str(steps)) == ("overlong_buffer" in settings)
    history = [json.loads(line) for line in (folder / "formats.jsonl").read_text().splitlines()]
    assert len(history) == rollouts
    page = (folder / "report.html").read_text()
    assert "Share of each format" in page and "Mean reward" in page and str(history[0]["counts"]["letter"]) in page
    assert "report: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_reward_that_raises_or_gives_no_number_counts_as_0_and_the_run_goes_on(
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "fragile.py").write_text(
        "def fragile(completions, answer, **rest):\n"
        "    if any(value % 3 == 0 for value in answer):\n        raise RuntimeError('no third ones')\n"
        "    return [float('nan') if len(text) % 2 else 1.0 for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    folder = run(config(model_folder, data, tmp_path / "run", reward="fragile:fragile"))
    assert (folder / "model").is_dir()
    failed = [json.loads(line) for line in (folder / "rewards.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in failed} == {"exception", "not a number"}
    assert all("prompt" in line and "completion" in line for line in failed)


@pytest.mark.slow
def test_audit_reads_the_result(model_folder: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = run(config(model_folder, data, tmp_path / "run", max_steps=1))
    task = "reasoning-gym:chain_sum"
    measured = audit(str(model_folder), str(folder / "model"), tasks=[task], probes=["capitals"], limit=2)
    assert "correct" in measured.base_results[task].metrics


def test_reasoning_gym_makes_the_same_prompts_each_time_and_scores_them() -> None:
    rows = load_prompts("reasoning-gym:chain_sum", rows=5, options={"min_terms": 2, "max_terms": 2})
    assert rows[:] == load_prompts("reasoning-gym:chain_sum", rows=5, options={"min_terms": 2, "max_terms": 2})[:]
    assert set(rows.column_names) == {"prompt", "answer", "entry"}
    entry = json.loads(rows[0]["entry"])
    assert rows[0]["answer"] == entry["answer"] and rows[0]["prompt"].endswith("\nAnswer:")


def test_prompts_come_from_questions_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    path.write_text(json.dumps({"messages": messages, "answer": "4"}) + "\n")
    [row] = load_prompts(str(path), rows=9)
    assert row == {"prompt": messages[:1], "answer": "4"}
    path.write_text(json.dumps({"prompt": "2+2", "completion": "4", "source": "book"}) + "\n")
    assert list(load_prompts(str(path), rows=9)) == [{"prompt": "2+2", "answer": "4", "source": "book"}]
    path.write_text(json.dumps({"prompt": messages[:1], "completion": messages[1:]}) + "\n")
    assert list(load_prompts(str(path), rows=9)) == [{"prompt": messages[:1], "answer": "4"}]
    path.write_text(json.dumps({"instruction": "Add", "input": "3, 4", "output": "7"}) + "\n")
    [row] = load_prompts(str(path), rows=9)
    assert (row["prompt"], row["answer"]) == ("Add\n\n3, 4", "7")


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"reward": "answr"}, "no reward 'answr'.*answer"),
        ({"formats": {"bad": "("}}, "format 'bad'.*no regular expression"),
        ({"trainer": {"epsilonn": 1}}, "unknown field 'epsilonn'; did you mean 'epsilon'"),
        ({"vllm": True}, "--vllm needs"),
        ({"trainer": {"reward_weights": [1.0, 2.0]}}, "refuses its settings: .*reward weights"),
        ({"reward": "math-verify", "data": "no-answers"}, "column `?'?answer"),
        ({"updates_per_rollout": 2, "batch_size": 4, "save_steps": 3}, "give a multiple of 2"),
        ({"prompts_per_step": 14, "batch_size": 8}, "12 prompts, fewer than --prompts-per-step 14"),
        ({"data_options": {"min_terms": 2}}, "--data-options are for reasoning-gym"),
    ],
)
def test_what_cannot_be_run_is_named(
    settings: dict[str, Any],
    culprit: str,
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
) -> None:
    if settings.get("data"):
        data.write_text(json.dumps({"question": "1 + 1 ="}) + "\n")
        settings = {"reward": settings["reward"], "prompts_per_step": 1, "num_generations": 8}
    with pytest.raises(InputError, match=culprit):
        run(config(model_folder, data, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"batch_size": 3}, "--batch-size is 3.*= 8 must be divisible"),
        ({"terms": {"multi_token": {}}}, "terms: multi_token reads supervised labels"),
        ({"anchor_weight": 0.3}, "--anchor-weight is 0.3, but it needs --anchor kl"),
        ({"guard": "divergence"}, "--guard is 'divergence'.*--format NAME"),
        ({"forking_fraction": 0.0}, "--forking-fraction is 0.0"),
        ({"formats": {"seven": 7}}, "--format seven is 7"),
        ({"overlong_buffer": 6}, "--overlong-buffer is 6"),
        ({"num_generations": 1}, "--num-generations is 1"),
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"save_steps": -2}, "--save-steps is -2"),
        ({"learning_rate": -1.0}, "--learning-rate is -1"),
        ({"epochs": 0.0}, "--epochs is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: dict[str, Any], culprit: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=culprit):
        config(tmp_path, tmp_path, tmp_path, **settings)


def test_rows_without_a_prompt_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"row 1 of .* has no prompt: .*question.* but it has text"):
        load_prompts(str(path), rows=1)
    path.write_text('{"prompt": " "}\n')
    with pytest.raises(InputError, match="its prompt is ' '"):
        load_prompts(str(path), rows=1)
    path.write_text('{"prompt": [{"content": "1 + 1"}]}\n')
    with pytest.raises(InputError, match=r"row 1 of .*\{role, content\}"):
        load_prompts(str(path), rows=1)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "1 + 1"}, call]}) + "\n")
    assert load_prompts(str(path), rows=1)[0]["prompt"] == [{"role": "user", "content": "1 + 1"}]
    for lost in ({"prompt": [{"role": "user", "content": "a"}, call]}, {"question": "a", "system": "be brief"}):
        path.write_text(json.dumps(lost) + "\n")
        with pytest.raises(InputError, match=r"row 1 of .*(tool_calls|system).*not read"):
            load_prompts(str(path), rows=1)
    path.write_text('{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": "x"}\n')
    with pytest.raises(InputError, match=r"column 'answer' of .* values of several kinds"):
        load_prompts(str(path), rows=2)
    path.write_text('{"prompt": "a", "completions": 1}\n')
    with pytest.raises(InputError, match="column 'completions', a name that TRL uses"):
        load_prompts(str(path), rows=2)
    with pytest.raises(InputError, match="no data set 'chain_summ'; did you mean 'chain_sum'"):
        load_prompts("reasoning-gym:chain_summ", rows=1)
    with pytest.raises(InputError, match="refuses chain_sum"):
        load_prompts("reasoning-gym:chain_sum", rows=1, options={"min_terms": "two"})


def test_a_format_on_the_command_line_is_text_as_it_stands() -> None:
    flags = {"formats": [r"hash=#### \d", "list=[0-9]", r"word=Answer #\d"]}
    read, _ = load_config(ReinforceConfig, None, flags)
    assert read.formats == {"hash": r"#### \d", "list": "[0-9]", "word": r"Answer #\d"}


def test_recipes_dry_runs_and_bad_recipes_on_the_command_line(
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
) -> None:
    listed = graftlm("recipes", cwd=tmp_path)
    assert listed.returncode == 0 and "dapo" in listed.stdout and "2506.01939" in listed.stdout
    recipe = graftlm("recipes", "dapo", cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe.stdout + "    epsilonn: 1\n")
    small = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    small += ["--model", str(model_folder), "--data", str(data), "--reward", "regex:a", "--overlong-buffer", "0",
              "--no-vllm", "--updates-per-rollout", "1"]  # fmt: skip
    shown = graftlm("reinforce", "dapo", *small, "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "epsilon_high: 0.28  # config file" in shown.stdout and "prompts: 12" in shown.stdout
    assert not (tmp_path / "run").exists()
    for arguments, culprit in (
        (["reinforce", "mine.yaml", *small], "unknown field 'epsilonn'"),
        (["tune", "dapo"], "dapo is for `graftlm reinforce`, not for `graftlm tune`"),
        (["reinforce", "dappo"], "config file dappo cannot be read"),
        (["recipes", "dappo"], "did you mean 'dapo'"),
    ):
        done = graftlm(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and culprit in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_kill_9_then_resume_writes_the_same_rollouts_and_ends_with_the_same_weights(
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
) -> None:
    small = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags = ["reinforce", "--model", str(model_folder), "--data", str(data), "--reward", "regex:[a-m]", *small,
             "--max-steps", "12", "--save-steps", "2", "--formats", "letter=^[a-z]",
             "--learning-rate", "0.01", "--anchor", "kl", "--terms", "l2_to_base={weight: 0.1}"]  # fmt: skip
    whole = graftlm(*flags, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = subprocess.Popen(
        [sys.executable, "-m", "graftlm", *flags, "--output", "killed"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1200):
        if (tmp_path / "killed/checkpoints/checkpoint-4/trainer_state.json").exists():
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = graftlm("reinforce", "killed/run.yaml", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    for name in ("formats.jsonl", "model/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.slow
def test_an_adapter_is_trained_on_and_saved_without_the_copy_that_it_is_held_against(
    model_folder: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
) -> None:
    first = run(config(model_folder, data, tmp_path / "first"))
    second = run(config(first / "model", data, tmp_path / "second", beta=0.1))
    names = {path.name for path in (second / "model").iterdir()}
    assert "adapter_model.safetensors" in names and "ref" not in names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # what PEFT says of tied embeddings
@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"trainable_token_indices": [45, 50]}, "lora"),
        ({"target_modules": ["embed_tokens"]}, "lora"),
        ({"target_modules": ["embed_tokens"]}, "full"),
        ({"target_modules": ["lm_head"]}, "full"),
    ],
)
def test_the_reference_is_the_adapted_model_that_training_starts_from(
    settings: dict[str, Any], method: str, data: Path, tmp_path: Path
) -> None:
    saved = Saved(tmp_path, tie_word_embeddings=True)
    expected = logits(saved.adapter(lora(**settings)))
    given = config(saved.folder, data, tmp_path / "run", beta=0.1, method=method)
    with Run.create(given.output, "reinforce", given, {}) as opened:
        trainer = build_trainer(given, opened)
    reference: Any = trainer.ref_model
    if method == "lora":
        reference = trainer.model.eval()
        reference.set_adapter("ref")
    torch.testing.assert_close(logits(reference), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what PEFT says of trained biases
def test_an_adapter_that_leaves_no_start_model_is_refused_as_its_reference(data: Path, tmp_path: Path) -> None:
    saved = Saved(tmp_path, attention_bias=True)
    saved.adapter(lora(bias="all"))
    with pytest.raises(InputError, match="so there is no start model to hold it to"):
        run(config(saved.folder, data, tmp_path / "run", beta=0.1))


def test_formats_are_told_apart_by_their_whole_name() -> None:
    line = {"reward": 1.0, "formats/a/b/share": 0.2, "formats/a/c/share": 0.8}
    assert step_cells(line) == {"reward": "1.000", "a/b": "20%", "a/c": "80%"}


def test_the_live_table_shows_reward_entropy_and_formats_step_by_step() -> None:
    text = io.StringIO()
    shown = TableCallback(step_cells, rows=2, console=Console(file=text, force_terminal=True, width=100))
    state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True)
    shown.on_train_begin(None, state, None)
    for state.global_step in (1, 2, 3):
        line = {"reward": state.global_step / 10, "entropy": 0.5, "formats/prose/share": 0.25, "loss": 0.0}
        shown.on_log(None, state, None, logs=line)
    shown.on_log(None, state, None, logs={"train_runtime": 1.0})
    shown.on_train_end(None, state, None)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue()).split("step")[-1]
    assert "prose" in last and "3/9" in last and "0.300" in last and "25%" in last and "1/9" not in last
