"""Rows of any form -> question, chain and answer; and back to a row for `graftlm tune`, with a shorter chain.

Columns chain and answer count as they are, beside question, prompt or messages. Otherwise the answer (GSM8K's own form)
or the completion, of a conversation the last one, is cut where the final answer starts: at the last match of the first
of ANSWER_STARTS that matches, with the white space before it. Texts of separate columns are put together with a line
break where there is no white space between them; a question by itself becomes a user's message where the tokenizer has
a chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftlm.data.forms import canonical_rows, describe, text
from graftlm.data.patterns import row_spans
from graftlm.errors import InputError
from graftlm.pruning.config import THINK_TAGS
from graftlm.pruning.encoding import Question

ANSWER_STARTS = (r"</think>", r"####", r"(?i:\**(?:the )?(?:final )?answer\**(?: is\b|:))", r"\$*\\boxed\b")

ANSWER_START = re.compile("|".join(ANSWER_STARTS))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A question, and the reasoning and the answer that follow it, space between them included.

    The question is text or messages, as in `prune_chain`.
    """

    question: Question
    chain: str
    answer: str

    def row(self, chain: str, mark: str = "") -> dict[str, Any]:
        """`prompt` and `completion` with this chain instead; `mark` ends the prompt, or its last message.

        White space that the chain begins with, but did not before, is left out.
        """
        completion = (chain if self.chain[:1].isspace() else chain.lstrip()) + self.answer
        if isinstance(self.question, str):
            return {"prompt": self.question + mark, "completion": completion}
        *before, last = [dict(message) for message in self.question]
        last["content"] += mark
        return {"prompt": [*before, last], "completion": [{"role": "assistant", "content": completion}]}


def solution_of(row: Mapping[str, Any], place: str, *, answer_start: str | None = None, chat: bool = False) -> Solution:
    """The solution in a row; `place` names it in errors.

    `answer_start`: a regular expression instead of ANSWER_STARTS. `chat`: whether the tokenizer has a template.

    InputError for missing columns, or a completion without answer or chain.
    """
    if row.get("chain") is not None and row.get("answer") is not None:
        chain = text(row, "chain", place)
        question = _question(row, place, chain, chat)
        answer = _answer_text(row["answer"], place)
        return _checked(question, chain, _space(chain, answer) + answer, place)
    if "question" in row and "answer" in row and row.get("completion") is None and row.get("messages") is None:
        whole = text(row, "answer", place)
        question = _question(row, place, whole, chat)
    else:
        converted = list(canonical_rows([(place, {name: value for name, value in row.items() if value is not None})]))
        if not converted or "completion" not in converted[-1]:
            raise InputError(f"{place} is text without a question; pruning needs a question and a completion")
        question, whole = converted[-1]["prompt"], converted[-1]["completion"]
        if not isinstance(whole, str):
            question, whole = [*question, *whole[:-1]], whole[-1]["content"]
    start = find_answer(whole, answer_start)
    if start is None:
        raise InputError(
            f"{place}: no answer is found in the completion; say where it starts with --answer-start REGEX"
        )
    return _checked(question, whole[:start], whole[start:], place)


def find_answer(whole: str, answer_start: str | None = None) -> int | None:
    """Where the final answer starts, with the white space before it; None where there is none.

    InputError for a pattern that is malformed or takes too long.
    """
    for pattern in ANSWER_STARTS if answer_start is None else (answer_start,):
        if spans := row_spans("--answer-start", pattern, whole):
            return len(whole[: spans[-1][0]].rstrip())
    return None


def bare_answer(answer: str) -> str:
    """An answer without the words and signs that lead to it: "5" of "#### 5" and of "The answer is 5."."""
    while match := ANSWER_START.match(answer := answer.strip(" \t\r\n*:")):
        answer = answer[match.end() :]
    return answer.strip(" \t\r\n*$.{}")


def _question(row: Mapping[str, Any], place: str, following: str, chat: bool) -> Question:
    for name in ("messages", "prompt"):
        asked = row.get(name)
        if isinstance(asked, str):
            return asked + _space(asked, following)
        if asked is not None:
            conversation = {"prompt": asked, "completion": [{"role": "assistant", "content": following}]}
            messages = next(canonical_rows([(place, conversation)]))["prompt"]
            while messages and messages[-1]["role"] == "assistant":  # the solution itself, which is in other columns
                messages = messages[:-1]
            if not messages:
                raise InputError(f"{place}: column {name!r} asks nothing; remove the row or fill it")
            return messages
    question = text(row, "question", place)
    return [{"role": "user", "content": question}] if chat else question + _space(question, following)


def _checked(question: Question, chain: str, answer: str, place: str) -> Solution:
    asked = question if isinstance(question, str) else question[-1]["content"]
    for name, value in (("question", asked), ("chain", re.sub(THINK_TAGS, "", chain)), ("answer", answer)):
        if not value.strip():
            raise InputError(f"{place}: the {name} is empty; remove the row or fill it")
    return Solution(question=question, chain=chain, answer=answer)


def _answer_text(answer: Any, place: str) -> str:
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # as a table makes of a whole number beside a missing one
    if not isinstance(answer, (str, int, float)):
        raise InputError(f"{place}: column 'answer' is {describe(answer)}, but text or a number is expected")
    return str(answer)


def _space(before: str, after: str) -> str:
    return "" if before[-1:].isspace() or after[:1].isspace() else "\n"
