"""Categories of the words of a chain as a language model gives them, over any endpoint that speaks OpenAI's protocol.

As in arXiv 2601.03066, the model is asked for JSON with a justification and a category of each word, at temperature 0;
the justification is for the model's sake and is not kept. The words are those of `tag_chain`, so that the two can be
compared by `agreement`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.pruning.categories import CATEGORIES, Tagged, words_of

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

NO_KEY = "none"
"""What is sent as the key where none is given: local servers ignore it, and no key of the environment leaks to them."""
SHOWN = 60
"""Characters of a chain in an error."""

INSTRUCTION = """\
Each word, number and sign of a chain of reasoning belongs to one of six categories, by what it does in the chain:

symbolic maths: numbers in digits, operators, equals signs, brackets of formulas, variables, and signs and abbreviations
of units ($, %, km).
verbal maths: words of operations, relations, quantifiers and quantities, and numbers in words: plus, times, each, half,
twice, per, more, than, total, remaining, price, three; "in total"; verbs of calculation (add, divide, costs).
entity name: people, places, days, things that are counted or described, units that are written out, and adjectives that
belong to them.
coreference: words that refer back to something named before: he, she, it, they, his, their, this, these, and "that"
where it is a pronoun or a demonstrative.
meta-discourse: words that steer the reasoning: so, therefore, then, first, next, finally, let's, wait, step, answer, we
need to find, check, i.e., and the reasoner's "we" and "I".
grammar: articles, prepositions, auxiliaries, conjunctions, relative pronouns, punctuation, and the story's verbs and
adverbs (has, buys, eats, already).

The user gives a chain and its words by number. Answer with one JSON object and nothing else. Its keys are all the
numbers, in order; each value is an object with the word as "word", a justification of at most six words as "why", and
"category", for example {"0": {"word": "Mia", "why": "names a person", "category": "entity name"}, "1": ...}."""


class TaggingError(RuntimeError):
    """The model's answers could not be read, twice; the message is one line that names the chain."""


class LanguageModelTagger:
    """Tags chains with a model behind an OpenAI-compatible endpoint.

        tagger = LanguageModelTagger("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct")
        agreement(tagger.tag(chain), tag_chain(chain))

    `api_key`: none is needed for local servers. `timeout`: seconds that one answer may take. Needs the package openai
    (extra `categories`).
    """

    def __init__(self, base_url: str, model: str, api_key: str | None = None, timeout: float = 300.0) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise InputError("LanguageModelTagger needs openai: pip install 'graftlm[categories]'") from error
        self.model, self.base_url = model, base_url
        self._errors = openai.APIError, openai.APITimeoutError
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key or NO_KEY, timeout=timeout)

    def tag(self, text: str) -> list[Tagged]:
        """Words and categories of a chain.

        TaggingError where the answer is malformed and that to a second request, which says what was wrong, is too.
        InputError where the endpoint refuses or is not there.
        """
        spans = words_of(text)
        if not spans:
            return []
        words = [text[start:end] for start, end in spans]
        numbered = "\n".join(f"{place} {word}" for place, word in enumerate(words))
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": f"Chain:\n{text}\n\nWords:\n{numbered}"},
        ]
        wrong = ""
        for _ in range(2):
            answer = self._answer(messages)
            try:
                categories = read_answer(answer, words)
            except ValueError as error:
                wrong = str(error)
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": f"That is malformed: {wrong}. Give the whole JSON object again."},
                ]
            else:
                return [Tagged(*span, word, category)
                        for span, word, category in zip(spans, words, categories, strict=True)]  # fmt: skip
        raise TaggingError(f"chain {shown(text)}: {self.model} gave malformed answers twice: {wrong}")

    def _answer(self, messages: list[ChatCompletionMessageParam]) -> str:
        failed, timed_out = self._errors
        try:
            completion = self._client.chat.completions.create(model=self.model, messages=messages, temperature=0)
        except failed as error:
            what = "gave no answer in time: raise timeout" if isinstance(error, timed_out) else shown(str(error), 200)
            raise InputError(f"{self.base_url}, model {self.model}: {what}") from error
        choices = completion.choices or []
        return (choices[0].message.content or "") if choices else ""


def read_answer(answer: str, words: list[str]) -> list[str]:
    """The categories in a model's answer, which may have its thoughts or a fence around the JSON.

    ValueError with one line that says what is wrong.
    """
    visible = answer.rpartition("</think>")[2]
    first, last = visible.find("{"), visible.rfind("}")
    if not 0 <= first < last:
        raise ValueError("no JSON object in it, or one that is cut off")
    try:
        found: dict[str, Any] = json.loads(visible[first : last + 1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON is invalid ({error})") from None
    categories = []
    for place, word in enumerate(words):
        entry = found.get(str(place))
        if not isinstance(entry, dict):
            raise ValueError(f"number {place} ({word!r}) is missing")
        if entry.get("word") != word:
            raise ValueError(f"the word of number {place} is {shown(str(entry.get('word')))} instead of {word!r}")
        category = entry.get("category")
        if category not in CATEGORIES:
            raise ValueError(f"number {place} ({word!r}) has no category {shown(str(category))}")
        categories.append(category)
    if unknown := found.keys() - {str(place) for place in range(len(words))}:
        raise ValueError(f"there is no word number {shown(min(unknown))}")
    return categories


def shown(text: str, length: int = SHOWN) -> str:
    """A text on one line, shortened."""
    return repr(text if len(text) <= length else f"{text[: length - 1]}…")
