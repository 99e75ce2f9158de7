"""The score that reasoning-gym gives an answer.

Nine of its data sets call `eval` or SymPy's `parse_expr` on an answer that is not the expected one to the letter. Here
it reaches them only if it is a literal or elementary mathematics, else it counts as no answer: nothing that a model
wrote is executed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from graftlm.errors import InputError

FORMULA = re.compile(
    r"""(?:\d+\.?\d*|\.\d+|[\s+\-*/^(),]                # no strings, attributes, keywords, indices or factorials
    |(?<![a-z])(?:a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|abs|pi|[a-z])(?![a-z]))*""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
HUGE_POWER = re.compile(r"\*\*(?!\(?-?\d{1,2}\)?(?!\d|\.|\*\*))")
LITERAL_NODES = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Load, ast.UnaryOp, ast.USub)


def reasoning_gym_score(name: str) -> Callable[[str, Any], float]:
    """The data set's own score, 0 to 1, of an output and the problem's entry (or its JSON).

    Raises InputError for an unknown data set.
    """
    from reasoning_gym.factory import get_score_answer_fn

    check_data_set(name)
    score_answer = get_score_answer_fn(name)
    is_harmless = EVALUATING_DATASETS.get(name)

    def score(completion: str, entry: Any) -> float:
        parsed = entry if isinstance(entry, Mapping) else json.loads(entry)
        answer = tagged_answer(completion)
        harmless = is_harmless is None or answer == parsed.get("answer") or is_harmless(answer)
        return score_answer(answer if harmless else None, parsed)

    return score


def check_data_set(name: str) -> None:
    """InputError where reasoning-gym has no data set of that name."""
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        nearest = get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "reasoning_gym.factory.DATASETS lists them"
        raise InputError(f"reasoning-gym has no data set {name!r}; {hint}")


def tagged_answer(completion: str) -> str:
    """The text in the last `<answer>...</answer>`, or else the whole; stripped."""
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
"""The data sets of reasoning-gym 0.1.25 that evaluate the answer, and the rule for what may reach them."""
