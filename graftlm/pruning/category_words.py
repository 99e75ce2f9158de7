"""Words by category, in lower case, for `tag_chain` (graftlm/pruning/categories.py, which says what they are).

Function words, pronouns, number words and markers are closed classes, so their lists are close to complete. Verbs and
quantities are the common ones of grade-school problems.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SYMBOLIC, VERBAL, ENTITY = "symbolic maths", "verbal maths", "entity name"
COREFERENCE, META, GRAMMAR = "coreference", "meta-discourse", "grammar"

OPERATORS = frozenset("$€£¥₹¢+−±×·∙÷/=<>≤≥≈≠≡∼→⇒^√∞∑∏∫%‰°½¼¾⅓⅔{}\\")
UNITS = _words("km cm mm kg mg lb lbs oz ml cl ft yd hr hrs min mins sec secs ms am pm a.m. p.m. mph kph usd eur")
"""Abbreviations that are symbols after a number."""

_LISTS = {
    SYMBOLIC: "sin cos tan log ln exp sqrt mod gcd lcm",
    VERBAL: """
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands
        million millions billion billions dozen dozens half halves third thirds fourth fourths fifth fifths sixth
        sixths seventh eighth ninth tenth tenths once twice thrice quadruple pair pairs couple first second

        plus minus times equally equation equations expression formula difference product quotient remainder remaining
        rest mean median percent percentage fraction fractions ratio ratios proportion rate rates number numbers
        amount amounts quantity value values digit digits unknown variable worth per each every all both many much
        more most fewer fewest less least than enough several few maximum minimum altogether together combined extra
        additional odd multiple multiples factor factors prime probability chance root area perimeter volume length
        width height depth distance speed age ages weight price prices profit discount tax interest salary wage income
        revenue budget debt fee fees time size capacity temperature angle left older oldest younger youngest taller
        tallest shorter shortest longer longest higher highest lower lowest heavier faster slower larger largest bigger
        biggest smaller smallest cheaper expensive earlier later greater greatest old tall long wide far

        add adds adding added addition subtract subtracts subtracting subtracted subtraction multiply multiplies
        multiplying multiplied multiplication divide divides dividing divided division double doubles doubled halve
        halved triple tripled total totals totalling equal equals exceed exceeds increase increases increased decrease
        decreases decreased reduce reduces reduced sum sums count counting square squared round rounded average cost
        costs costing remain remains remained split combine combining leaving leaves yields
    """,
    COREFERENCE: """
        he she it they him her them his hers its their theirs himself herself itself themselves this these those ones
    """,
    META: """
        therefore thus hence so then finally lastly firstly secondly thirdly let let's lets wait hmm okay ok alright
        well actually however moreover furthermore consequently accordingly overall similarly likewise namely answer
        answers solution question problem step steps note suppose assume assuming recall given conclude conclusion
        summary indeed step-by-step we us our i me my you your correct incorrect wrong right maybe perhaps i.e. e.g.
        means meaning find solve check verify calculate calculating compute determine compare figure simplify
        substitute evaluate define denote know
    """,
    GRAMMAR: """
        a an the another some any no other such same own certain of in on at by for from with without to into onto out
        off up down over under above below between among through during before after since until till against toward
        towards across along around about near behind beside besides beyond within inside outside upon via except like
        despite ago away back forward am is are was were be been being do does did doing done has have had having will
        would shall should can could may might must cannot ought going 's 're 'll 've 'd 'm and or but nor yet if
        unless because although though while whereas whether as when where which who whom whose what why how not n't
        only just also too very already still again always never often sometimes usually here there exactly quite
        rather almost nearly else ever soon either neither instead otherwise even next now last able ready

        buy buys bought give gives gave take takes took get gets got make makes made eat eats ate pay pays paid spend
        spends spent sell sells sold use uses put puts keep keeps kept lose loses bring brings brought send sends sent
        win wins won tell tells told say says said go goes went come comes came see sees saw work works worked want
        wants need needs start starts begin begins end ends read reads write writes written drink drinks run runs ran
        drive drives drove hold holds fit fits found travel travels earn earns
    """,
}
WORDS = {word: category for category, words in _LISTS.items() for word in words.split()}
"""The category of each word that is looked up."""

_PHRASES = {
    VERBAL: "in total; in all; at least; at most; how many; how much",
    META: """
        to find; to calculate; to solve; to determine; figure out; in order; order to; we need; need to; we have;
        we can; we get; it follows; follows that; for example
    """,
}
PHRASES = {phrase.strip(): category for category, text in _PHRASES.items() for phrase in text.split(";")}
"""Two words of one category."""

OPENERS = _words("first second third next now last again also")
"""Meta-discourse where they open a clause."""
SUBJECTS = _words("he she it they who we i you to not will would can could should may might must")
"""Words that a verb follows."""
DETERMINERS = _words("a an the another some no other of each every per his her its their this these 's")
"""Words that a noun or its adjective follows."""
THAT_REFERS_AFTER = frozenset({"", ".", "!", ":", "and", "than", "times", "half", "twice", "of", "in", "from", "so"})
"""Words after which `that` is a pronoun or a demonstrative, not a conjunction or a relative pronoun."""
