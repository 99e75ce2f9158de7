"""Verifiable rewards for reinforcement learning with TRL's trainers; no sample can end the run.

    from graftlm.reinforce.rewards import reward_function

    GRPOTrainer(..., reward_funcs=[reward_function("math-verify", log=Path("run/rewards.jsonl"))])

A sample on which a reward raises, hangs, dies or gives no finite number counts as 0 and is logged. Where we differ
from a plain reward function of TRL:

1. It runs in a process of its own (`reward_worker`), and is given what can be pickled: not `trainer_state`,
   `log_extra`, `log_metric` or `environments`.
2. None does not mean "leave this sample out" but counts as 0, like every value that is no number.
3. A function without `**columns` is given the columns it names, where TRL would fail.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.reinforce.built_in_rewards import REWARDS, scored_reward, specs
from graftlm.reinforce.reward_worker import Function, Reply, Worker, describe, rows
from graftlm.runs.console import say
from graftlm.runs.files import append_line, dump_json
from graftlm.runs.provenance import now

FAILURES = ("exception", "time-out", "not a number")
NOT_SENT = ("trainer_state", "log_extra", "log_metric", "environments")
NO_COLUMNS = ("prompts", "completions", "completion_ids", *NOT_SENT)

Select = Callable[[Mapping[str, Any]], dict[str, Any]]
"""From all arguments that TRL gives to those of the reward; InputError where a column is missing."""


class Reward:
    """A reward function for TRL's trainers (`reward_function` makes it).

    `failures` counts the samples of each kind of failure. The process starts with the first call and ends with
    `close()`, with this object, or with the program; a call after `close()` starts another.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Function],
        select: Select,
        *,
        batched: bool,
        seconds: float,
        log: Path | None,
    ) -> None:
        """`batched`: give the function all samples in one call, and one by one only where that fails."""
        self.__name__ = name
        self.failures = dict.fromkeys(FAILURES, 0)
        self._load, self._select, self._batched = load, select, batched
        self._seconds, self._log = seconds, log
        self._worker: Worker | None = None
        self._started = False

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One finite number for each completion. InputError: a column is missing, or the worker cannot load it."""
        selected = self._select({"prompts": prompts, "completions": completions, **columns})
        rewards = []
        for prompt, completion, (kind, value) in zip(
            prompts, completions, self._outcomes(selected, len(completions)), strict=True
        ):
            if kind in self.failures:
                self._record(kind, value, prompt, completion)
                value = 0.0
            rewards.append(value)
        return rewards

    def check(self, rows: Any) -> None:
        """InputError where the data (a Dataset) lacks a column that the reward reads."""
        first = rows[:1]
        columns = {name: value for name, value in first.items() if name not in ("prompt", "completion")}
        self._select({"prompts": first["prompt"], "completions": [""], "completion_ids": [[]], **columns})

    def close(self) -> None:
        """End the process, with all that the reward started there."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _outcomes(self, columns: Mapping[str, Any], count: int) -> list[Reply]:
        """For each sample ("value", a float) or (kind of failure, message).

        All samples in one call have √count times the limit of one: between what one may take and what all may.
        """
        too_slow = ""
        if self._batched and count > 1:
            [reply] = self._replies(columns, count, size=count, seconds=self._seconds * count**0.5)
            if reply[0] == "values":
                return [outcome(value) for value in reply[1]]
            too_slow = reply[1] if reply[0] == "time-out" else ""
        replies = self._replies(columns, count, size=1, seconds=self._seconds)
        if too_slow and not any(kind == "time-out" for kind, _ in replies):  # no single sample was at fault
            self._batched = False
            say(f"reward {self.__name__}: {too_slow} for {count} samples in one call; from now on one by one")
        return [outcome(reply[1][0]) if reply[0] == "values" else reply for reply in replies]

    def _replies(self, columns: Mapping[str, Any], count: int, *, size: int, seconds: float) -> list[Reply]:
        """One reply for each `size` samples, `seconds` for each; after a hang or a death in a new process."""
        received: list[Reply] = []
        try:
            while (start := len(received) * size) < count:
                if self._worker is None or not self._worker.alive:
                    self.close()
                    try:
                        self._worker = Worker(self._load)
                    except (InputError, RuntimeError) as error:
                        if not self._started:
                            raise
                        left = -(-(count - start) // size)
                        return [*received, *[("exception", f"it does not start again: {error}")] * left]
                    self._started = True
                self._worker.send(rows(columns, count, start, count), count - start, size)
                while len(received) * size < count:
                    received.append(self._worker.receive(seconds))
                    if not self._worker.stop.alive:
                        break
        except BaseException:  # Ctrl-C: the replies still to come must not be taken for the next batch's
            self.close()
            raise
        return received

    def _record(self, kind: str, message: str, prompt: Any, completion: Any) -> None:
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            where = f"; all are in {self._log}" if self._log else ""
            say(f"reward {self.__name__}: first {kind}: {message}; such samples count as 0{where}")
        if self._log is not None:
            sample = {"prompt": loggable(prompt), "completion": loggable(completion)}
            self._log.parent.mkdir(parents=True, exist_ok=True)
            line = {"time": now(), "reward": self.__name__, "kind": kind, "message": message, **sample}
            append_line(self._log, dump_json(line))


def outcome(value: float | str) -> Reply:
    return ("not a number", f"the value is {value}") if isinstance(value, str) else ("value", value)


def loggable(value: Any) -> Any:
    """`value`, or its text where it has no JSON form (an image)."""
    try:
        dump_json(value)
    except TypeError:
        return repr(value)
    return value


def reward_function(spec: str | Function, *, seconds: float = 5.0, log: Path | None = None) -> Reward:
    """The reward that `spec` names.

    - a name that the decorator `reward` gave, with its argument after a colon where it takes one: the built-in ones are
      in graftlm/reinforce/built_in_rewards.py;
    - `module:function`: your own, decorated or with the signature of TRL; the working folder is importable. Async ones
      too;
    - a callable that can be pickled, as those of a module can.

    Args:
        seconds: how long one sample may take. A function with TRL's signature gets all n samples in one call, which may
            take √n times that; where it takes longer though no single one does, it gets them one by one from then on.
        log: a JSON-lines file that each sample that failed is added to.

    Raises:
        InputError: no such reward, module, function or data set; a package is not installed; a malformed pattern.
    """
    if not seconds > 0:
        raise InputError(f"the time limit of a reward is {seconds:g} s: give a positive number")
    if not isinstance(spec, str):
        return _reward(name_of(spec), partial(pickle.loads, pickled(spec)), "", seconds, log)
    name, colon, argument = spec.partition(":")
    if name in REWARDS and bool(colon) == (REWARDS[name].argument is not None):
        function = REWARDS[name].function
        load = partial(import_function, function.__module__, function.__qualname__, os.getcwd())
        return _reward(spec, load, argument, seconds, log)
    if all(part.isidentifier() for part in [*name.split("."), *argument.split(".")]):
        return _reward(spec, partial(import_function, name, argument, os.getcwd()), "", seconds, log)
    if name in REWARDS:
        raise InputError(f"reward {spec!r} lacks the argument after the colon: {REWARDS[name].spec}")
    raise InputError(f"no reward {spec!r}: {nearest_reward(name)}")


def _reward(spec: str, load: Callable[[], Function], argument: str, seconds: float, log: Path | None) -> Reward:
    """The reward of the function that `load` gives; loaded here too, so that mistakes show before the training."""
    with importable(os.getcwd()):
        function = load()
    scored = scored_reward(function)
    if scored is None:
        select = partial(function_columns, spec, signature_of(spec, function))
        return Reward(name_of(function), load, select, batched=True, seconds=seconds, log=log)
    if scored.argument and not argument:
        raise InputError(f"reward {spec!r} lacks the argument after the colon: {scored.spec}")
    scored.score(argument, seconds)
    name = argument if scored.argument == "NAME" else scored.name
    load = partial(load_scored, load, argument, seconds)
    return Reward(name, load, partial(scored_columns, spec, scored.columns), batched=False, seconds=seconds, log=log)


def load_scored(load: Callable[[], Function], argument: str, seconds: float) -> Function:
    scored = scored_reward(load())
    assert scored is not None
    return scored.for_trl(argument, seconds)


def signature_of(spec: str, function: Function) -> inspect.Signature:
    """InputError for an object that TRL's trainers could not call as a reward in another process."""
    if not callable(function):
        raise InputError(f"reward {spec!r} is a {type(function).__name__}, not a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions in C
        raise InputError(f"reward {spec!r} does not tell its parameters: wrap it in a function of your own") from None
    for name in NOT_SENT:
        if name in signature.parameters and signature.parameters[name].default is inspect.Parameter.empty:
            raise InputError(f"reward {spec!r} takes {name!r}, which its own process cannot have: give it a default")
    return signature


def import_function(module: str, function: str, folder: str) -> Function:
    """`function` (dots for attributes) of `module`, looked for in `folder` first; InputError if there is none."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = f"{module}:{function}"
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        hint = f"; {nearest_reward(module)}" if isinstance(error, ModuleNotFoundError) else ""
        reason = describe(error) if not isinstance(error, ImportError) else " ".join(str(error).split())
        raise InputError(f"reward {spec!r}: cannot import {module!r} from {folder}: {reason}{hint}") from error
    try:
        return attrgetter(function)(imported)
    except AttributeError:
        nearest = get_close_matches(function, dir(imported), n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else nearest_reward(module)
        raise InputError(f"reward {spec!r}: module {module!r} has no {function!r}; {hint}") from None


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """`folder` first on the path within; the trainer's own imports stay as they were."""
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before


def pickled(function: Function) -> bytes:
    try:
        return pickle.dumps(function)
    except Exception:
        advice = "define it at the top of a module that can be imported"
        raise InputError(f"reward {name_of(function)!r} cannot be sent to its process: {advice}") from None


def name_of(function: Function) -> str:
    """As TRL names it."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def scored_columns(spec: str, wanted: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The completions and the first of the `wanted` columns; InputError if there is none of them."""
    first = [name for name in wanted if name in given][:1]
    if wanted and not first:
        raise missing_column(spec, " or ".join(map(repr, wanted)), given)
    return {name: given[name] for name in ("completions", *first)}


def function_columns(spec: str, signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function takes and that can be pickled; InputError if one without a default is missing."""
    parameters = signature.parameters.values()
    by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in by_keyword:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise missing_column(spec, repr(parameter.name), given)
    taken = set(given) if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in by_keyword}
    return {name: given[name] for name in given if name in taken - set(NOT_SENT) and can_be_pickled(given[name])}


def missing_column(spec: str, column: str, given: Mapping[str, Any]) -> InputError:
    columns = ", ".join(name for name in given if name not in NO_COLUMNS) or "none besides the prompt"
    return InputError(f"reward {spec!r} needs the column {column}; the rows have {columns}")


def can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # objects raise what they like
        return False
    return True


def nearest_reward(name: str) -> str:
    nearest = get_close_matches(name.replace("_", "-"), REWARDS, n=1)
    if nearest:
        return f"did you mean {REWARDS[nearest[0]].spec!r}?"
    return f"choose one of {', '.join(specs())}, or module:function"
