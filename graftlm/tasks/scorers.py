"""The built-in rewards, each from one completion's text and its row to a number.

What the model wrote is read, never executed. Two of the libraries do evaluate it, and are held back here:

1. math-verify gives SymPy's `parse_expr` (an `eval`) plain arithmetic only: digits, operators and brackets;
2. nine datasets of reasoning-gym call `eval` or `parse_expr` on an answer that is not the expected one to the letter:
   it reaches them only if it is a literal or elementary mathematics, else it counts as no answer
   (`harmless_literal`, `harmless_formula`).

The packages are imported when a reward is made, so that the worker holds only what it needs.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from graftlm.errors import InputError

Score = Callable[..., float]
"""Called with the text of a completion and, for a reward that needs a column, the row's value there."""

NUMBER = re.compile(
    r"""(?<![^\W_])                                     # not within a word or a number
    (?P<sign>(?<![)\]])[-+−])?[$€£]?
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
    (?P<exponent>e[-+]?\d+)?
    (?:/(?P<denominator>\d+(?:\.\d+)?))?""",
    re.VERBOSE | re.IGNORECASE,
)
FORMULA = re.compile(
    r"""(?:\d+\.?\d*|\.\d+|[\s+\-*/^(),]                # no strings, attributes, keywords, indices or factorials
    |(?<![a-z])(?:a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|abs|pi|[a-z])(?![a-z]))*""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
HUGE_POWER = re.compile(r"\*\*(?!\(?-?\d{1,2}\)?(?!\d|\.|\*\*))")
LITERAL_NODES = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Load, ast.UnaryOp, ast.USub)
LATEX_MARKS = ("$", r"\boxed", r"\(", r"\[")
SHARE_FOR_REGEX = 0.8  # of the time limit, so that `regex` gives up by itself and the worker lives on


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A reward that is scored sample by sample.

    `make` takes the text behind the colon of the spec and the time limit in seconds. `columns`: the first of these
    that the rows have is given to the score. `argument`: what the text behind the colon is, None if there is none.
    `package` is the package needed besides graftlm, `install` what gets it.
    """

    make: Callable[[str, float], Score]
    columns: tuple[str, ...] = ()
    argument: str | None = None
    package: str | None = None
    install: str | None = None


def equal_last_number(completion: str, answer: Any) -> float:
    """1 where the last numbers of both are equal, 0 else; ValueError if the answer holds none."""
    expected = last_number(str(answer))
    if expected is None:
        raise ValueError(f"the row's answer {str(answer)[:100]!r} holds no number")
    return float(last_number(completion) == expected)


def last_number(text: str) -> Decimal | None:
    """With its sign, thousands commas, decimals, exponent and denominator; None if there is none."""
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    found = numbers[-1]
    sign = (found["sign"] or "").replace("−", "-")
    try:
        value = Decimal(sign + found["digits"].replace(",", "") + (found["exponent"] or ""))
        return value / Decimal(found["denominator"]) if found["denominator"] else value
    except ArithmeticError:  # divided by zero, or an exponent beyond all bounds
        return None


def math_verify_score() -> Score:
    """The row's answer may be LaTeX or plain, with or without `$` or `\\boxed`; ValueError if it cannot be read."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off

    @lru_cache(maxsize=1024)
    def parsed_answer(answer: str) -> list[Any]:
        marked = any(mark in answer for mark in LATEX_MARKS)
        parsed = parse(answer if marked else rf"\boxed{{{answer}}}", parsing_timeout=None)
        if not parsed:
            raise ValueError(f"math-verify cannot read the row's answer {answer[:100]!r}")
        return parsed

    def score(completion: str, answer: Any) -> float:
        found = parse(completion, parsing_timeout=None)
        return float(verify(parsed_answer(str(answer)), found, timeout_seconds=None))

    return score


def regex_score(pattern: str, seconds: float) -> Score:
    """TimeoutError from the score where the search takes too long; InputError for a malformed pattern."""
    from graftlm.data.patterns import Pattern

    compiled = Pattern("reward regex", pattern, SHARE_FOR_REGEX * seconds)

    def score(completion: str) -> float:
        return float(compiled.found_in(completion))

    return score


def molecule_formula_score() -> Score:
    """The first word of the completion, as SMILES, against a formula in Hill order (C2H6O)."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    def score(completion: str, formula: Any) -> float:
        words = completion.split(maxsplit=1)
        # No word is an empty molecule to RDKit; several molecules could be put together to any formula.
        if not words or "." in words[0]:
            return 0.0
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(words[0])
            return float(molecule is not None and CalcMolFormula(molecule) == str(formula).strip())

    return score


def reasoning_gym_score(name: str) -> Score:
    """The dataset's own score, between 0 and 1; InputError for an unknown dataset."""
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if name not in DATASETS:
        nearest = get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "reasoning_gym.factory.DATASETS lists them"
        raise InputError(f"reward 'reasoning-gym:{name}': no such dataset; {hint}")
    score_answer = get_score_answer_fn(name)
    is_harmless = EVALUATING_DATASETS.get(name)

    def score(completion: str, entry: Any) -> float:
        parsed = entry if isinstance(entry, Mapping) else json.loads(entry)
        answer = tagged_answer(completion)
        harmless = is_harmless is None or answer == parsed.get("answer") or is_harmless(answer)
        return score_answer(answer if harmless else None, parsed)

    return score


def tagged_answer(completion: str) -> str:
    """What stands in the last `<answer>...</answer>`, without one the whole; stripped."""
    before, closing, _ = completion.rpartition("</answer>")
    _, opening, answer = before.rpartition("<answer>")
    return (answer if opening and closing else completion).strip()


def harmless_literal(text: str) -> bool:
    """Whether `eval` of a stripped `text` gives a number, text or list of them, or fails for its syntax.

    A name is no literal: `oracle_answer` is one that the datasets' own frames know."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return True
    except Exception:  # null bytes, or nested too deep
        return False
    return all(isinstance(node, LITERAL_NODES) for node in ast.walk(tree))


def harmless_formula(text: str) -> bool:
    """Whether it is made of numbers, operators, brackets, letters and elementary functions alone, and its powers have
    exponents of at most two digits: 9**9**9 would take all time and memory."""
    powers = "".join(text.split()).replace("^", "**")
    return FORMULA.fullmatch(text) is not None and not HUGE_POWER.search(powers) and powers.count(")**") < 2


EVALUATING_DATASETS: dict[str, Callable[[str], bool]] = {
    "binary_matrix": harmless_literal,
    "n_queens": harmless_literal,
    "spiral_matrix": harmless_literal,
    "string_insertion": harmless_literal,
    "countdown": harmless_formula,
    "intermediate_integration": harmless_formula,
    "polynomial_multiplication": harmless_formula,
    "puzzle24": harmless_formula,
    "simple_integration": harmless_formula,
}
"""The datasets of reasoning-gym 0.1.25 that evaluate the answer, and what may reach them."""

BUILT_INS: dict[str, BuiltIn] = {
    "answer": BuiltIn(make=lambda _, seconds: equal_last_number, columns=("answer",)),
    "math-verify": BuiltIn(
        make=lambda _, seconds: math_verify_score(),
        columns=("answer",),
        package="math-verify",
        install="graftlm[math]",
    ),
    "molecule-formula": BuiltIn(
        make=lambda _, seconds: molecule_formula_score(),
        columns=("formula", "answer"),
        package="RDKit",
        install="graftlm[molecules]",
    ),
    "reasoning-gym": BuiltIn(
        make=lambda name, seconds: reasoning_gym_score(name),
        columns=("entry",),
        argument="NAME",
        package="reasoning-gym",
        install="graftlm[reasoning]",
    ),
    "regex": BuiltIn(make=regex_score, argument="PATTERN", package="regex", install="regex"),
}


def built_in_function(name: str, argument: str, seconds: float) -> Callable[..., list[float]]:
    """The built-in reward as a function of the lists `completions` and, where it needs one, its column."""
    score = BUILT_INS[name].make(argument, seconds)

    def function(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        rows = zip(completions, *columns.values(), strict=True)
        return [score(text_of(completion), *values) for completion, *values in rows]

    return function


def text_of(completion: Any) -> str:
    """The completion itself, or the text of its last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, list):  # parts: text, images
        return "".join(part.get("text") or "" for part in content)
    return content or ""
