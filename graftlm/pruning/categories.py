"""Six functional categories of the words of a reasoning chain, and how many of each survive pruning.

The categories are those of arXiv 2601.03066, section 4:

    symbolic maths   numbers, operators, brackets of formulas, variables, signs and abbreviations of units ($, %, km)
    verbal maths     words of operations, relations, quantifiers and quantities: plus, each, twice, than, total, price
    entity name      people, places, days, things that are counted, units that are written out, and their adjectives
    coreference      pronouns and demonstratives that refer back: he, she, their, this; `that` where it is one
    meta-discourse   the reasoner's own steps and person: so, first, let's, we need to find, check, the answer
    grammar          articles, prepositions, auxiliaries, verbs of the story, conjunctions, punctuation

Where this differs from the paper:

1. `tag_chain` looks words up in lists (graftlm/pruning/category_words.py) and decides the rest by the word before and
   the ending. It is the same each time and needs no model; the paper asks a language model.
2. A category belongs to a word; a token gets that of the word in which most of its characters lie.

Limits: English only, and no parser, so nouns that look like verbs and verbs that no list has are told apart by their
neighbours, sometimes wrongly. An `it` that refers to nothing counts as coreference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import regex

from graftlm.errors import InputError
from graftlm.pruning.category_words import (
    COREFERENCE,
    DETERMINERS,
    ENTITY,
    GRAMMAR,
    META,
    OPENERS,
    OPERATORS,
    PHRASES,
    SUBJECTS,
    SYMBOLIC,
    THAT_REFERS_AFTER,
    UNITS,
    VERBAL,
    WORDS,
)
from graftlm.pruning.pruned_chain import kept_places

CATEGORIES = (SYMBOLIC, VERBAL, ENTITY, COREFERENCE, META, GRAMMAR)
WORD = regex.compile(
    r"""
      \\[A-Za-z]+ | \\\S                                   # a LaTeX command
    | \d+(?:st|nd|rd|th)\b | \d+(?:[.,:/]\d+)*             # 3rd; 1,200.50, 9:00, 3/4
    | (?i:i\.e\.|e\.g\.|a\.m\.|p\.m\.|let['’]s\b|o['’]clock\b)
    | \p{L}+n['’]t\b | ['’](?:s|re|ll|ve|d|m)\b            # don't is one word, Tom's are two
    | [\p{L}\p{M}]+(?:-[\p{L}\p{M}]+)*
    | \S
    """,
    regex.VERBOSE,
)
SENTENCE_ENDS = frozenset({"", ".", "!", "?", ":", ";"})
CLAUSE_ENDS = SENTENCE_ENDS | {",", "*", "#", "(", "and", "but", "so", "to"}


class Tagged(NamedTuple):
    """A word at text[start:end], and its category."""

    start: int
    end: int
    text: str
    category: str


def tag_chain(text: str) -> list[Tagged]:
    """Words and their categories; the words cover every character but white space once."""
    words = _Words(text)
    for place in range(len(words.spans)):
        words.categories.append(words.category(place))
    return [
        Tagged(start, end, text[start:end], category)
        for (start, end), category in zip(words.spans, words.categories, strict=True)
    ]


class _Words:
    """The words of a text, and the categories of those before the one that is looked at."""

    def __init__(self, text: str) -> None:
        self.spans = [match.span() for match in WORD.finditer(text)]
        self.written = [text[start:end] for start, end in self.spans]
        self.lower = [word.lower().replace("’", "'") for word in self.written]
        self.categories: list[str] = []

    def at(self, place: int) -> str:
        """The word there in lower case, "" outside of the text."""
        return self.lower[place] if 0 <= place < len(self.lower) else ""

    def category(self, place: int) -> str:
        word = self.lower[place]
        if not word[0].isalpha() or self._is_symbol(place):
            return SYMBOLIC if self._is_symbol(place) or self._is_operator(place) else GRAMMAR
        phrase = PHRASES.get(f"{self.at(place - 1)} {word}") or PHRASES.get(f"{word} {self.at(place + 1)}")
        if phrase is not None:
            return phrase
        if word in OPENERS and self._opens_step(place):
            return META
        if word == "that":
            return COREFERENCE if self.at(place - 1) in THAT_REFERS_AFTER else GRAMMAR
        if word in WORDS:
            return WORDS[word]
        if all(WORDS.get(part) == VERBAL for part in word.split("-")):  # twenty-one
            return VERBAL
        return self._content(place)

    def _opens_step(self, place: int) -> bool:
        """A marker at the start of a clause that goes on with the reasoner's own words."""
        if self.at(place - 1) not in CLAUSE_ENDS:
            return False
        return (
            self.lower[place] in {"next", "now"} or self.at(place + 1) == "," or WORDS.get(self.at(place + 1)) == META
        )

    def _content(self, place: int) -> str:
        """A word of no list: a verb or an adverb is grammar, anything else names something."""
        word, before = self.lower[place], self.at(place - 1)
        previous = self.categories[-1] if self.categories else GRAMMAR
        if before in DETERMINERS or previous == SYMBOLIC:
            return ENTITY
        if self.written[place][0].isupper() and before not in SENTENCE_ENDS:
            return ENTITY
        after_name = previous == ENTITY and self.written[place - 1][0].isupper()
        verb = before in SUBJECTS or word.endswith(("ed", "ing")) or (after_name and word.endswith("s"))
        return GRAMMAR if verb or word.endswith(("ly", "n't")) else ENTITY

    # -- signs ------------------------------------------------------------------------------------------------------

    def _is_symbol(self, place: int) -> bool:
        """A number, a sign that is nothing but maths, a variable or, after a number, a unit."""
        word = self.at(place)
        if not word[:1].isalpha():
            return word[:1].isdigit() or word[:1] in OPERATORS
        after_number = self.at(place - 1)[-1:].isdigit()
        return (len(word) == 1 and word not in "ai") or (word in UNITS and after_number)

    def _is_operator(self, place: int) -> bool:
        """A sign that is punctuation elsewhere (-, *, brackets), where maths is on both sides."""
        sign, before = self.lower[place], self.at(place - 1)
        if sign not in "-–*_~|&()[]":
            return False
        after_maths = bool(self.categories) and self.categories[-1] == SYMBOLIC
        before_maths = self._is_symbol(place + 1) or (
            self.at(place + 1) in {"(", "-", "*"} and self._is_symbol(place + 2)
        )
        if sign in "()[]":
            return after_maths if sign in ")]" else before_maths
        glued = place > 0 and self.spans[place - 1][1] == self.spans[place][0]
        return before_maths and (after_maths or not (glued or before in SENTENCE_ENDS))


def categories_of_tokens(
    text: str, offsets: Iterable[tuple[int, int]], tagged: Sequence[Tagged] | None = None
) -> list[str]:
    """The category of each token, given its span of characters: that of most of its non-space characters.

    The first wins a tie. A token without any but spaces is grammar. `tagged`: words of another tagger.
    """
    of_character: dict[int, str] = {}
    for word in tag_chain(text) if tagged is None else tagged:
        of_character |= dict.fromkeys(range(word.start, word.end), word.category)
    categories = []
    for start, end in offsets:
        if not 0 <= start <= end <= len(text):
            raise InputError(f"token at characters ({start}, {end}) is outside the text, which has {len(text)}")
        counts = Counter(of_character[place] for place in range(start, end) if not text[place].isspace())
        categories.append(counts.most_common(1)[0][0] if counts else GRAMMAR)
    return categories


def survival(
    ranks_by_chain: Sequence[Sequence[float]],
    categories_by_chain: Sequence[Sequence[str]],
    keep_ratios: Sequence[float],
) -> dict[str, list[float]]:
    """Share of each category's tokens, those of all chains together, that are kept at each ratio.

    Those of highest rank are kept, as in `PrunedChain.text`. Categories of no token are left out. InputError for a
    ratio outside [0, 1].
    """
    if wrong := [keep for keep in keep_ratios if not 0 <= keep <= 1]:
        raise InputError(f"keep ratio {wrong[0]}: give a share between 0 and 1")
    totals = Counter(name for names in categories_by_chain for name in names)
    kept: list[Counter[str]] = [Counter() for _ in keep_ratios]
    for ranks, names in zip(ranks_by_chain, categories_by_chain, strict=True):
        for keep, counts in zip(keep_ratios, kept, strict=True):
            counts.update(names[place] for place in kept_places(ranks, keep))
    return {name: [counts[name] / totals[name] for counts in kept] for name in CATEGORIES if totals[name]}
