"""The built-in rewards, and the decorator that makes a function one:

    @reward("short", "1 where the completion has at most 20 words")
    def is_short(completion: str) -> float:
        return float(len(completion.split()) <= 20)

Nothing that a model wrote is executed: math-verify gives SymPy's `parse_expr` (an `eval`) plain arithmetic only, and
graftlm/tasks/reasoning_answers.py holds reasoning-gym back. Packages are imported when a reward first needs them, so
that its process holds no others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar

from graftlm.errors import InputError
from graftlm.reinforce.completions import last_text

Score = Callable[..., float]
"""From the text of a completion and, for a reward that needs a column, the row's value there, to a number."""
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

NUMBER = re.compile(
    r"""(?<![^\W_])                                     # not within a word or a number
    (?P<sign>(?<![)\]])[-+−])?[$€£]?
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
    (?P<exponent>e[-+]?\d+)?
    (?:/(?P<denominator>\d+(?:\.\d+)?))?""",
    re.VERBOSE | re.IGNORECASE,
)
LATEX_MARKS = ("$", r"\boxed", r"\(", r"\[")
SHARE_FOR_REGEX = 0.8  # of the time limit, so that `regex` gives up by itself and the worker lives on


@dataclass(frozen=True)
class ScoredReward:
    """A reward that scores completions one by one; see `reward` for the fields."""

    spec: str
    help: str
    function: Callable[..., Any]
    columns: tuple[str, ...] = ()
    module: str | None = None
    install: str | None = None

    @property
    def name(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def argument(self) -> str | None:
        """The word that stands for the argument, None where the reward takes none."""
        return self.spec.partition(":")[2] or None

    def score(self, argument: str, seconds: float) -> Score:
        """The function that scores one completion.

        Raises InputError where a package is missing, or for an argument that the reward cannot use.
        """
        if self.module:
            try:
                import_module(self.module)
            except ImportError as error:
                needed = f"{self.module.partition('.')[0]} ({' '.join(str(error).split())})"
                raise InputError(f"reward {self.name!r} needs {needed}: pip install '{self.install}'") from None
        score: Score = self.function(argument, seconds) if self.argument else self.function
        return score

    def for_trl(self, argument: str, seconds: float) -> Callable[..., list[float]]:
        """A function of the lists `completions` and, where it needs one, its column."""
        score = self.score(argument, seconds)

        def function(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
            rows = zip(completions, *columns.values(), strict=True)
            return [score(last_text(completion), *values) for completion, *values in rows]

        return function


REWARDS: dict[str, ScoredReward] = {}
"""By name, without the argument."""


def reward(
    spec: str, help: str, *, columns: Sequence[str] = (), module: str | None = None, install: str | None = None
) -> Callable[[Decorated], Decorated]:
    """Make a function of the completion's text a reward.

    Args:
        spec: the name that `--reward` and `reward_function` know it by. With an argument, as in "regex:PATTERN", the
            function takes the argument and the time limit in seconds instead, and returns the one that scores.
        help: what the score is.
        columns: the row's value in the first of these that the data has is the function's second argument.
        module, install: a package that it needs, and what `pip install` gets it with.

    Raises:
        InputError: another function has that name.
    """

    def register(function: Decorated) -> Decorated:
        made = ScoredReward(spec, help, function, tuple(columns), module, install)
        before = REWARDS.setdefault(made.name, made).function
        if (before.__module__, before.__qualname__) != (function.__module__, function.__qualname__):
            raise InputError(f"there is a reward {made.name!r} already: {before.__module__}.{before.__qualname__}")
        REWARDS[made.name] = made
        return function

    return register


def scored_reward(function: Callable[..., Any]) -> ScoredReward | None:
    """The reward that `reward` made of the function, None where it did not."""
    return next((each for each in REWARDS.values() if each.function is function), None)


def specs() -> list[str]:
    """The rewards as they are written, in the order of the alphabet."""
    return [REWARDS[name].spec for name in sorted(REWARDS)]


@reward("answer", "1 where the completion's last number equals that of the answer", columns=("answer",))
def equal_last_number(completion: str, answer: Any) -> float:
    """ValueError if the answer holds no number."""
    expected = last_number(str(answer))
    if expected is None:
        raise ValueError(f"the row's answer {str(answer)[:100]!r} holds no number")
    return float(last_number(completion) == expected)


def last_number(text: str) -> Decimal | None:
    """With its sign, thousands commas, decimals, exponent and denominator; None if there is none."""
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    sign = (last["sign"] or "").replace("−", "-")
    try:
        value = Decimal(sign + last["digits"].replace(",", "") + (last["exponent"] or ""))
        return value / Decimal(last["denominator"]) if last["denominator"] else value
    except ArithmeticError:  # divided by zero, or an exponent beyond all bounds
        return None


@reward(
    "math-verify",
    "1 where math-verify finds the completion's answer equal to the row's",
    columns=("answer",),
    module="math_verify",
    install="graftlm[math]",
)
def equal_mathematics(completion: str, answer: Any) -> float:
    from math_verify import parse, verify

    expected = parsed_answer(str(answer))
    return float(verify(expected, parse(completion, parsing_timeout=None), timeout_seconds=None))


@lru_cache(maxsize=1024)
def parsed_answer(answer: str) -> list[Any]:
    """LaTeX or plain, with or without `$` or `\\boxed`; ValueError if it cannot be read."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    marked = any(mark in answer for mark in LATEX_MARKS)
    parsed: list[Any] = parse(answer if marked else rf"\boxed{{{answer}}}", parsing_timeout=None)
    if not parsed:
        raise ValueError(f"math-verify cannot read the row's answer {answer[:100]!r}")
    return parsed


@reward(
    "molecule-formula",
    "1 where the completion's first word is a SMILES of that formula in Hill order (C2H6O)",
    columns=("formula", "answer"),
    module="rdkit",
    install="graftlm[molecules]",
)
def has_formula(completion: str, formula: Any) -> float:
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    words = completion.split(maxsplit=1)
    # No word is an empty molecule to RDKit; several molecules could be put together to any formula.
    if not words or "." in words[0]:
        return 0.0
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(words[0])
        return float(molecule is not None and CalcMolFormula(molecule) == str(formula).strip())


@reward(
    "reasoning-gym:NAME",
    "the data set's own score of the last `<answer>...</answer>`, or of the whole completion",
    columns=("entry",),
    module="reasoning_gym.factory",
    install="graftlm[reasoning]",
)
def reasoning_gym(name: str, seconds: float) -> Score:
    from graftlm.tasks.reasoning_answers import reasoning_gym_score

    return reasoning_gym_score(name)


@reward("regex:PATTERN", "1 where the pattern is found in the completion")
def pattern_found(pattern: str, seconds: float) -> Score:
    """TimeoutError from the score where the search takes too long."""
    from graftlm.data.patterns import Pattern

    compiled = Pattern("reward regex", pattern, SHARE_FOR_REGEX * seconds)
    return lambda completion: float(compiled.found_in(completion))
