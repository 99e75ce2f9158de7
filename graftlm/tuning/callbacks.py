"""Callbacks of the training loop: the run's log, progress lines and tables, and Ctrl-C."""

from __future__ import annotations

import atexit
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftlm.runs.console import printable, say
from graftlm.runs.run import Run


class RunCallback(TrainerCallback):
    """Writes every log line to metrics.jsonl too."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero:
            self.run.log({"step": state.global_step, **(logs or {})})


class ConsoleCallback(TrainerCallback):
    """Prints plain progress lines to stderr, where that is no terminal."""

    def __init__(self, every_seconds: float = 10.0, *, describe: Callable[[dict[str, Any]], str] | None = None) -> None:
        """describe: words for a logged line, shown instead of its loss."""
        self.every_seconds, self.describe = every_seconds, describe or describe_loss
        self.started = self.shown = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.shown = time.monotonic()
        self.first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        last = state.global_step >= state.max_steps
        if state.is_world_process_zero and (last or now - self.shown >= self.every_seconds):
            self.shown = now
            left = seconds_left(self.started, self.first_step, state)
            line: dict[str, Any] = next((line for line in reversed(state.log_history) if "loss" in line), {})
            loss = "".join(f", {words}" for words in [self.describe(line)] if words)
            say(f"step {state.global_step}/{state.max_steps}{loss}, {left} s left")


def seconds_left(started: float, first_step: int, state: TrainerState) -> int:
    """Estimate the time left, from that since `started` (time.monotonic), when `first_step` steps were done."""
    pace = (time.monotonic() - started) / max(state.global_step - first_step, 1)
    return round(pace * (state.max_steps - state.global_step))


def updates_together(args: Any) -> int:
    """Optimizer steps that one rollout batch serves: 1 where there are no rollouts."""
    batches = getattr(args, "steps_per_generation", None)
    if batches is None:
        return 1
    return max(1, batches * args.num_iterations // args.gradient_accumulation_steps)


class TableCallback(TrainerCallback):
    """Shows a table of the last logged steps on a terminal, which grows as they come.

    cells: heading -> text of a logged line; a line without any is left out.
    """

    def __init__(
        self, cells: Callable[[dict[str, Any]], dict[str, str]], *, rows: int = 12, console: Any = None
    ) -> None:
        self.cells, self.rows, self.console = cells, rows, console
        self.lines: list[dict[str, str]] = []
        self.started = 0.0
        self.live: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        from rich.console import Console
        from rich.live import Live

        self.started, self.first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.live = Live(console=self.console or Console(stderr=True), auto_refresh=False)
            self.live.start()
            atexit.register(self.live.stop)  # an error must not leave the terminal without its cursor

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        cells = self.cells(logs or {})
        if not cells or self.live is None:
            return
        left = f"{seconds_left(self.started, self.first_step, state)} s"
        self.lines = [*self.lines, {"step": f"{state.global_step}/{state.max_steps}", **cells, "left": left}]
        self.live.update(self.table(), refresh=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        shown = self.lines[-self.rows :]
        headings = list(dict.fromkeys(heading for line in shown for heading in line))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(Text(printable(heading)), justify="right")
        for line in shown:
            table.add_row(*(line.get(heading, "-") for heading in headings))
        return table


def describe_loss(line: dict[str, Any]) -> str:
    return f"loss {line['loss']:.3f}" if "loss" in line else ""


class InterruptCallback(TrainerCallback):
    """Ends training at the first Ctrl-C after the step under way, with a checkpoint, and at once at the second."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        try:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        except ValueError:  # not the main thread: the caller handles Ctrl-C
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        say("graftlm: interrupted; finishing this step and saving a checkpoint (Ctrl-C again stops at once)")
        signal.signal(signal.SIGINT, self._before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A rollout batch is not saved: a run that went on within one would write another.
        if self.interrupted and state.global_step % updates_together(args) == 0:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.interrupted and (state.epoch or 0) % 1 and state.global_step < state.max_steps:
            control.should_evaluate = control.should_log = False  # the epoch has not ended

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._before is not None and not self.interrupted:
            signal.signal(signal.SIGINT, self._before)
