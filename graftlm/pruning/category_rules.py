"""The rules by which `tag_chain` (graftlm/pruning/categories.py, which says what the categories are) sorts words."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from graftlm.pruning import category_words as lists

SYMBOLIC = "symbolic maths"
VERBAL = "verbal maths"
ENTITY = "entity name"
COREFERENCE = "coreference"
META = "meta-discourse"
GRAMMAR = "grammar"

WORD = regex.compile(
    r"""
      \\[A-Za-z]+ | \\\S                                   # a LaTeX command
    | \d+(?:st|nd|rd|th)\b | \d+(?:[.,:/]\d+)*             # 3rd; 1,200.50, 9:00, 3/4
    | (?i:i\.e\.|e\.g\.|a\.m\.|p\.m\.|let['’]s\b|o['’]clock\b)
    | \p{L}+n['’]t\b | ['’](?:s|re|ll|ve|d|m)\b            # don't whole, Tom's as two words
    | [\p{L}\p{M}]+(?:-[\p{L}\p{M}]+)*
    | \S
    """,
    regex.VERBOSE,
)
LETTER = regex.compile(r"[A-Za-z\p{Greek}]")
PHRASES = dict.fromkeys(lists.VERBAL_PHRASES, VERBAL) | dict.fromkeys(lists.META_PHRASES, META)
LONGEST_PHRASE = max(map(len, PHRASES))


class Rules:
    """Categories of one text's words: signs, then phrases, then single words by list, neighbours and ending."""

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        self.text, self.spans = text, spans
        self.written = [text[start:end] for start, end in spans]
        self.lower = [word.lower().replace("’", "'") for word in self.written]
        self.found: list[str | None] = [None] * len(spans)

    def categories(self) -> list[str]:
        self._formulas()
        self._phrases()
        for place, category in enumerate(self.found):
            if category is None:
                self.found[place] = self._word(place)
        return [category or GRAMMAR for category in self.found]

    # -- neighbours ---------------------------------------------------------------------------------------------

    def _at(self, place: int) -> str:
        """The word there in lower case, "" outside of the text."""
        return self.lower[place] if 0 <= place < len(self.lower) else ""

    def _category(self, place: int) -> str | None:
        return self.found[place] if 0 <= place < len(self.found) else None

    def _touches(self, place: int) -> bool:
        """No space before the word."""
        return place > 0 and self.spans[place - 1][1] == self.spans[place][0]

    def _opens_line(self, place: int) -> bool:
        return place == 0 or "\n" in self.text[self.spans[place - 1][1] : self.spans[place][0]]

    def _opens_sentence(self, place: int) -> bool:
        return self._opens_line(place) or self._at(place - 1) in set(".!?:;")

    def _opens_clause(self, place: int) -> bool:
        return self._opens_sentence(place) or self._at(place - 1) in {",", "and", "but", "so", "*", "#", "(", "to"}

    # -- signs --------------------------------------------------------------------------------------------------

    def _formulas(self) -> None:
        for place, word in enumerate(self.written):
            if word[0].isdigit() or word[0] == "\\" or self._is_variable(place):
                self.found[place] = SYMBOLIC
        opened: list[int] = []
        for place, word in enumerate(self.written):
            if self.found[place] is not None or word[0].isalpha() or len(word) > 1:
                continue
            if word in "([":
                opened.append(place)
            elif word in ")]":
                self._close(opened.pop() if opened else None, place)
            elif word in "-–*_~|#&/":
                self.found[place] = SYMBOLIC if self._is_operator(place) else GRAMMAR
            else:
                self.found[place] = SYMBOLIC if word in lists.OPERATORS else GRAMMAR
        for place in opened:
            self.found[place] = GRAMMAR

    def _is_variable(self, place: int) -> bool:
        word, lower = self.written[place], self.lower[place]
        if not word[0].isalpha():
            return False
        after_number = self._at(place - 1)[-1:].isdigit()
        if len(word) > 1:
            glued = after_number and self._touches(place)
            return lower in lists.FUNCTIONS or glued or (after_number and lower in lists.UNITS)
        if lower not in ("a", "i"):
            return LETTER.match(word) is not None
        signs = {*lists.OPERATORS, "-", "–"} - set("$*_~|#&/")
        neighbours = {self._at(place - 1), self._at(place + 1)}
        in_formula = bool(neighbours & signs) or neighbours == {"$"} or (self._touches(place) and after_number)
        return in_formula or (word == "A" and not self._opens_sentence(place))

    def _is_operator(self, place: int) -> bool:
        """A sign that is also punctuation: one of maths before maths, neither opening a line nor glued to a word."""
        sign = self.lower[place]
        if sign == "/":
            return True
        first = place - 1 if self._at(place - 1) == sign else place
        last = place + 1 if self._at(place + 1) == sign else place
        before, after = self._category(first - 1) == SYMBOLIC, self._category(last + 1) == SYMBOLIC
        if first < last:  # 2**3, but **bold**
            return before and after
        after = after or self._at(place + 1) in {"(", "-", *lists.CURRENCIES}
        glued = self._touches(place) and self._at(place - 1)[-1:].isalpha() and not before
        return after and not self._opens_line(place) and not glued

    def _close(self, opening: int | None, place: int) -> None:
        """Brackets belong to a formula if nothing but maths and commas is in them."""
        inside = [] if opening is None else self.found[opening + 1 : place]
        commas = {self._at(each) for each in range((opening or 0) + 1, place) if self.found[each] == GRAMMAR}
        formula = bool(inside) and SYMBOLIC in inside and None not in inside and commas <= {","}
        for bracket in (opening, place):
            if bracket is not None:
                self.found[bracket] = SYMBOLIC if formula else GRAMMAR

    # -- phrases ------------------------------------------------------------------------------------------------

    def _phrases(self) -> None:
        place = 0
        while place < len(self.lower):
            following = self.lower[place : place + LONGEST_PHRASE]
            lengths = range(len(following), 1, -1)
            length = next((length for length in lengths if tuple(following[:length]) in PHRASES), 1)
            if length > 1:
                self.found[place : place + length] = [PHRASES[tuple(following[:length])]] * length
            place += length
        for place in range(1, len(self.lower) - 1):
            if self.lower[place - 1 : place + 2] == [",", "that", "is"]:  # ", that is 3": in other words
                self.found[place] = self.found[place + 1] = META

    # -- words --------------------------------------------------------------------------------------------------

    def _word(self, place: int) -> str:
        for rule in (self._listed, self._maths, self._meta, self._grammar):
            if category := rule(place):
                return category
        return self._content(place)

    def _listed(self, place: int) -> str | None:
        word, following = self.lower[place], self._at(place + 1)
        if word in lists.PRONOUNS:
            return COREFERENCE
        if word == "that":
            return COREFERENCE if self._refers(place) else GRAMMAR
        if word == "so" and following == "that":
            return META if self._refers(place + 1) else GRAMMAR
        if word == "so" and following in {"far", "many", "much"}:
            return GRAMMAR
        if word in lists.OPENERS and self._opens_clause(place):
            procedure = following in lists.PROCEDURES or following in lists.CALCULATIONS or following in {",", "we"}
            return META if procedure or word in {"next", "now"} else None
        return None

    def _refers(self, place: int) -> bool:
        """`that` as a pronoun or a demonstrative, not as a conjunction or a relative pronoun."""
        before, after = self._at(place - 1), self._at(place + 1)
        if self._opens_sentence(place) or after == "'s":
            return True
        if before in lists.PREPOSITIONS or before in {"twice", "half", "times", "than", "double", "all"}:
            return True
        return before in {"and", "so", "then", ","} and (after in lists.AUXILIARIES or after in lists.RESULTS)

    def _maths(self, place: int) -> str | None:
        word, before = self.lower[place], self._at(place - 1)
        parts = word.split("-")
        if all(part in lists.NUMBERS or part in lists.FRACTIONS for part in parts) and len(parts) > 1:
            return VERBAL
        if word in lists.FRACTIONS:
            counts = before in lists.NUMBERS or before in {"a", "the", "-"}
            return VERBAL if counts and self._at(place + 1) in {"of", "as", ",", "."} else ENTITY
        if word == "second" and before in {"per", "each", "every"}:
            return ENTITY
        if word == "up" and any(self._at(place - back).startswith("add") for back in (1, 2, 3)):
            return VERBAL
        if word == "change":
            return VERBAL if before in {"in", "of", "the", "much", "her", "his"} else GRAMMAR
        if word in lists.RESULTS and self._follows_calculation(place):
            return META if word.startswith("mean") else VERBAL
        if word == "left":
            after_name = before in lists.PRONOUNS or (place > 0 and self.written[place - 1][0].isupper())
            ends = self._at(place + 1) in {"", ".", ",", "to", "over"}
            return GRAMMAR if (after_name and not ends) or before == "the" else VERBAL
        if word in lists.MEASURED:
            return ENTITY if word in lists.DESCRIBING and before not in {"as", "how", "so"} else VERBAL
        listed = word in lists.NUMBERS or word in lists.MATHS or word in lists.CALCULATIONS
        return VERBAL if listed else None

    def _follows_calculation(self, place: int) -> bool:
        before = self._at(place - 1)
        return before in {"which", "this", "that", ","} or self._category(place - 1) in (SYMBOLIC, VERBAL)

    def _meta(self, place: int) -> str | None:
        word = self.lower[place]
        if word in lists.META:
            return META
        if word in lists.PROCEDURES:
            ours = self._category(place - 1) == META or self._opens_sentence(place)
            return META if ours or (self._at(place - 1) == "to" and self._opens_sentence(place - 1)) else None
        if word == "to" and self._opens_sentence(place) and self._at(place + 1) in lists.PROCEDURES:
            return META
        if word in {"implies", "shows"} and self._follows_calculation(place):
            return META
        return None

    def _grammar(self, place: int) -> str | None:
        word = self.lower[place]
        negated = word.removesuffix("n't") in lists.AUXILIARIES or word in {"won't", "can't"}
        if word in lists.GRAMMAR or negated or (word in lists.STORY_VERBS and not self._is_noun(place)):
            return GRAMMAR
        return None

    def _is_noun(self, place: int) -> bool:
        """After a word that a noun or its adjective follows."""
        before = self._at(place - 1)
        if before in {"of", "in", "on", "at", "from", "with"}:
            return not self.lower[place].endswith("ing")
        if before in lists.DETERMINERS | lists.OWNERS | lists.NUMBERS or self._category(place - 1) == SYMBOLIC:
            return True
        named = place > 0 and self.written[place - 1][0].isupper()
        subject = named or before.endswith("s") or before in lists.PLURALS
        modifies = self._category(place - 1) == ENTITY and not subject and not self._object_follows(place)
        return modifies and self.lower[place] in lists.BARE_VERBS

    def _object_follows(self, place: int) -> bool:
        after = self._at(place + 1)
        return after in lists.DETERMINERS or after in lists.PRONOUNS or self._category(place + 1) == SYMBOLIC

    def _content(self, place: int) -> str:
        """A word of no list: a verb or an adverb is grammar, anything else names something."""
        word, before, after = self.lower[place], self._at(place - 1), self._at(place + 1)
        if not word[0].isalpha():
            return GRAMMAR
        if self.written[place][0].isupper() and not self._opens_sentence(place):
            return ENTITY
        if word.endswith("ly") and len(word) > 4 and word not in lists.LY_NOUNS:
            return GRAMMAR
        if self._is_noun(place):
            return ENTITY
        after_noun, takes_object = self._category(place - 1) == ENTITY, self._object_follows(place)
        if before in {"he", "she", "it", "they", "who", "we", "i"} or before in lists.MODALS:
            return GRAMMAR
        if (before == "to" or after_noun) and takes_object:
            return GRAMMAR
        if before in lists.AUXILIARIES and word.endswith(("ed", "ing")):
            return GRAMMAR
        named = after_noun and self.written[place - 1][0].isupper()
        verb_ending = word.endswith("ed") or (word.endswith("s") and named)
        return GRAMMAR if verb_ending and (takes_object or after in lists.PREPOSITIONS) else ENTITY
