"""A run that goes on from a checkpoint is the run without a break: the same rows in the same order, the same log.

transformers (5.23) sees to the weights, the optimizer and the random numbers. What it leaves out:

1. The order of the rows. A sampler without a generator of its own (by length) draws from the global random numbers,
   which are put back only once the batches that were done are skipped; with several processes a resumed epoch gets the
   first one's order. Here an epoch's order depends on the seed and the epoch alone (`OrderOfEpoch`).
2. What was summed up since the last logged line, and the loss of all steps. It is saved along (`UnloggedSums`).
3. What follows the last step of an epoch. A checkpoint made there before the epoch's evaluation would lose it, so the
   checkpoint comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

SUMS = (
    "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens", "_metrics", "_sums", "_rollouts"
)  # fmt: skip
"""Attributes of transformers' and TRL's trainers and of ours that grow with each step, or from one log line to the
next; a trainer may lack some."""


class ResumableTrainer(Trainer):
    """A trainer of transformers or TRL, to be inherited from before it, that resumes as this module's head says."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.add_callback(UnloggedSums(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        return OrderOfEpoch(sampler, self) if hasattr(sampler, "generator") else sampler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the trainer it is, but that `train_loss` in the end is the mean of all steps, not of those resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


class OrderOfEpoch(Sampler[int]):
    """A sampler with a generator, whose order in an epoch is the same wherever the run began.

    One that has no generator is given the seed plus the epoch, as accelerate does with a random one; one that has, such
    as TRL's for GRPO, goes on drawing from it.
    """

    def __init__(self, sampler: Any, trainer: Any) -> None:
        self.sampler, self.trainer = sampler, trainer
        self.own_seed = None if sampler.generator is None else sampler.generator.initial_seed()

    def __iter__(self) -> Iterator[int]:
        arguments, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        if self.own_seed is None:
            seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
            self.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        else:
            self.sampler.generator.manual_seed(self.own_seed)
            for _ in range(epoch):
                next(iter(self.sampler), None)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class UnloggedSums(TrainerCallback, ExportableState):
    """Saves the trainer's sums with each checkpoint and puts them back; not with several processes, which have each
    their own. Moves a checkpoint at the end of an epoch behind what is evaluated and logged there."""

    def __init__(self, trainer: Any = None) -> None:
        self.trainer = trainer
        self.postponed = False

    def state(self) -> dict[str, Any]:
        """Return what transformers writes into trainer_state.json."""
        sums: dict[str, Any] = {}
        if self.trainer is not None and self.trainer.args.world_size == 1:
            sums = {name: to_json(getattr(self.trainer, name)) for name in SUMS if hasattr(self.trainer, name)}
        return {"args": {}, "attributes": {"sums": sums}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        saved: Any = state.stateful_callbacks
        self.restore(saved.setdefault(type(self).__name__, self.state()) if state.global_step else {})
        args.eval_on_start = args.eval_on_start and not state.global_step

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put back the sums that `state` returned."""
        sums = saved.get("attributes", {}).get("sums", {}) if self.trainer is not None else {}
        for name, value in sums.items():
            value = from_json(value, self.trainer.args.device)
            if isinstance(value, dict):
                for mode, sums in value.items():
                    getattr(self.trainer, name)[mode].update(sums)
            else:
                setattr(self.trainer, name, value)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_save and (control.should_training_stop or (state.epoch or 0) % 1 == 0):
            control.should_save, self.postponed = False, True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_save or self.postponed
        self.postponed = False


def to_json(value: Any) -> Any:
    """Convert numbers, tensors, and lists and mappings of them to JSON values, exactly."""
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "tensor": value.tolist()}
    if isinstance(value, Mapping):
        return {name: to_json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def from_json(value: Any, device: Any) -> Any:
    """Undo `to_json`."""
    if isinstance(value, Mapping):
        if "tensor" in value:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]), device=device)
        return {name: from_json(each, device) for name, each in value.items()}
    return [from_json(each, device) for each in value] if isinstance(value, list) else value
