"""Word lists of the rules that sort words into categories (graftlm/pruning/category_rules.py), in lower case.

Function words, pronouns, number words and markers are closed classes, so their lists are close to complete. The verbs
and the measures are the common ones of grade-school problems.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(phrase.split()) for phrase in text.split(";"))


def inflected(base: str) -> set[str]:
    """A regular English verb's forms. Both spellings where a consonant may be doubled; the wrong one is no word."""
    if re.search(r"[^aeiou]y$", base):
        return {base, f"{base[:-1]}ies", f"{base[:-1]}ied", f"{base}ing"}
    plural = f"{base}es" if re.search(r"(s|x|z|ch|sh|o)$", base) else f"{base}s"
    stems = {base[:-1]} if base.endswith("e") else {base}
    if re.search(r"[^aeiou][aeiou][bdglmnprt]$", base):
        stems.add(base + base[-1])
    return {base, plural} | {stem + ending for stem in stems for ending in ("ed", "ing")}


def _verbs(text: str) -> frozenset[str]:
    return frozenset(form for base in text.split() for form in inflected(base))


def _degrees(text: str) -> frozenset[str]:
    """Adjectives with their comparatives and superlatives."""
    found = set()
    for base in text.split():
        stem = base[:-1] if base.endswith("e") else f"{base[:-1]}i" if re.search(r"[^aeiou]y$", base) else base
        if re.search(r"[^aeiou][aeiou][bdgnt]$", base):
            stem += base[-1]
        found |= {base, f"{stem}er", f"{stem}est"}
    return frozenset(found)


# -- symbolic maths -------------------------------------------------------------------------------------------------

FUNCTIONS = _words("sin cos tan log ln exp sqrt mod gcd lcm")
UNITS = _words(
    "km cm mm nm kg mg lb lbs oz ml cl dl ft yd hr hrs min mins sec secs ms am pm a.m. p.m. mph kph kmh usd eur "
    "gbp kwh mb gb"
)
"""Abbreviated units, which are symbols after a number."""
CURRENCIES = frozenset("$€£¥₹¢")
OPERATORS = CURRENCIES | frozenset("+−±×·∙*÷/=<>≤≥≈≠≡∼→⇒^√∞∑∏∫%‰°½¼¾⅓⅔|{}\\_~&")

# -- verbal maths ---------------------------------------------------------------------------------------------------

NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand "
    "thousands million millions billion billions dozen dozens half halves third thirds fourth fourths fifth "
    "fifths sixth sixths seventh eighth eighths ninth tenth tenths eleventh twelfth hundredth hundredths once "
    "twice thrice double triple quadruple pair pairs couple first second"
)
FRACTIONS = _words("quarter quarters")
"""Fractions that are also coins."""
MATHS = _words(
    "plus minus times equal equals equally equation equations expression formula sum sums total totals difference "
    "product quotient remainder remaining remains remain rest average mean median percent percentage percents "
    "fraction fractions ratio ratios proportion rate rates number numbers amount amounts quantity quantities "
    "count value values digit digits unknown variable variables worth per each every all both many much more most "
    "fewer fewest less least than enough several few maximum minimum altogether together combined apiece extra "
    "additional even odd integer integers multiple multiples factor factors divisor prime probability chance "
    "square squared cubed cubic power root area perimeter circumference radius diameter volume length width "
    "height depth distance distances speed speeds age ages weight weights mass price prices cost costs profit "
    "profits discount discounts tax taxes interest salary wage wages income revenue expenses budget balance debt "
    "fee fees time size sizes capacity duration temperature angle angles order"
)
CALCULATIONS = _verbs(
    "add subtract multiply divide double halve triple total equal exceed increase decrease reduce deduct sum "
    "count multiply square round average cost remain combine split"
) | _words("split splitting halving addition subtraction multiplication division")
MEASURED = _degrees(
    "old young tall short long wide high low deep far heavy fast slow large small big cheap early late great "
    "thick thin narrow expensive close near light hot cold warm"
) | _words("further furthest farther farthest elder eldest")
DESCRIBING = _words("large small big early late great light cold hot warm short low near close young thin thick")
"""Adjectives that name a kind of thing; only their comparatives are relations."""
VERBAL_PHRASES = _phrases("in total; in all; at least; at most; left over; how many; how much")

# -- coreference ----------------------------------------------------------------------------------------------------

PRONOUNS = _words(
    "he she it they him her them his hers its their theirs himself herself itself themselves this these those ones"
)

# -- meta-discourse -------------------------------------------------------------------------------------------------

META = _words(
    "therefore thus hence so then finally lastly firstly secondly thirdly let's lets wait hmm okay ok alright "
    "well actually however moreover furthermore consequently accordingly overall similarly likewise namely answer "
    "answers solution question problem step steps note suppose assume assuming recall given conclude conclusion "
    "summary indeed step-by-step we us our i me my you your correct incorrect wrong right maybe perhaps i.e. e.g. "
    "qed meaning"
)
PROCEDURES = _verbs(
    "find solve check verify calculate compute determine compare figure consider simplify substitute evaluate "
    "express define denote call know let think try plug set write rewrite use look see confirm start begin work"
) | _words("found knowing known setting letting plugging written writing seen")
"""What a reasoner does, where the reasoner does it; elsewhere verbs of the story."""
OPENERS = _words("first second third next now last also again")
"""Markers at the start of a clause only."""
META_PHRASES = _phrases(
    "let us; let me; we need to; we need to find; we have to; we want to; we can; we know; we know that; we get; "
    "we have; we are given; we must; i need to; you need to; in order to; as a result; in other words; it follows "
    "that; in conclusion; to sum up; on the other hand; for example; for instance; of course; first of all; step "
    "by step; to find; to solve; to calculate; to determine; to compute; to check; figure out; hold on; final "
    "answer"
)

# -- grammar --------------------------------------------------------------------------------------------------------

DETERMINERS = _words("a an the another some any no other such same own certain")
OWNERS = _words("his its their this each every per 's")
PREPOSITIONS = _words(
    "of in on at by for from with without to into onto out off up down over under above below between among "
    "through during before after since until till against toward towards across along around about near behind "
    "beside besides beyond within inside outside upon via except like unlike despite ago away back forward "
    "backward"
)
AUXILIARIES = _words(
    "am is are was were be been being do does did doing done has have had having will would shall should can "
    "could may might must cannot ought going gonna 's 're 'll 've 'd 'm"
)
CONJUNCTIONS = _words(
    "and or but nor yet if unless because although though while whereas whether as when where whenever wherever "
    "once that which who whom whose what why how"
)
ADVERBS = _words(
    "not n't only just also too very already still again always never often sometimes usually here there exactly "
    "quite rather almost nearly about else ever soon yet either neither instead otherwise even now next last able "
    "ready"
)
LY_NOUNS = _words("family daily weekly monthly yearly supply reply jelly belly bully")
MODALS = _words("will would shall should can could may might must cannot do does did")
GRAMMAR = DETERMINERS | PREPOSITIONS | AUXILIARIES | CONJUNCTIONS | ADVERBS

_STORY = (
    "buy sell give take get make eat drink read write walk run drive ride travel fly swim bike pay spend earn "
    "save owe own need want like love use put place fill empty pour mix bake cook cut slice pick pack plant grow "
    "collect gather receive return lose find keep hold carry bring send share leave arrive start finish begin end "
    "stop play win score work study learn teach sleep wake live visit meet call ask tell say help build paint "
    "draw clean wash fix break open close fit reach cover contain include consist come go stay become turn move "
    "lift throw catch jump climb watch listen see look hear feel think know believe decide plan hope expect try "
    "choose order deliver ship charge rent borrow lend donate invest produce hire feed weigh measure last happen "
    "occur belong represent show form create complete attend join serve store stack hang wear drop raise rise "
    "fall pass care let allow park load unload trade exchange swap replace wait invite"
)
_PAST = (
    "bought sold gave given took taken got gotten made ate eaten drank drunk wrote written ran drove driven rode "
    "ridden flew flown swam swum paid spent put cut grew grown lost found kept held brought sent left began begun "
    "won taught slept woke woken met told said built drew drawn broke came went gone became threw thrown caught "
    "saw seen heard felt thought knew known chose chosen lent fed showed shown wore worn hung rose risen fell "
    "fallen dug"
)
STORY_VERBS = _verbs(_STORY) | _words(_PAST)
BARE_VERBS = _words(_STORY)
"""Forms that are nouns as well: a drink, orange paint."""
PLURALS = _words("people children men women")
"""Plurals without an s, whose verb is in the bare form."""
RESULTS = _words(
    "gives give giving makes make making leaves leave leaving left yields yield yielding becomes means mean"
)
"""Verbs of the story that are an equals sign after a calculation."""
