"""The format monitor against plain counting, its alarms, its time limits, and the guards' equations."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from graftlm.errors import InputError
from graftlm.reinforce.format_guards import FormatDivergence, WithinFormat
from graftlm.reinforce.format_measures import divergence, entropy, final_answer
from graftlm.reinforce.format_monitor import FormatMonitor
from graftlm.reinforce.formats import Format
from graftlm.reinforce.page import reward_of
from tests.reinforce.training import TRL_WARNING, trainer

pytestmark = pytest.mark.filterwarnings(TRL_WARNING)
PROGRAM, PROSE = Format("program", r"^def "), Format("prose", "The answer is")


def right(completions: list[str], **_: Any) -> list[float]:
    return [float("7" in completion) for completion in completions]


def watch(monitor: FormatMonitor, prompts: list[str], completions: list[Any], step: int = 0) -> list[float | None]:
    state = SimpleNamespace(global_step=step)
    return monitor.watch(right)(prompts=prompts, completions=completions, trainer_state=state)


def test_shares_accuracies_and_passes_are_counted() -> None:
    monitor = FormatMonitor([PROGRAM, PROSE])
    prompts = ["a"] * 4 + ["b"] * 4
    completions = ["def f(): 7", "def f(): 3", "The answer is 7", "no", "def 1", "def 2", "The answer is 5", ""]
    assert watch(monitor, prompts, completions) == [1, 0, 1, 0, 0, 0, 0, 0]
    [line] = monitor.history
    assert line["shares"] == {"program": 0.5, "prose": 0.25, "other": 0.25}
    assert line["accuracy"] == {"program": 0.25, "prose": 0.5, "other": 0.0}
    assert line["entropy"] == pytest.approx(-0.5 * math.log(0.5) - 2 * 0.25 * math.log(0.25))
    assert (line["pass_at_1"], line["pass_at_k"], line["k"]) == (0.25, 0.5, 4)
    assert line["distinct_answers"] == (3 + 4) / 2  # 7, 3, "no" | 1, 2, 5, ""
    assert line["distance"] == 0  # this is the start


def test_the_first_format_that_matches_counts_and_messages_are_read() -> None:
    monitor = FormatMonitor([PROSE, PROGRAM, Format("short", lambda text: len(text) < 3)])
    assert monitor.format_of("def f(): The answer is 7") == "prose"
    assert monitor.format_of("no") == "short" and monitor.format_of("none of them") == "other"
    watch(monitor, ["a"], [[{"role": "assistant", "content": "The answer is 7"}]])
    assert monitor.history[0]["shares"]["prose"] == 1


def test_the_distance_is_taken_from_the_rollouts_before_the_first_update() -> None:
    monitor = FormatMonitor([PROGRAM, PROSE])
    watch(monitor, ["a"] * 4, ["def ", "def ", "The answer is", "The answer is"])
    watch(monitor, ["a"] * 4, ["def "] * 4, step=1)
    start, after = monitor.history
    assert start["distance"] == 0
    own, first = [4.5 / 5.5, 0.5 / 5.5, 0.5 / 5.5], [2.5 / 5.5, 2.5 / 5.5, 0.5 / 5.5]
    assert after["distance"] == pytest.approx(sum(p * math.log(p / q) for p, q in zip(own, first, strict=True)))
    # A trainer that does not tell its state to rewards
    alone, state = FormatMonitor([PROGRAM, PROSE]), SimpleNamespace(global_step=0, is_world_process_zero=True)
    alone.on_train_begin(None, state, None)  # type: ignore[arg-type]
    for step, text in ((0, "def "), (5, "The answer is")):
        state.global_step = step
        alone.watch(right)(prompts=["a"] * 4, completions=[text] * 4)
    assert [line["step"] for line in alone.history] == [0, 5] and alone._start()["program"] == 1
    given = FormatMonitor([PROGRAM, PROSE], start_shares={"program": 1.0})
    watch(given, ["a"] * 4, ["The answer is"] * 4)
    assert given.history[0]["distance"] > 1


def test_a_takeover_and_a_death_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = FormatMonitor([PROGRAM, PROSE], alarm_share=0.9)
    watch(monitor, ["a"] * 4, ["def ", "def ", "The answer is", "The answer is"])
    for step in range(1, 9):
        watch(monitor, ["a"] * 4, ["def "] * 4, step)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "format 'program': 100% of the completions are of it (at the start 50%)" in told[0]
    assert "format 'prose': only 0.0% of the completions are of it (at the start 50%)" in told[1]


def test_a_pattern_that_backtracks_without_end_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = FormatMonitor([Format("slow", r"(a|a)+$"), PROSE])
    started = time.monotonic()
    assert monitor.format_of("a" * 60 + "!" + "The answer is") == "prose"
    assert time.monotonic() - started < 2
    assert "format 'slow': its pattern took longer than 0.1 s" in capsys.readouterr().err


def test_a_function_that_raises_does_not_match(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = FormatMonitor([Format("broken", lambda text: 1 / 0 > 0), PROSE])
    assert monitor.format_of("The answer is 7") == "prose"
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("formats", "culprit"),
    [
        (lambda: [Format("x", "(")], "'x'.*no regular expression"),
        (lambda: [Format("x", "")], "'x' is empty"),
        (lambda: [Format("other", "a")], "'other'"),
        (lambda: FormatMonitor([PROGRAM, PROGRAM]), "'program' is given twice"),
        (lambda: FormatMonitor([]), "at least one"),
        (lambda: FormatDivergence(0.0), "coefficient"),
    ],
)
def test_wrong_formats_are_named(formats: Any, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        formats()


def test_within_format_leaves_no_advantage_of_one_format_over_another() -> None:
    rewards, names = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b", "b", "c"]
    shaped = WithinFormat().shaped(rewards, names, {})
    mean = sum(rewards) / 6
    for name in "abc":
        own = [value for value, each in zip(shaped, names, strict=True) if each == name]
        assert sum(own) / len(own) == pytest.approx(mean)
    assert shaped[0] - shaped[1] == pytest.approx(1.0)  # within a format nothing changes


def test_divergence_is_the_policy_gradient_of_the_kl_to_the_start_shares() -> None:
    """Expected gradient of the shaped reward, beside autograd's of KL, for a softmax over three formats."""
    counts, start, coefficient = [500_000, 300_000, 200_000], [0.2, 0.3, 0.5], 0.7
    names = [name for name, count in zip("abc", counts, strict=True) for _ in range(count)]
    shaped = FormatDivergence(coefficient).shaped([0.0] * len(names), names, dict(zip("abc", start, strict=True)))
    price = torch.tensor([shaped[names.index(name)] for name in "abc"], dtype=torch.float64)
    logits = (torch.tensor(counts, dtype=torch.float64) / 1e6).log().requires_grad_()
    p = logits.softmax(-1)
    divergence_ = (p * (p / torch.tensor(start, dtype=torch.float64)).log()).sum()
    [expected] = torch.autograd.grad(-coefficient * divergence_, logits)
    p = p.detach()
    policy_gradient = p * (price - (p * price).sum())
    torch.testing.assert_close(policy_gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_guard_reshapes_what_the_trainer_gets_but_not_what_is_measured() -> None:
    monitor = FormatMonitor([PROGRAM, PROSE], guard=WithinFormat())
    got = watch(monitor, ["a"] * 4, ["def 7", "def 7", "The answer is 7", "The answer is"])
    assert got == pytest.approx([0.75, 0.75, 1.25, 0.25])
    logged: dict[str, float] = {}
    completions = ["def 7", "def 7", "The answer is 7", "The answer is"]
    state = SimpleNamespace(global_step=0)
    guarded = FormatMonitor([PROGRAM, PROSE], guard=FormatDivergence(), start_shares={"program": 0.25, "prose": 0.75})
    shaped = guarded.watch(right)(
        prompts=["a"] * 4, completions=completions, trainer_state=state, log_metric=logged.__setitem__
    )
    assert sum(shaped) / 4 != 0.75  # what pages and tables show is the reward that was given
    assert reward_of({"reward": sum(shaped) / 4, **logged}) == pytest.approx(0.75)
    assert monitor.history[0]["accuracy"]["program"] == 1.0 and monitor.history[0]["pass_at_1"] == 0.75


def test_a_guard_leaves_rewards_alone_that_are_none_or_no_number() -> None:
    monitor = FormatMonitor([PROGRAM], guard=WithinFormat())
    given = iter([None, math.nan, 1.0, 0.0])
    watched = monitor.watch(lambda completions, **_: list(given))
    got = watched(prompts=["a"] * 4, completions=["def "] * 4)
    assert got[0] is None and math.isnan(got[1]) and got[2:] == pytest.approx([1.0, 0.0])


def test_what_cannot_be_watched_or_resumed_is_said() -> None:
    async def later(completions: list[str], **_: Any) -> list[float]:
        return [1.0]

    for reward in (later, "a/reward-model"):
        with pytest.raises(InputError, match="plain functions"):
            FormatMonitor([PROGRAM]).watch(reward)  # type: ignore[arg-type]
    state = SimpleNamespace(global_step=3, is_world_process_zero=True)
    with pytest.raises(InputError, match="start_shares, or the path"):
        FormatMonitor([PROGRAM]).on_train_begin(None, state, None)  # type: ignore[arg-type]
    FormatMonitor([PROGRAM], start_shares={"program": 0.5}).on_train_begin(None, state, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_any_trl_trainer_logs_it_and_a_resumed_run_forgets_what_it_does_again(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "formats.jsonl"

    def low(completions: list[str], **_: Any) -> list[float]:
        return [float(bool(text) and text[0] < "a") for text in completions]

    def made(steps: int) -> tuple[FormatMonitor, Any]:
        monitor = FormatMonitor([Format("letter", "^[a-zA-Z]"), Format("digit", "^[0-9]")], path=path)
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps}
        return monitor, trainer(
            tokenizer, tmp_path / "run", kind=GRPOTrainer, reward=monitor.watch(low), callbacks=[monitor], **settings
        )

    monitor, run = made(3)
    run.train()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and lines == monitor.history
    logged = [line for line in run.state.log_history if "formats/entropy" in line]
    assert [line["formats/letter/share"] for line in logged] == pytest.approx([e["shares"]["letter"] for e in lines])
    assert [line["pass_at_1"] for line in logged] == pytest.approx([line["pass_at_1"] for line in lines])
    again, resumed = made(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in after] == [0, 1, 2, 3] and after[:2] == lines[:2]
    assert again._start() == monitor._start()


def test_small_helpers() -> None:
    assert entropy([1.0, 0.0]) == 0 and entropy([0.5, 0.5]) == pytest.approx(math.log(2))
    assert divergence([1, 1], [0.5, 0.5]) == pytest.approx(0)
    assert final_answer("so 1,234 and -5.5") == "-5.5" and final_answer("a\nyes ") == "yes"
