"""Six functional categories of the words of a reasoning chain, and how many of each survive pruning.

The categories are those of arXiv 2601.03066, section 4:

    symbolic maths   numbers, operators, brackets of formulas, variables, signs and abbreviations of units ($, %, km)
    verbal maths     words of operations, relations, quantifiers and quantities: plus, each, twice, than, total, price
    entity name      people, places, days, things that are counted, units that are written out, and their adjectives
    coreference      pronouns and demonstratives that refer back: he, their, this; `that` where it is one
    meta-discourse   the reasoner's own steps and person: so, first, let's, we need to find, check, the answer
    grammar          articles, prepositions, auxiliaries, conjunctions, relative pronouns, punctuation, and what is left

Where this differs from the paper:
1. `tag_chain` is word lists and rules, the same each time and without a model; the paper asks a language model, as
   `LanguageModelTagger` (graftlm/pruning/language_model_tagger.py) does.
2. A category belongs to a word; a token gets that of the word in which most of its characters lie.

What the definitions leave open is decided so: verbs of the story (has, buys, eats) are grammar, verbs of calculation
(add, costs) verbal maths, verbs of the procedure (find, check) meta-discourse. `in total` is verbal maths. `we` and `I`
are meta-discourse. `first` and `next` are meta-discourse at the start of a clause, else verbal maths and grammar.

Limits of `tag_chain`: English only. Story verbs outside its list, and nouns that look like verbs, are told apart by
their neighbours, and adjectives by their endings; without a parser some are wrong. It does not look for what a pronoun
refers to, so an empty `it` counts as coreference. TextBlob's part-of-speech tagger (the one library with its model in
its wheel, under a fitting licence, and as text) in place of the neighbours and endings agreed a little less with labels
by hand, so none is used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from graftlm.errors import InputError
from graftlm.pruning.category_rules import (
    COREFERENCE,
    ENTITY,
    GRAMMAR,
    META,
    SYMBOLIC,
    VERBAL,
    WORD,
    Rules,
)

__all__ = [
    "CATEGORIES",
    "COREFERENCE",
    "ENTITY",
    "GRAMMAR",
    "META",
    "SYMBOLIC",
    "VERBAL",
    "Agreement",
    "Tagged",
    "agreement",
    "categories_of_tokens",
    "survival",
    "tag_chain",
    "words_of",
]

CATEGORIES = (SYMBOLIC, VERBAL, ENTITY, COREFERENCE, META, GRAMMAR)


class Tagged(NamedTuple):
    """A word at text[start:end], and its category."""

    start: int
    end: int
    text: str
    category: str


class Agreement(NamedTuple):
    """Of two taggings of the same words: the share of equal categories, and Cohen's kappa, free of chance."""

    share: float
    kappa: float
    words: int


def words_of(text: str) -> list[tuple[int, int]]:
    """Spans of the words, numbers and signs, which cover every non-space character once."""
    return [match.span() for match in WORD.finditer(text)]


def tag_chain(text: str) -> list[Tagged]:
    """Words and categories by the rules; the words are those of `words_of`."""
    spans = words_of(text)
    categories = Rules(text, spans).categories()
    return [
        Tagged(start, end, text[start:end], category) for (start, end), category in zip(spans, categories, strict=True)
    ]


def categories_of_tokens(
    text: str, offsets: Iterable[tuple[int, int]], tagged: Sequence[Tagged] | None = None
) -> list[str]:
    """The category of each token, given its span of characters: that of most of its non-space characters.

    The first wins a tie. A token without any but spaces is grammar. `tagged`: words of another tagger.
    """
    of_character: dict[int, str] = {}
    for word in tag_chain(text) if tagged is None else tagged:
        of_character |= dict.fromkeys(range(word.start, word.end), word.category)
    found = []
    for start, end in offsets:
        if not 0 <= start <= end <= len(text):
            raise InputError(f"token at characters ({start}, {end}) is outside the text, which has {len(text)}")
        counts = Counter(of_character[place] for place in range(start, end) if not text[place].isspace())
        found.append(counts.most_common(1)[0][0] if counts else GRAMMAR)
    return found


def agreement(first: Sequence[Tagged], second: Sequence[Tagged]) -> Agreement:
    """How far two taggings agree.

    InputError where their words differ or there are none.
    """
    if [word[:3] for word in first] != [word[:3] for word in second]:
        raise InputError("the two taggings are not of the same words: tag the same text with both")
    if not first:
        raise InputError("there are no words to compare")
    count = len(first)
    share = sum(a.category == b.category for a, b in zip(first, second, strict=True)) / count
    counts, others = (Counter(word.category for word in words) for words in (first, second))
    chance = sum(counts[name] * others[name] for name in counts) / count**2
    return Agreement(share, 1.0 if chance == 1 else (share - chance) / (1 - chance), count)


def survival(
    ranks_by_chain: Sequence[Sequence[float]],
    categories_by_chain: Sequence[Sequence[str]],
    keep_ratios: Sequence[float],
) -> dict[str, list[float]]:
    """Share of each category's tokens, those of all chains together, that are kept at each ratio.

    Of n tokens of a chain the ceil(keep * n) of highest rank are kept; of equal ranks the later in the text. Categories
    of no token are left out. InputError where the lengths differ or a ratio is outside [0, 1].
    """
    if wrong := [keep for keep in keep_ratios if not 0 <= keep <= 1]:
        raise InputError(f"keep ratio {wrong[0]}: give a share between 0 and 1")
    lengths = [list(map(len, each)) for each in (ranks_by_chain, categories_by_chain)]
    if lengths[0] != lengths[1]:
        raise InputError(f"ranks are of chains of {lengths[0]} tokens and categories of chains of {lengths[1]}")
    totals = Counter(name for names in categories_by_chain for name in names)
    kept: list[Counter[str]] = [Counter() for _ in keep_ratios]
    for ranks, names in zip(ranks_by_chain, categories_by_chain, strict=True):
        order = sorted(range(len(ranks)), key=lambda place: (ranks[place], place))
        for keep, counts in zip(keep_ratios, kept, strict=True):
            first = len(order) - math.ceil(keep * len(order) - 1e-9)  # 0.07 * 100 is 7.000000000000001
            counts.update(names[place] for place in order[first:])
    return {name: [counts[name] / totals[name] for counts in kept] for name in sorted(totals, key=_place)}


def _place(name: str) -> tuple[int, str]:
    return (CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES), name)
