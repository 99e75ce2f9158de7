"""FormatMonitor: which formats a run keeps, how accurate each is, and an alarm when one swallows the rest.

RL amplifies one format of the pretrained ones and buries the others within an epoch (Echo Chamber, arXiv 2504.07912,
section 3). graftlm/reinforce/format_measures.py has the measures. Where this differs from the paper's code:

1. A format is a name and a regular expression or a function of yours; the paper's three are built into its code.
2. The distance to the start model's shares is smoothed, so that it is finite.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftlm.errors import InputError
from graftlm.reinforce.completions import completion_text
from graftlm.reinforce.format_guards import Guard
from graftlm.reinforce.format_measures import Rollout, final_answer, measured, metrics
from graftlm.reinforce.formats import OTHER, Format, format_of
from graftlm.runs.console import say
from graftlm.runs.files import append_line, dump_json, read_json_lines, write_text

ALARM_SHARE, DEAD_SHARE = 0.9, 0.01  # above and below which a format has taken over or died
ALARM_BATCHES = 4
"""Rollout batches whose shares the alarm looks at together."""


class FormatMonitor(TrainerCallback):
    """Shares and accuracies of formats in each rollout batch of any TRL trainer that takes reward functions.

        monitor = FormatMonitor([Format("program", r"^def "), Format("prose", "The answer is")])
        trainer = GRPOTrainer(..., reward_funcs=monitor.watch(reward), callbacks=[monitor])

    Its numbers stand in `history`, as JSON lines in `path`, and, with trainers that let rewards log (GRPO and RLOO),
    among the trainer's metrics (`formats/program/share`, `formats/entropy`, ...).
    A completion belongs to the first format that matches it, or to `other`.

    Args:
        formats: in the order in which they are tried.
        guard: reshapes the rewards so that formats do not collapse (graftlm/reinforce/format_guards.py).
        start_shares: name -> share of the start model; measured on the rollouts before the first update by default.
        correct_above: a completion with a higher reward counts as correct.
        alarm_share, dead_share: shares above and below which the monitor warns that a format takes over or dies.
        path: file for the history; what a resumed run does again is dropped from it.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        guard: Guard | None = None,
        start_shares: Mapping[str, float] | None = None,
        correct_above: float = 0.5,
        alarm_share: float = ALARM_SHARE,
        dead_share: float = DEAD_SHARE,
        path: Path | None = None,
    ) -> None:
        names = [each.name for each in formats]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"format {repeated[0]!r} is given twice")
        if not formats:
            raise InputError("no formats are given; at least one is needed")
        self.formats, self.names = list(formats), [*names, OTHER]
        self.guard, self.start_shares = guard, dict(start_shares) if start_shares else None
        self.correct_above, self.alarm_share, self.dead_share, self.path = correct_above, alarm_share, dead_share, path
        self.history: list[dict[str, Any]] = []
        self._start_counts: Counter[str] = Counter()
        self._recent: deque[Counter[str]] = deque(maxlen=ALARM_BATCHES)
        self._warned: set[tuple[str, str]] = set()
        self._model: Any = None
        self._state: TrainerState | None = None
        self._writes = True

    def format_of(self, text: str) -> str:
        """Name of the first format that matches; warns once of a pattern that fails."""
        return format_of(text, self.formats, lambda name, what: self._warn_once(name, "failed", what))

    def watch(self, reward: Callable[..., Any]) -> Callable[..., Any]:
        """A TRL reward function that gives `reward`'s values (shaped, with a guard) and measures the completions."""

        if not callable(reward) or inspect.iscoroutinefunction(reward):
            raise InputError(
                f"the reward is {reward!r}: a FormatMonitor watches plain functions, not models or async functions"
            )

        def watched(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            rewards = list(reward(prompts=prompts, completions=completions, **columns))
            if self._model is not None and not self._model.training:
                return rewards  # an evaluation
            texts = [completion_text(completion) for completion in completions]
            columns_of_rows = map(self.format_of, texts), rewards, map(_key, prompts), map(final_answer, texts)
            rows = gather_object([Rollout(*row) for row in zip(*columns_of_rows, strict=True)])
            self._measure(rows, columns)
            if self.guard is None:
                return rewards
            first = PartialState().process_index * len(texts)
            return self._shaped(self.guard, rows, columns.get("log_metric"))[first : first + len(texts)]

        watched.__name__ = getattr(reward, "__name__", type(reward).__name__)
        return watched

    def _shaped(self, guard: Guard, rows: Sequence[Rollout], log: Any) -> list[float | None]:
        """The guard's rewards of all rows; a reward that is None or no number stays out and as it is."""
        rewards = [row.reward for row in rows]
        places = [place for place, value in enumerate(rewards) if value is not None and math.isfinite(value)]
        given = [float(rows[place].reward or 0.0) for place in places]
        shaped = guard.shaped(given, [rows[place].format for place in places], self._start())
        for place, value in zip(places, shaped, strict=True):
            rewards[place] = value
        if log is not None and given:
            log("guard/shift", (sum(shaped) - sum(given)) / len(given))
        return rewards

    # -- measuring ----------------------------------------------------------------------------------------------

    def _measure(self, rows: Sequence[Rollout], columns: Mapping[str, Any]) -> None:
        state = columns.get("trainer_state") or self._state
        step = 0 if state is None else state.global_step
        counts = Counter(row.format for row in rows)
        if step == 0 and self.start_shares is None:
            self._start_counts += counts
        self._recent.append(counts)
        line = {"step": step, **measured(rows, self.names, self._start(), self.correct_above)}
        self.history.append(line)
        if self.path is not None and self._writes:
            append_line(self.path, dump_json(line))
        if log := columns.get("log_metric"):
            for name, value in metrics(line).items():
                log(name, value)
        self._alarm()

    def _start(self) -> dict[str, float]:
        """The start model's shares, of all formats."""
        if self.start_shares is not None:
            return {name: self.start_shares.get(name, 0.0) for name in self.names}
        total = max(sum(self._start_counts.values()), 1)
        return {name: self._start_counts[name] / total for name in self.names}

    def _alarm(self) -> None:
        recent: Counter[str] = sum(self._recent, Counter())
        total, start = max(sum(recent.values()), 1), self._start()
        for name in self.names:
            share = recent[name] / total
            if share > self.alarm_share >= start[name]:
                self._warn_once(name, "won", f"{share:.0%} of the completions are of it "
                                f"(at the start {start[name]:.0%}): the others are being lost")  # fmt: skip
            elif share < self.dead_share <= start[name] and len(self._recent) == ALARM_BATCHES:
                self._warn_once(name, "died", f"only {share:.1%} of the completions are of it "
                                f"(at the start {start[name]:.0%})")  # fmt: skip

    def _warn_once(self, name: str, what: str, text: str) -> None:
        if (name, what) not in self._warned:
            self._warned.add((name, what))
            if self._writes:
                say(f"graftlm: warning: format {name!r}: {text}")

    # -- callback -----------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self._model, self._state, self._writes = model, state, state.is_world_process_zero
        self._start_counts.clear()
        if self.path is None or not self.path.exists():
            if state.global_step and self.start_shares is None:
                raise InputError(
                    "the run is resumed, but the FormatMonitor does not know the start model's shares: "
                    "give it start_shares, or the path of the run's history"
                )
            return
        # A resumed run does the steps after its checkpoint again: their lines go.
        self.history = [line for line in read_json_lines(self.path) if line["step"] < state.global_step]
        if self._writes:
            write_text(self.path, "".join(f"{dump_json(line)}\n" for line in self.history))
        for line in self.history:
            if line["step"] == 0:
                self._start_counts += Counter(line["counts"])


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
