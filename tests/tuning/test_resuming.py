"""A run that was killed and resumed is the run without a break: weights and log, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import RandomSampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from graftlm.runs.run import Run
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.resuming import OrderOfEpoch
from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
from graftlm.tuning.training import last_checkpoint, train_and_save
from graftlm.tuning.tune import build_trainer
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")]
OF_TIME = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
           "eval_samples_per_second", "eval_steps_per_second"}  # fmt: skip


class Killed(BaseException):
    """As good as kill -9: nothing is saved or logged after it."""


class AtStep(TrainerCallback):
    """Does something once a step is done."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.step:
            self.action()


def kill() -> None:
    raise Killed


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def model_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    draw = random.Random(0)
    for name, count in (("train", 64), ("validation", 8)):
        rows = [{"prompt": f"{i}:", "completion": " " + "abc " * draw.randrange(1, 12)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(given: TuneConfig, *, resume: bool = False, at: int = 0, action: Callable[[], None] = kill) -> None:
    """A tuning, in which `action` is called after step `at`."""
    with Run.create(given.output, "tune", given, {}, resume=resume) as opened:
        trainer = build_trainer(given, opened)
        if at:
            trainer.callback_handler.callbacks.insert(0, AtStep(at, action))
        train_and_save(trainer, opened, push_to_hub=False)


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    for file in (one / "model").rglob("*.safetensors"):
        first, second = load_file(file), load_file(other / file.relative_to(one))
        assert first.keys() == second.keys()
        assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    names = [sorted(str(path.relative_to(each)) for path in each.rglob("*")) for each in (one, other)]
    assert names[0] == names[1]


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "middle-of-an-epoch": (25, {}),
    "end-of-an-epoch": (17, {"save_steps": 4}),
    "full": (25, {"method": "full", "train_heads": True, "num_heads": 2, "heads": "cold", "objective": "multi-token"}),
    "dropout-and-accumulation": (11, {"lora_dropout": 0.2, "gradient_accumulation": 2, "save_steps": 3}),
    "uneven-accumulation": (13, {"gradient_accumulation": 3, "batch_size": 3, "save_steps": 5, "epochs": 3}),
    "packed": (7, {"packing": True, "save_steps": 3, "max_length": 32, "epochs": 3}),
    "random": (25, {"trainer": {"train_sampling_strategy": "random"}}),
    "sequential": (25, {"trainer": {"train_sampling_strategy": "sequential"}}),
    "batch-rebalance": (25, {"trainer": {"train_sampling_strategy": "batch_rebalance"}}),
    "evaluated-each-epoch": (17, {"eval_split": "validation", "save_steps": 4, "lora_dropout": 0.2}),
    "best": (25, {"eval_split": "validation", "eval_steps": 3, "early_stopping": 20, "save_steps": None,
                  "lora_dropout": 0.2}),
    "anchored": (25, {"anchor": "kl", "anchor_weight": 0.5, "mtp_weights": "entropy", "num_heads": 2, "heads": "cold",
                      "objective": "multi-token"}),
    "at-the-last-step": (32, {}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumed_ends_as_the_one_without_a_break(
    case: str, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    step, settings = CASES[case]
    given = {"objective": "next-token", "epochs": 2, "batch_size": 4, "save_steps": 6, "learning_rate": 1e-2,
             "max_length": 64, **settings}  # fmt: skip

    def made(name: str) -> TuneConfig:
        return TuneConfig(model=str(model_folder), data=str(data), output=str(tmp_path / name), **given)

    run(made("whole"))
    with pytest.raises(Killed):
        run(made("killed"), at=step)
    run(made("killed"), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_within_an_epoch_loses_and_adds_nothing(model_folder: Path, data: Path, tmp_path: Path) -> None:
    def made(name: str) -> TuneConfig:
        return TuneConfig(
            model=str(model_folder), data=str(data), output=str(tmp_path / name), objective="next-token", epochs=2,
            batch_size=4, learning_rate=1e-2, eval_split="validation", lora_dropout=0.2,
        )  # fmt: skip

    run(made("whole"))
    with pytest.raises(KeyboardInterrupt, match="checkpoint saved at step 21"):
        run(made("stopped"), at=21, action=ctrl_c)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-21" / "trainer_state.json").is_file()
    run(made("stopped"), resume=True)
    assert logged(tmp_path / "whole") == logged(tmp_path / "stopped")
    one, other = (load_file(tmp_path / n / "model" / "adapter_model.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.slow
def test_a_resumed_trainer_sees_each_row_once_an_epoch(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    class Recording(MultiTokenTrainer):
        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            seen.extend(tuple(row.tolist()) for row in inputs["input_ids"])
            return super().compute_loss(model, inputs, *given, **named)

    rows = Dataset.from_dict({"input_ids": [[1 + i, *range(2 + i % 7)] for i in range(24)]})
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 4, "report_to": "none",
                "train_sampling_strategy": "group_by_length", "dataloader_pin_memory": False}  # fmt: skip
    of_runs = []
    for stop, checkpoint in ((0, None), (10, None), (0, str(tmp_path / "run" / "checkpoint-8"))):
        seen: list[tuple[int, ...]] = []
        arguments = MultiTokenConfig(str(tmp_path / ("run" if stop else "other")), **settings)
        trainer = Recording(
            tiny_model(), arguments, train_dataset=rows, processing_class=tokenizer,
            callbacks=[AtStep(stop, kill)] if stop else None,
        )  # fmt: skip
        with pytest.raises(Killed) if stop else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
        of_runs.append(seen)
    whole, _, resumed = of_runs
    assert len(set(whole[24:])) == 24 and whole[:24] != whole[24:]
    assert resumed == whole[32:]


@pytest.mark.parametrize("kind", ["length", "random", "repeat"])
def test_the_order_of_an_epoch_is_the_same_wherever_the_run_began(kind: str) -> None:
    def orders(epochs: list[float], process: int = 0) -> list[list[int]]:
        torch.manual_seed(process)  # the global random numbers have no part in it
        rows = list(range(12))
        sampler = {
            "length": lambda: LengthGroupedSampler(2, lengths=[1 + i % 5 for i in rows]),
            "random": lambda: RandomSampler(rows),
            "repeat": lambda: RepeatSampler(rows, mini_repeat_count=1, seed=3),
        }[kind]()
        state = SimpleNamespace(epoch=None)
        ordered = OrderOfEpoch(sampler, SimpleNamespace(args=SimpleNamespace(seed=3, data_seed=None), state=state))
        found = []
        for state.epoch in epochs:
            found.append(list(ordered))
        return found

    whole = orders([0, 1, 2])
    assert all(sorted(order) == list(range(12)) for order in whole) and whole[0] != whole[1] != whole[2]
    assert orders([1.5], process=1) == whole[1:2] and orders([2.0]) == whole[2:]
    if kind == "repeat":
        theirs = RepeatSampler(list(range(12)), mini_repeat_count=1, seed=3)
        assert whole == [list(theirs) for _ in range(3)]


def test_of_several_checkpoints_the_newest_whole_one_is_resumed(tmp_path: Path) -> None:
    for step, state, files in (
        (2, "{}", ["weights", "optimizer.pt"]),
        (4, "{}", ["weights"]),  # half deleted
        (6, "{}", ["weights", "optimizer.pt"]),
        (8, '{"global_st', ["weights", "optimizer.pt"]),  # half written
        (10, None, ["weights"]),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).write_text("")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6"]
