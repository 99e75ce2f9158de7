"""The tagger against labels by hand, its invariants, and the language model's tagger against a server of the test's.

data/categories.tsv has chains written for it and labelled before the rules were; errors in the half "held out" were not
looked at. Both halves are by the hand that wrote the rules, so they flatter them. Fairer is the figure of chains by
others: data/categories_gsm_symbolic.tsv has labels, a letter a word, of what reasoning-gym makes (gsm_symbolic, 13
training problems without their last line), given before the rules were run on them. The rules' first version reached
0.954 and a kappa of 0.937 there; today's followed a look at other problems of that data set, which share templates.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.pruning.categories import (
    CATEGORIES,
    COREFERENCE,
    ENTITY,
    GRAMMAR,
    META,
    SYMBOLIC,
    VERBAL,
    Tagged,
    agreement,
    categories_of_tokens,
    survival,
    tag_chain,
    words_of,
)
from graftlm.pruning.language_model_tagger import LanguageModelTagger, TaggingError
from graftlm.tasks.reasoning import Reasoning

DATA = Path(__file__).parent / "data"
SPACES = {"": "", "space": " ", "newline": "\n"}
LETTERS = {"s": SYMBOLIC, "v": VERBAL, "e": ENTITY, "c": COREFERENCE, "m": META, "g": GRAMMAR}
CHAIN = "Mia has 3 pens, so she needs 2 more.\nLet's add: 3 + 2 = 5."


def labelled(half: str) -> list[tuple[str, list[Tagged]]]:
    """Chains of the half, with the words as labelled by hand."""
    chains: dict[str, tuple[str, list[Tagged]]] = {}
    with (DATA / "categories.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["half"] == half:
                text, words = chains.get(row["chain"], ("", []))
                start = len(text) + len(SPACES[row["before"]])
                text += SPACES[row["before"]] + row["word"]
                chains[row["chain"]] = text, [*words, Tagged(start, len(text), row["word"], row["category"])]
    return list(chains.values())


def labelled_gsm() -> list[tuple[str, list[Tagged]]]:
    problems = Reasoning("reasoning-gym:gsm_symbolic").problems("train", 13)
    found = []
    with (DATA / "categories_gsm_symbolic.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            text = problems[int(row["problem"])]["metadata"]["answer_cot"].partition("\n####")[0]
            spans = zip(words_of(text), row["categories"], strict=True)
            found.append((text, [Tagged(a, b, text[a:b], LETTERS[letter]) for (a, b), letter in spans]))
    return found


def measured(chains: list[tuple[str, list[Tagged]]]) -> tuple[float, float, int]:
    by_hand, by_rule = [], []
    for place, (text, words) in enumerate(chains):
        shift = 10_000 * place
        categories = categories_of_tokens(text, [word[:2] for word in words])
        for word, category in zip(words, categories, strict=True):
            moved = word._replace(start=word.start + shift, end=word.end + shift)
            by_hand.append(moved)
            by_rule.append(moved._replace(category=category))
    return agreement(by_hand, by_rule)


# -- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["rules", "held out"])
def test_the_rules_agree_with_the_labels(half: str) -> None:
    share, kappa, words = measured(labelled(half))
    assert words > 200
    assert share > 0.98 and kappa > 0.98  # measured: 1.000 and 1.000; held out 0.998 and 0.997


@pytest.mark.slow
def test_the_rules_agree_with_the_labels_of_chains_by_others() -> None:
    share, kappa, words = measured(labelled_gsm())
    assert words > 800
    assert share > 0.95 and kappa > 0.94  # measured: 0.971 and 0.960


def test_the_labels_know_every_category() -> None:
    for half in ("rules", "held out"):
        assert {word.category for _, words in labelled(half) for word in words} == set(CATEGORIES)


@pytest.mark.parametrize(
    "text", ["", " \n", CHAIN, "a\u0301 😀 数学 \\frac{1}{2}\\\\ ≤ x’s", "((", "))", "---", "**3**\t'"]
)
def test_every_character_is_in_one_word(text: str) -> None:
    covered = [place for word in tag_chain(text) for place in range(word.start, word.end)]
    assert covered == [place for place, character in enumerate(text) if not character.isspace()]
    assert all(word.text == text[word.start : word.end] and word.category in CATEGORIES for word in tag_chain(text))


def test_any_text_is_covered() -> None:
    rng = random.Random(0)
    pieces = [*"aIxb 13.,:;()[]{}$%*_-/'’\\\n=<", "that", "left", "in order to", "let's", "½", "é", "我", " "]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randrange(40)))
        covered = [place for word in tag_chain(text) for place in range(word.start, word.end)]
        assert covered == [place for place, character in enumerate(text) if not character.isspace()]


def categories(text: str) -> dict[str, str]:
    return {word.text: word.category for word in tag_chain(text)}


def test_markers_of_several_words_are_one_category() -> None:
    for marker in ("let's", "Let us", "in order to", "we need to find", "As a result"):
        assert {word.category for word in tag_chain(marker)} == {META}, marker
    assert {word.category for word in tag_chain("in total")} == {VERBAL}
    assert [word.text for word in tag_chain("Let’s add")] == ["Let’s", "add"]


def test_that_refers_back_only_as_a_pronoun() -> None:
    assert categories("She needs twice that amount")["that"] == COREFERENCE
    assert categories("That is 5")["That"] == COREFERENCE
    assert categories("the pen that he bought")["that"] == GRAMMAR
    assert categories("half of it, that is 5")["that"] == META


def test_left_is_a_remainder_or_a_verb() -> None:
    assert categories("5 apples are left.")["left"] == VERBAL
    assert categories("She left the park.")["left"] == GRAMMAR


def test_verbs_of_the_story_may_be_nouns() -> None:
    assert categories("He will drink it")["drink"] == GRAMMAR
    assert categories("a grape drink was spilled")["drink"] == ENTITY


def test_signs_are_maths_only_in_maths() -> None:
    assert categories("5 feet - 3 feet")["-"] == SYMBOLIC
    assert categories("- 5 feet")["-"] == GRAMMAR
    assert categories("a 5-minute walk")["-"] == GRAMMAR
    assert categories("**12** pens")["*"] == GRAMMAR
    assert categories("2(x + 1)")["("] == SYMBOLIC
    assert categories("(two pens)")["("] == GRAMMAR
    assert categories("Point A is odd")["A"] == SYMBOLIC
    assert categories("A pen")["A"] == GRAMMAR


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_get_the_category_of_most_of_their_characters() -> None:
    text = "Mia has 3 pens"
    offsets = [(0, 3), (3, 7), (7, 9), (7, 8), (9, 12), (12, 14), (0, 0), (6, 9), (8, 14)]
    found = [ENTITY, GRAMMAR, SYMBOLIC, GRAMMAR, ENTITY, ENTITY, GRAMMAR, GRAMMAR, ENTITY]
    assert categories_of_tokens(text, offsets) == found
    words = [word._replace(category=META) for word in tag_chain(text)]
    assert categories_of_tokens(text, [(0, 3)], words) == [META]


def test_tokens_of_a_tokenizer_are_those_of_their_words(tokenizer: PreTrainedTokenizerBase) -> None:
    offsets = tokenizer(CHAIN, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    found = categories_of_tokens(CHAIN, offsets)
    of_word = {place: word.category for word in tag_chain(CHAIN) for place in range(word.start, word.end)}
    assert found == [of_word.get(start, GRAMMAR) for start, _ in offsets]


def test_tokens_outside_of_the_text_are_refused() -> None:
    with pytest.raises(InputError, match=r"token at characters \(0, 9\)"):
        categories_of_tokens("pen", [(0, 9)])


# -- agreement and survival -----------------------------------------------------------------------------------------


def tagged(letters: str) -> list[Tagged]:
    return [Tagged(place, place + 1, "x", LETTERS[letter]) for place, letter in enumerate(letters)]


def test_agreement_is_the_share_and_cohens_kappa() -> None:
    # By hand: equal are 7 of 10; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    share, kappa, words = agreement(tagged("ssssseeeee"), tagged("sssseeeess"))
    assert (share, words) == (0.7, 10)
    assert kappa == pytest.approx((0.7 - 0.5) / 0.5)
    assert agreement(tagged("sss"), tagged("sss")) == (1, 1, 3)
    assert agreement(tagged("se"), tagged("es")).kappa == -1


def test_agreement_needs_the_same_words() -> None:
    with pytest.raises(InputError, match="not of the same words"):
        agreement(tag_chain("3 pens"), tag_chain("4 pens"))
    with pytest.raises(InputError, match="no words"):
        agreement([], [])


def test_survival_keeps_the_highest_ranks() -> None:
    found = survival(
        [[1, 4, 2, 3], [2, 1]], [[GRAMMAR, SYMBOLIC, GRAMMAR, ENTITY], [SYMBOLIC, GRAMMAR]], [1, 0.5, 0.25, 0]
    )
    assert found == {SYMBOLIC: [1, 1, 1, 0], ENTITY: [1, 1, 0, 0], GRAMMAR: [1, 0, 0, 0]}
    assert list(found) == [SYMBOLIC, ENTITY, GRAMMAR]


def test_survival_keeps_the_later_of_equal_ranks_and_no_token_too_many() -> None:
    assert survival([[1, 1]], [[ENTITY, META]], [0.5]) == {ENTITY: [0], META: [1]}
    assert survival([range(100)], [[META] * 100], [0.07]) == {META: [0.07]}


def test_survival_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"keep ratio 1\.5"):
        survival([[1]], [[META]], [1.5])
    with pytest.raises(InputError, match=r"chains of \[1\] tokens"):
        survival([[1]], [[META, META]], [0.5])


# -- the language model's tagger ------------------------------------------------------------------------------------


class Endpoint:
    """A chat endpoint with the key "right" that gives the prepared answers in turn."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                if self.headers["Authorization"] == "Bearer wrong":
                    self.reply(401, {"error": {"message": "Incorrect API key provided"}})
                else:
                    message = {"role": "assistant", "content": endpoint.answers.pop(0)}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    self.reply(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                                     "choices": [choice]})  # fmt: skip

            def reply(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    thread = Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def answer(text: str, **changes: Any) -> str:
    """A right answer, but for the entries changed; None leaves one out."""
    entries: dict[str, Any] = {
        str(place): {"word": word.text, "why": "because", "category": word.category}
        for place, word in enumerate(tag_chain(text))
    }
    for place, change in changes.items():
        entries[place.removeprefix("n")] = change
    return json.dumps({place: entry for place, entry in entries.items() if entry is not None})


def test_a_language_model_tags_the_same_words(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.answers = [f"<think>{{hm}}</think>Here it is:\n```json\n{answer(CHAIN)}\n```"]
    found = LanguageModelTagger(endpoint.url, "small").tag(CHAIN)
    assert found == tag_chain(CHAIN)
    assert agreement(found, tag_chain(CHAIN)).kappa == 1
    (request,) = endpoint.requests
    assert (request["model"], request["temperature"]) == ("small", 0)
    assert CHAIN in request["messages"][-1]["content"] and "\n2 3\n" in request["messages"][-1]["content"]
    assert all(category in request["messages"][0]["content"] for category in CATEGORIES)
    assert endpoint.keys == ["Bearer none"]  # a key of the environment is not sent to any other server


def test_a_key_that_is_given_is_sent(endpoint: Endpoint) -> None:
    endpoint.answers = [answer("3 pens")]
    LanguageModelTagger(endpoint.url, "small", api_key="right").tag("3 pens")
    assert endpoint.keys == ["Bearer right"]


MALFORMED = {
    "no JSON": "The words are fine.",
    "cut off": answer(CHAIN)[:100],
    "invalid": '{"0": {"word": }}',
    "no word 3": answer(CHAIN, n3=None),
    "an entry that is no object": answer(CHAIN, n0=ENTITY),
    "another word": answer(CHAIN, n0={"word": "Ben", "category": ENTITY}),
    "an unknown category": answer(CHAIN, n0={"word": "Mia", "category": "noun"}),
    "a word too many": answer(CHAIN, n99={"word": "Mia", "category": ENTITY}),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_malformed_answers_are_asked_for_once_more(endpoint: Endpoint, malformed: str) -> None:
    endpoint.answers = [malformed, answer(CHAIN)]
    assert LanguageModelTagger(endpoint.url, "small").tag(CHAIN) == tag_chain(CHAIN)
    assert len(endpoint.requests) == 2
    assert "malformed" in endpoint.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_malformed_twice_is_an_error_of_one_line(endpoint: Endpoint, malformed: str) -> None:
    endpoint.answers = [malformed, malformed]
    with pytest.raises(TaggingError, match=r"^chain .Mia has 3 pens.*: small gave malformed answers twice: ") as caught:
        LanguageModelTagger(endpoint.url, "small").tag(CHAIN)
    assert "\n" not in str(caught.value)


def test_a_refused_key_is_the_users_error(endpoint: Endpoint) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1.*model small: .*Incorrect API key") as caught:
        LanguageModelTagger(endpoint.url, "small", api_key="wrong").tag("3 pens")
    assert "\n" not in str(caught.value)
    assert len(endpoint.requests) == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1, model small"):
        LanguageModelTagger("http://127.0.0.1:9/v1", "small").tag("3 pens")


def test_a_text_without_words_is_not_sent() -> None:
    assert LanguageModelTagger("http://127.0.0.1:9/v1", "small").tag(" \n") == []
