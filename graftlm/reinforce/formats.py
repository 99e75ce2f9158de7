"""Formats of completions: which of them a run keeps, how accurate each is, and an alarm when one swallows the rest.

RL amplifies one format of the pretrained ones and buries the others within an epoch (Echo Chamber, arXiv 2504.07912,
section 3). `FormatMonitor` measures, for each rollout batch with n completions of which n_f are of format f,

    share_f = n_f / n,   entropy = −Σ_f share_f · ln share_f,   distance = Σ_f share_f · ln (share_f / start_f),

the accuracy within each format, pass@1 and pass@k within each prompt's completions, and how many distinct answers a
prompt gets. start_f is the share of the model that the run started from.

Where this differs from the paper's code:
1. A format is a name and a regular expression or a function of yours; the paper's three are built into its code.
2. The distance takes shares with half a completion added to each format, so that a format that was never seen at the
   start does not make it infinite.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftlm.data.patterns import Pattern
from graftlm.errors import InputError
from graftlm.reinforce.completions import completion_text
from graftlm.reinforce.format_guards import Guard
from graftlm.runs.console import say
from graftlm.runs.files import append_line, dump_json, read_json_lines, write_text

OTHER = "other"
ALARM_SHARE, DEAD_SHARE = 0.9, 0.01  # above and below which a format has taken over or died
MATCH_SECONDS = 0.1
"""Longest time that one pattern may take on one completion; a slower one counts as no match."""
ALARM_BATCHES = 4
"""Rollout batches whose shares the alarm looks at together."""


@dataclass(frozen=True)
class Format:
    """A kind of completion: a name, and a regular expression found anywhere in it or a function that says yes or no.

    Raises InputError for a pattern that is no regular expression.
    """

    name: str
    pattern: str | Callable[[str], bool]

    def __post_init__(self) -> None:
        if self.name == OTHER:
            raise InputError(f"format {OTHER!r}: that name is for completions of no format; give another")
        if isinstance(self.pattern, str):
            Pattern(f"format {self.name!r}", self.pattern, MATCH_SECONDS)

    def matches(self, text: str) -> bool:
        """TimeoutError where a regular expression takes longer than MATCH_SECONDS."""
        if isinstance(self.pattern, str):
            return Pattern(f"format {self.name!r}", self.pattern, MATCH_SECONDS).found_in(text)
        return bool(self.pattern(text))


def format_of(text: str, formats: Iterable[Format], failed: Callable[[str, str], None] | None = None) -> str:
    """The name of the first format that matches, or `other`; one that is too slow or raises does not match.

    failed: called with its name and what happened.
    """
    for each in formats:
        try:
            if each.matches(text):
                return each.name
        except Exception as error:
            what = f"took longer than {MATCH_SECONDS} s" if isinstance(error, TimeoutError) else f"raised {error!r}"
            if failed is not None:
                failed(each.name, f"its pattern {what} on a completion, which counts as no match")
    return OTHER


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
        alarm_share, dead_share: shares above and below which a format's takeover or death is told.
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
        self._told: set[tuple[str, str]] = set()
        self._model: Any = None
        self._state: TrainerState | None = None
        self._writes = True

    def format_of(self, text: str) -> str:
        """As the function of that name; a pattern that fails is told once."""
        return format_of(text, self.formats, lambda name, what: self._tell_once(name, "failed", what))

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
            names = [self.format_of(completion_text(completion)) for completion in completions]
            answers = [final_answer(completion_text(completion)) for completion in completions]
            own = list(zip(names, rewards, map(_key, prompts), answers, strict=True))
            rows = gather_object(own)
            self._measure(rows, columns)
            return rewards if self.guard is None else self._shaped(rows, len(own), columns.get("log_metric"))

        watched.__name__ = getattr(reward, "__name__", type(reward).__name__)
        return watched

    def _shaped(self, rows: list[tuple[str, float | None, str, str]], own: int, log: Any) -> list[float | None]:
        """The guard's rewards of this process's rows; a reward that is None or no number stays out and as it is."""
        assert self.guard is not None
        known = [place for place, (_, reward, *_) in enumerate(rows) if reward is not None and math.isfinite(reward)]
        given = [float(rows[place][1] or 0.0) for place in known]
        values: dict[int, float] = dict(
            zip(known, self.guard.shaped(given, [rows[place][0] for place in known], self._start()), strict=True)
        )
        if log is not None and given:
            log("guard/shift", (sum(values.values()) - sum(given)) / len(given))
        first = PartialState().process_index * own
        return [values.get(place, rows[place][1]) for place in range(first, first + own)]

    # -- measuring ----------------------------------------------------------------------------------------------

    def _measure(self, rows: list[tuple[str, float | None, str, str]], columns: Mapping[str, Any]) -> None:
        state = columns.get("trainer_state") or self._state
        step = 0 if state is None else state.global_step
        counts = Counter(name for name, *_ in rows)
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
                self._tell_once(name, "won", f"{share:.0%} of the completions are of it "
                                f"(at the start {start[name]:.0%}): the others are being lost")  # fmt: skip
            elif share < self.dead_share <= start[name] and len(self._recent) == ALARM_BATCHES:
                self._tell_once(name, "died", f"only {share:.1%} of the completions are of it "
                                f"(at the start {start[name]:.0%})")  # fmt: skip

    def _tell_once(self, name: str, what: str, text: str) -> None:
        if (name, what) not in self._told:
            self._told.add((name, what))
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
        # A resumed run: what it is about to do again is forgotten.
        self.history = [line for line in read_json_lines(self.path) if line["step"] < state.global_step]
        if self._writes:
            write_text(self.path, "".join(f"{dump_json(line)}\n" for line in self.history))
        for line in self.history:
            if line["step"] == 0:
                self._start_counts += Counter(line["counts"])


def measured(
    rows: Sequence[tuple[str, float | None, str, str]],
    names: Sequence[str],
    start: Mapping[str, float],
    correct_above: float,
) -> dict[str, Any]:
    """What the module's head lists, of rows (format, reward, prompt, answer)."""
    counts = Counter(name for name, *_ in rows)
    correct: Counter[str] = Counter()
    by_prompt: dict[str, list[tuple[bool, str]]] = {}
    for name, reward, prompt, answer in rows:
        right = reward is not None and reward > correct_above
        correct[name] += right
        by_prompt.setdefault(prompt, []).append((right, answer))
    shares = {name: counts[name] / max(len(rows), 1) for name in names}
    groups = list(by_prompt.values())
    return {
        "counts": {name: counts[name] for name in names},
        "shares": shares,
        "accuracy": {name: correct[name] / counts[name] if counts[name] else None for name in names},
        "entropy": entropy(shares.values()),
        "distance": divergence([counts[name] for name in names], [start[name] for name in names]),
        "pass_at_1": sum(correct.values()) / max(len(rows), 1),
        "pass_at_k": sum(any(right for right, _ in group) for group in groups) / max(len(groups), 1),
        "k": max(map(len, groups), default=0),
        "distinct_answers": sum(len({answer for _, answer in group}) for group in groups) / max(len(groups), 1),
    }


def metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of the history as the trainer's metrics."""
    found = {"formats/entropy": line["entropy"], "formats/distance": line["distance"]}
    found |= {f"formats/{name}/share": share for name, share in line["shares"].items()}
    found |= {f"formats/{name}/accuracy": value for name, value in line["accuracy"].items() if value is not None}
    return found | {name: line[name] for name in ("pass_at_1", "pass_at_k", "distinct_answers")}


def entropy(shares: Any) -> float:
    """−Σ p ln p in nats."""
    return -sum(share * math.log(share) for share in shares if share > 0)


def divergence(counts: Sequence[int], start: Sequence[float]) -> float:
    """KL in nats of the counted shares from the start's, half a completion added to each format in both."""
    total = sum(counts)
    own = [(count + 0.5) / (total + 0.5 * len(counts)) for count in counts]
    first = [(share * total + 0.5) / (total + 0.5 * len(counts)) for share in start]
    return sum(p * math.log(p / q) for p, q in zip(own, first, strict=True))


def final_answer(text: str) -> str:
    """The last number in a text, or else its last line: enough to tell whether two completions answer alike."""
    if numbers := regex.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")):
        return str(numbers[-1])
    return text.strip().rpartition("\n")[2]


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
