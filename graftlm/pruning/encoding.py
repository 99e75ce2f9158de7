"""A chain as tokens that lose none of its text.

    ids = [question][chain][answer]

The tokens are those of the whole text where the tokenizer puts a boundary between the three, else of each by itself.
What looks like a special token in the chain or the answer ("<|im_end|>") is text. Every character of the chain belongs
to a token: what a tokenizer leaves out of its offsets (the space before a word) belongs to the token after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from graftlm.data.encoding import encode_prompt, encode_with_offsets, render_messages
from graftlm.data.patterns import row_spans
from graftlm.errors import InputError, check_whole
from graftlm.pruning.config import Granularity
from graftlm.runs.config import describe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Question = str | Sequence[Mapping[str, Any]]
"""A prompt, or the messages of a chat."""

NUMBER = r"\d+(?:[.,:/]\d+)*"


class ChainToken(NamedTuple):
    """`start`, `stop`: characters of the chain; `text`: those characters. Tokens that share one overlap."""

    id: int
    start: int
    stop: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Token ids of question and answer, and the chain's tokens, which cover its text from end to end."""

    question: list[int]
    chain: list[ChainToken]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        """Ids of the whole sequence."""
        return [*self.question, *(token.id for token in self.chain), *self.answer]

    def __len__(self) -> int:
        return len(self.question) + len(self.chain) + len(self.answer)


def encode_chain(tokenizer: PreTrainedTokenizerBase, question: Question, chain: str, answer: str) -> Encoding:
    """Tokens of the three texts, joined as they are: whatever space is between them is the caller's.

    Of a `question` that is text, special tokens are read as such, as in any prompt; messages get the tokenizer's own
    chat template with its generation prompt.

    InputError for an empty text, a tokenizer without offsets, or one that does not give chain and answer back.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} has no character offsets: pruning needs a fast tokenizer")
    for name, text in (("chain", chain), ("answer", answer)):
        if not text:
            raise InputError(f"the {name} is empty: give at least one token")
    check_whole(chain + answer + str(question), "the text")
    prompt, prompt_ids, options = _encode_question(tokenizer, question)
    joint = _joint(tokenizer, prompt, prompt_ids, chain, answer, options)
    name, text = "chain", chain
    for ids, offsets, answer_ids in filter(None, (joint, _apart(tokenizer, chain, answer))):
        if ids and _gives_back(tokenizer, prompt_ids, ids, chain):
            if answer_ids and _gives_back(tokenizer, prompt_ids + ids, answer_ids, answer):
                return Encoding(question=prompt_ids, chain=_covering(ids, offsets, chain), answer=answer_ids)
            name, text = "answer", answer
    raise InputError(
        f"{type(tokenizer).__name__} does not give the {name} {describe(text)} back: it changes or drops some of it"
    )


def units_of(chain: Sequence[ChainToken], granularity: Granularity) -> list[list[int]]:
    """Positions of the tokens that are deleted together."""
    return word_units(chain) if granularity == "word" else [[place] for place in range(len(chain))]


def word_units(chain: Sequence[ChainToken]) -> list[list[int]]:
    """Positions of the tokens of each word, with the space before it; a token of two words counts with the first."""
    units: list[list[int]] = []
    worded = ended = False  # whether the unit has more than space, and ends with space
    for place, token in enumerate(chain):
        if not units or (worded and (ended or token.text[:1].isspace())):
            units.append([])
            worded = False
        units[-1].append(place)
        if token.text:
            worded, ended = worded or not token.text.isspace(), token.text[-1].isspace()
    if len(units) > 1 and not worded:
        units[-2:] = [units[-2] + units[-1]]
    return units


def protected_tokens(chain: Sequence[ChainToken], text: str, answer: str, protect: Sequence[str]) -> set[int]:
    """Positions of the tokens with a character of a match: "numbers", "answer", or regular expressions.

    InputError for an expression that is none, or takes too long.
    """
    from graftlm.pruning.solutions import bare_answer

    places = set()
    for each in protect:
        pattern = {"numbers": NUMBER, "answer": _standing_alone(bare_answer(answer))}.get(each, each)
        for start, stop in row_spans("protect", pattern, text):
            places |= {i for i, token in enumerate(chain) if token.start < stop and start < token.stop}
    return places


def _standing_alone(text: str) -> str:
    """A pattern of the text, but not within a longer word or number: no 5 of 15, 5.2 or 2,500."""
    return rf"(?<!\w)(?<!\d[.,]){re.escape(text)}(?!\w|[.,]\d)"


_Parts = tuple[list[int], list[tuple[int, int]], list[int]]
"""Ids and offsets of the chain, ids of the answer."""


def _encode_question(tokenizer: PreTrainedTokenizerBase, question: Question) -> tuple[str, list[int], dict[str, bool]]:
    """Text, ids and the tokenizer's options."""
    if isinstance(question, str):
        return question, encode_prompt(tokenizer, question), {}
    if not tokenizer.chat_template:
        raise InputError("the question is a list of messages, but the tokenizer has no chat template: give its text")
    prompt = render_messages(tokenizer, question)
    options = {"add_special_tokens": False}
    return prompt, list(tokenizer(prompt, **options)["input_ids"]), options


def _joint(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_ids: list[int], chain: str, answer: str, options: Any
) -> _Parts | None:
    """Tokens of the whole text; None where a token crosses a boundary, or is a special one outside the question."""
    ids, offsets = encode_with_offsets(tokenizer, prompt + chain + answer, **options)
    first = len(prompt_ids)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ids[:first] != prompt_ids or special.intersection(ids[first:]):
        return None
    begin, end = len(prompt), len(prompt) + len(chain)
    count = sum(stop <= end for _, stop in offsets[first:])
    chain_offsets, answer_offsets = offsets[first : first + count], offsets[first + count :]
    if any(start < begin for start, _ in chain_offsets) or any(start < end for start, _ in answer_offsets):
        return None
    shifted = [(start - begin, stop - begin) for start, stop in chain_offsets]
    return ids[first : first + count], shifted, ids[first + count :]


def _apart(tokenizer: PreTrainedTokenizerBase, chain: str, answer: str) -> _Parts:
    """Tokens of each text by itself."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    encoded = tokenizer(chain, return_offsets_mapping=True, **options)
    answer_ids = list(tokenizer(answer, **options)["input_ids"])
    return list(encoded["input_ids"]), list(encoded["offset_mapping"]), answer_ids


def _gives_back(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int], text: str) -> bool:
    """Whether decoding gives `text`, alone or after what stands before it: some decoders strip the first space."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    if tokenizer.decode(ids, **options) == text:
        return True
    return str(tokenizer.decode(before + ids, **options)).endswith(text)


def _covering(ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str) -> list[ChainToken]:
    """Tokens whose characters leave no gap."""
    spans = without_gaps(offsets)
    spans[-1] = (spans[-1][0], len(text))
    return [ChainToken(token, start, stop, text[start:stop]) for token, (start, stop) in zip(ids, spans, strict=True)]


def without_gaps(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give each token what lies before it: a tokenizer may leave the space before a word out of its offsets."""
    spans, end = [], 0
    for start, stop in offsets:
        spans.append((min(start, end), max(start, stop)))
        end = max(end, stop)
    return spans
