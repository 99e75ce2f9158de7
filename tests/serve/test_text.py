from __future__ import annotations

import random
import time

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from graftlm.serve.text import TextWriter, held_length

TEXT = "Grüße — 木の根 🌳, a graft of a graft; END"


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def pieces(tokenizer: PreTrainedTokenizerFast, text: str, *stop: str) -> tuple[list[str], TextWriter]:
    writer = TextWriter(tokenizer, stop)
    released = []
    for token in tokens_of(tokenizer, text):
        released.append(writer.push(token))
        if writer.stopped:
            break
    return [*released, writer.finish()], writer


def test_pieces_join_to_the_text_and_no_character_is_broken(tokenizer: PreTrainedTokenizerFast) -> None:
    released, _ = pieces(tokenizer, TEXT)
    assert "".join(released) == TEXT
    assert not any("�" in piece for piece in released)


def test_bytes_that_are_no_text_decode_as_the_tokenizer_decodes_them(tokenizer: PreTrainedTokenizerFast) -> None:
    draw = random.Random(0)
    for _ in range(20):
        tokens = [draw.randrange(259) for _ in range(40)]
        writer = TextWriter(tokenizer)
        text = "".join(map(writer.push, tokens)) + writer.finish()
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["graft"], "Grüße — 木の根 🌳, a "),
        (["nowhere", "木の根", "の"], "Grüße — 木"),
        (["木の根", "根"], "Grüße — "),
        (["🌳"], "Grüße — 木の根 "),
        (["graft;"], "Grüße — 木の根 🌳, a graft of a "),
        (["G"], ""),
        (["END!"], TEXT),
    ],
)
def test_the_text_ends_before_the_first_stop_text_and_none_of_it_shows(
    tokenizer: PreTrainedTokenizerFast, stop: list[str], expected: str
) -> None:
    released, writer = pieces(tokenizer, TEXT, *stop)
    assert "".join(released) == expected
    assert writer.stopped == (expected != TEXT)


def test_what_may_begin_a_stop_text_is_held_until_it_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    released, _ = pieces(tokenizer, "aab abc", "abd", "bx")
    assert released[:7] == ["", "a", "", "ab ", "", "", "abc"]


def test_a_text_that_goes_on_from_another_keeps_its_first_space() -> None:
    """The decoders of Llama 2 and Mistral strip the first space of what they are given."""
    plain = Tokenizer(WordLevel({"▁the": 0, "▁a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    written = {}
    for name, before in (("goes on", [0]), ("stands alone", [])):
        writer = TextWriter(tokenizer, (), before)
        assert [writer.token_text(token) for token in (1, 2)] == [" a" if before else "a", "b"]
        written[name] = "".join(map(writer.push, [1, 2, 1])) + writer.finish()
    assert written == {"goes on": " ab a", "stands alone": "ab a"}


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [
        ("ab", ["abc"], 2),
        ("abc", ["abc"], 0),
        ("xaab", ["aabaa", "bc"], 3),
        ("x", [], 0),
        ("", ["a"], 0),
        ("b", ["b"], 0),
    ],
)
def test_held_length_is_the_longest_end_that_begins_a_stop_text(text: str, stop: list[str], length: int) -> None:
    assert held_length(text, stop) == length


def test_many_long_stop_texts_cost_little() -> None:
    stop = ["ab" * 499 + str(number) for number in range(64)]
    begun = time.process_time()
    assert held_length("x" * 8000 + "ab" * 3, stop) == 6
    assert time.process_time() - begun < 0.05


def test_it_does_not_matter_how_the_text_is_cut_into_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    stop = ("木の根", "の", "graft")
    writer = TextWriter(tokenizer, stop)
    assert writer._add(TEXT) == "".join(pieces(tokenizer, TEXT, *stop)[0])
