"""Arithmetic word problems, three formats of their solutions, a reader of answers, and a tokenizer for all of it.

    program   def solve(): …        does all steps in code: what it evaluates to is the answer (as TinyGSM)
    tagged    <code> … </code>      does the first step in the head, the second in code (as OpenMathInstruct1)
    prose     … The answer is 89.   does every step in the head (as OpenMathInstruct2)

The less a format leaves to code, the more arithmetic the model has to know, so a format's accuracy depends on the
model's scale. On top of it each format has a share of wrong solutions (`error_rate`), in which a step uses another
operator and all that follows is computed faithfully from it.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Mia", "Leo", "Zoe", "Sam", "Ida", "Jon", "Amy", "Kim", "Ron", "Sue")
THINGS = ("apples", "pears", "books", "coins", "cards", "pens", "cups", "shells", "keys", "stamps", "nuts", "balls")
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
}  # fmt: skip
WORDS = {"+": "plus", "-": "minus", "*": "times", "//": "divided by"}
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`text` has the fields name, thing, a, b, c; one step is a∘b, two are (a∘b)∘c."""

    text: str
    operators: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]


SMALL, LARGE = (2, 9), (11, 39)
KINDS = (
    Kind(text="{name} has {a} {thing} and buys {b} more. How many?",
         operators=("+",), ranges=(LARGE, LARGE)),
    Kind(text="{name} has {a} {thing} and gives away {b}. How many are left?",
         operators=("-",), ranges=(LARGE, SMALL)),
    Kind(text="{name} has {a} bags of {b} {thing}. How many?",
         operators=("*",), ranges=(SMALL, SMALL)),
    Kind(text="{name} has {a} bags of {b} {thing} and buys {c} more. How many?",
         operators=("*", "+"), ranges=(SMALL, SMALL, LARGE)),
    Kind(text="{name} has {a} bags of {b} {thing} and gives away {c}. How many are left?",
         operators=("*", "-"), ranges=(SMALL, SMALL, SMALL)),
    Kind(text="{name} has {a} {thing}, buys {b} and gives away {c}. How many are left?",
         operators=("+", "-"), ranges=(LARGE, LARGE, SMALL)),
    Kind(text="{name} puts {a} and {b} {thing} into each of {c} bags. How many?",
         operators=("+", "*"), ranges=(SMALL, SMALL, SMALL)),
    Kind(text="{name} shares {a} {thing} among {b} friends. How many for each?",
         operators=("//",), ranges=(LARGE, SMALL)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`prompt` ends in a line break; `numbers` are a, b and, if there are two steps, c."""

    prompt: str
    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def answer(self) -> int:
        return results(self.numbers, self.operators)[-1]


def results(numbers: tuple[int, ...], operators: tuple[str, ...]) -> list[int]:
    """What each step comes to."""
    found = [numbers[0]]
    for symbol, number in zip(operators, numbers[1:], strict=True):
        found.append(OPERATORS[symbol](found[-1], number))
    return found[1:]


def write_program(numbers: tuple[int, ...], operators: tuple[str, ...]) -> str:
    lines = [f"a = {numbers[0]}"]
    if len(operators) == 2:
        lines.append(f"b = a {operators[0]} {numbers[1]}")
    lines.append(f"return {'ab'[len(operators) - 1]} {operators[-1]} {numbers[-1]}")
    return "\n ".join(["def solve():", *lines])


def write_tagged(numbers: tuple[int, ...], operators: tuple[str, ...]) -> str:
    first = results(numbers, operators)[0]
    rest = f" {operators[1]} {numbers[2]}" if len(operators) == 2 else ""
    return f"<code>\n n = {first}\n print( n{rest} )\n</code>"


def write_prose(numbers: tuple[int, ...], operators: tuple[str, ...]) -> str:
    value, parts = numbers[0], []
    for symbol, number in zip(operators, numbers[1:], strict=True):
        result = OPERATORS[symbol](value, number)
        parts.append(f"{value} {WORDS[symbol]} {number} is {result}.")
        value = result
    return f"First {' '.join(parts)} The answer is {value}."


WRITERS = {"program": write_program, "tagged": write_tagged, "prose": write_prose}
FORMATS = tuple(WRITERS)


def solution(problem: Problem, form: str, error_rate: float, draw: random.Random) -> str:
    """A solution in format `form`, wrong with probability `error_rate`: another operator in one of the steps."""
    operators = problem.operators
    if draw.random() < error_rate:
        steps = range(len(operators))
        others = [(*operators[:step], other, *operators[step + 1 :]) for step in steps for other in OPERATORS]
        found = [(those, results(problem.numbers, those)) for those in others]
        operators = draw.choice([those for those, of in found if of[-1] != problem.answer and min(of) >= 0])
    return WRITERS[form](problem.numbers, operators)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """Distinct problems without end; which split a problem belongs to depends on its text alone."""
    draw, seen = random.Random(f"{split} {seed}"), set()
    while True:
        kind = draw.choice(KINDS)
        numbers = tuple(draw.randint(*bounds) for bounds in kind.ranges)
        if kind.operators == ("//",):
            numbers = (numbers[0] - numbers[0] % numbers[1], numbers[1])
        if min(results(numbers, kind.operators)) < 1:
            continue
        fields = dict(zip("abc", numbers, strict=False))
        prompt = kind.text.format(name=draw.choice(NAMES), thing=draw.choice(THINGS), **fields) + "\n"
        held_out = hashlib.sha256(prompt.encode()).digest()[0] < 26  # a tenth
        if held_out == (split == "test") and prompt not in seen:
            seen.add(prompt)
            yield Problem(prompt=prompt, numbers=numbers, operators=kind.operators)


def format_of(completion: str) -> str:
    """As the paper attributes: the tag, else the function, else natural language."""
    if "<code>" in completion:
        return "tagged"
    return "program" if "def" in completion else "prose"


def read_answer(completion: str) -> int | None:
    """The answer of a completion in whichever format it has; None where there is none."""
    form = format_of(completion)
    if form == "prose":
        found = re.fullmatch(r".*The answer is (\d+)\.", completion, re.DOTALL)
        return int(found[1]) if found else None
    if form == "tagged":
        found = re.fullmatch(r"<code>\n(.*)\n</code>", completion, re.DOTALL)
        return evaluate("def solve():\n" + found[1].replace("print(", "return (")) if found else None
    return evaluate(completion)


def evaluate(source: str) -> int | None:
    """What the one function in `source` returns; None for all but assignments, + - * //, names, integers, return."""
    try:
        [function] = ast.parse(source).body
        if not isinstance(function, ast.FunctionDef):
            return None
        names: dict[str, int] = {}
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    names[name] = _value(value, names)
                case ast.Return(value=ast.expr() as value):
                    return _value(value, names)
                case _:
                    return None
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError):
        pass
    return None


def _value(node: ast.expr, names: dict[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() as sign, right=right):
            symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}[type(sign)]
            return OPERATORS[symbol](_value(left, names), _value(right, names))
    raise ValueError("not arithmetic")


PIECES = r"def solve\(\):|</?code>|//|\n| ?[A-Za-z]+\(?| ?\d| ?[^\sA-Za-z\d]"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words with the space before them, single digits, signs; <bos> before every prompt. Texts come back unchanged."""
    draw, stream, pieces = random.Random(0), problems("train", 0), set()
    pieces |= {f"{space}{digit}" for space in (" ", "") for digit in range(10)}
    for problem in (next(stream) for _ in range(3000)):
        for form in FORMATS:
            pieces |= {*re.findall(PIECES, problem.prompt), *re.findall(PIECES, solution(problem, form, 0.5, draw))}
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {piece: place for place, piece in enumerate([*special, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
