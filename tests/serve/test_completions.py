"""/v1/completions, asked by the official client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from openai import BadRequestError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftlm.serve.sequence import Piece
from graftlm.serve.writing import Writing
from tests.conftest import VOCABULARY, tiny_model
from tests.serve.conftest import NAME, Serving, ascii_model, greedy, serving

PROMPTS = ["Once", "A much longer prompt, for padding", "x", "The root of a graft"]


def streamed(chunks: Any) -> tuple[str, list[Any]]:
    kept = list(chunks)
    return "".join(chunk.choices[0].text for chunk in kept if chunk.choices), kept


def test_greedy_text_is_that_of_model_generate_and_usage_counts_it(
    server: Serving, writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = server.complete("Once", max_tokens=30)
    assert answer.choices[0].text == greedy(writer, tokenizer, tokenizer("Once")["input_ids"], 30)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.object, answer.model) == ("text_completion", NAME)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 30, 34)


def test_a_text_ends_at_the_end_of_sequence_token(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ascii_model(tokenizer)
    last = tokenizer("Once")["input_ids"]
    with torch.no_grad():
        ids = model.generate(torch.tensor([last]), max_new_tokens=12, do_sample=False)[0, 4:].tolist()
    end = next(token for token in ids if token != ids[0])
    model.generation_config.eos_token_id = [end, 257]
    with serving(model, tokenizer) as server:
        answer = server.complete("Once", max_tokens=12)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text == tokenizer.decode(ids[: ids.index(end)])
        assert answer.usage.completion_tokens == ids.index(end) + 1


@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 5}, {"temperature": 1.5, "seed": 5, "n": 3}])
def test_streamed_pieces_join_to_the_text_that_comes_in_one(server: Serving, options: dict[str, Any]) -> None:
    whole = server.complete(max_tokens=25, **options)
    chunks = list(server.complete(max_tokens=25, stream=True, **options))
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own] == [None] * (len(own) - 1) + ["length"]
        assert len(own) == 25
    assert all(chunk.usage is None and chunk.id == chunks[0].id for chunk in chunks)


@pytest.mark.slow
def test_bytes_that_are_no_text_stream_as_they_are_decoded(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    with serving(model, tokenizer) as server:
        whole = server.complete("Once", max_tokens=40).choices[0].text
        assert streamed(server.complete("Once", max_tokens=40, stream=True))[0] == whole
        assert whole == greedy(model, tokenizer, tokenizer("Once")["input_ids"], 40)


def test_a_whole_answer_wakes_the_event_loop_for_each_row_and_not_for_each_token(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = []
    following = Writing.next

    async def counted(writing: Writing) -> list[Piece]:
        woken.append(writing)
        return await following(writing)

    monkeypatch.setattr(Writing, "next", counted)
    assert len(server.complete(n=3, max_tokens=20).choices) == 3
    assert len(woken) == 3


def test_usage_comes_last_in_a_stream_that_asks_for_it(server: Serving) -> None:
    *chunks, last = server.complete(max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 5)
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_done(server: Serving) -> None:
    body = {"model": NAME, "prompt": "Once", "max_tokens": 2, "stream": True}
    status, headers, text = server.request("POST", "/v1/completions", json.dumps(body))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_stop_text_across_tokens_ends_the_text_and_does_not_leak_into_a_stream(
    server: Serving, width: int, logprobs: int | None
) -> None:
    full = server.complete(max_tokens=40).choices[0].text
    stop = next(full[at : at + width] for at in range(10, 40) if full.index(full[at : at + width]) == at)
    options = {"max_tokens": 40, "stop": ["nowhere in it", stop], "logprobs": logprobs}
    answer = server.complete(**options)
    assert answer.choices[0].text == full[: full.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == full.index(stop) + width
    text, chunks = streamed(server.complete(stream=True, **options))
    assert text == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"
    if logprobs is not None:
        assert "".join(answer.choices[0].logprobs.tokens) == text
        assert [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens] == list(text)


def test_a_stop_text_that_never_ends_is_part_of_the_output(server: Serving) -> None:
    full = server.complete(max_tokens=12).choices[0].text
    answer = server.complete(max_tokens=12, stop=full[-3:] + "\x00")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (full, "length")


def test_a_special_token_as_stop_text_ends_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    model.generation_config.suppress_tokens = [number for number in range(VOCABULARY) if number not in (40, 256)]
    with serving(model, tokenizer) as server:
        options = {"max_tokens": 40, "temperature": 1, "seed": 1}
        free = server.complete(**options)
        ended = server.complete(**options, stop="<bos>")
    assert (free.choices[0].finish_reason, ended.choices[0].finish_reason) == ("length", "stop")
    assert free.choices[0].text.startswith(ended.choices[0].text)
    assert set(free.choices[0].text) == {tokenizer.decode([40])}  # special tokens are no text
    assert ended.usage.completion_tokens == len(ended.choices[0].text) + 1 < 40


@pytest.mark.slow
def test_a_seed_repeats_a_text_and_choices_differ(server: Serving) -> None:
    def texts(**options: Any) -> list[str]:
        answer = server.complete(temperature=1, max_tokens=20, **options)
        return [choice.text for choice in answer.choices]

    three = texts(seed=11, n=3)
    assert len(set(three)) == 3
    assert texts(seed=11, n=3) == three
    assert texts(seed=11) == three[:1]
    assert texts(seed=12) != texts(seed=11)
    assert texts() != texts()


def test_a_small_nucleus_is_greedy(server: Serving) -> None:
    assert server.complete(temperature=1, top_p=0, max_tokens=9).choices == server.complete(max_tokens=9).choices


@pytest.mark.slow
def test_prompts_may_be_several_texts_or_tokens(server: Serving, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    alone = [server.complete(prompt, max_tokens=8).choices[0].text for prompt in PROMPTS]
    for prompts in (PROMPTS, ids):
        answer = server.complete(prompts, max_tokens=8, n=2)
        assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]
        assert [choice.index for choice in answer.choices] == list(range(8))
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert server.complete(ids[1], max_tokens=8).choices[0].text == alone[1]


def test_log_probabilities_are_a_plain_log_softmax_of_the_logits(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(seed=3)
    prompt = tokenizer("Once")["input_ids"]
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        logprobs = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    written = ids[0, len(prompt) :].tolist()

    def name(token: int) -> str:
        text = tokenizer.decode([token], skip_special_tokens=True)
        return text if text and "�" not in text else tokenizer.convert_ids_to_tokens(token)

    with serving(model, tokenizer) as server:
        choice = server.complete("Once", max_tokens=12, logprobs=4, temperature=0).choices[0]
        hot = server.complete("Once", max_tokens=1, logprobs=0, temperature=2, seed=1).choices[0].logprobs
    found = choice.logprobs
    assert found.token_logprobs == pytest.approx(
        [row[token].item() for row, token in zip(logprobs, written, strict=True)], abs=1e-5
    )
    assert found.tokens == [name(token) for token in written]
    assert found.text_offset[0] == 0
    assert found.text_offset == sorted(found.text_offset)
    for place, row in enumerate(logprobs):
        values, tokens = row.topk(4)
        expected = {name(token): value for token, value in zip(tokens.tolist(), values.tolist(), strict=True)}
        assert found.top_logprobs[place] == pytest.approx(expected, abs=1e-5)
    first = {name(token): value.item() for token, value in enumerate(logprobs[0])}
    assert hot.token_logprobs[0] == pytest.approx(first[hot.tokens[0]], abs=1e-5)  # not that of temperature 2


def test_log_probabilities_stream_with_the_text_they_belong_to(server: Serving) -> None:
    whole = server.complete(max_tokens=10, logprobs=2).choices[0]
    chunks = list(server.complete(max_tokens=10, logprobs=2, stream=True))
    assert [chunk.choices[0].logprobs.tokens for chunk in chunks] == [[letter] for letter in whole.text]
    assert [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset] == list(range(10))
    values = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]
    assert values == whole.logprobs.token_logprobs


@pytest.mark.slow
def test_concurrent_requests_of_all_kinds_give_what_each_gives_alone(server: Serving) -> None:
    kinds: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": 10 + 7 * number, **options}
        for number, prompt in enumerate(PROMPTS)
        for options in ({}, {"temperature": 1.2, "seed": number}, {"temperature": 0.7, "top_p": 0.8, "seed": 9})
    ]
    alone = [server.complete(**kind).choices[0].text for kind in kinds]
    with ThreadPoolExecutor(len(kinds)) as pool:
        together = list(pool.map(lambda kind: server.complete(**kind).choices[0].text, kinds))
    assert together == alone


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 9}, "logprobs"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": "one"}, "seed"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "."}, "suffix"),
        ({"extra_body": {"top_k": 5}}, "top_k"),
        ({"extra_body": {"prompt": []}}, "prompt"),
        ({"extra_body": {"prompt": ""}}, "prompt"),
        ({"extra_body": {"prompt": [5, 259]}}, "prompt"),
        ({"extra_body": {"prompt": [5, -1]}}, "prompt"),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
def test_what_is_wrong_or_would_change_the_output_unseen_is_refused(
    server: Serving, options: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(BadRequestError) as caught:
        server.complete(**options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert not any(word in str(caught.value) for word in ("constrained", "list["))
    assert "should be a valid string" not in str(caught.value)


def test_what_changes_nothing_is_taken(server: Serving) -> None:
    options = {
        "user": "me",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "best_of": 1,
        "echo": False,
        "suffix": None,
    }
    answer = server.complete(max_tokens=4, **options, extra_body={"metadata": {"a": "b"}, "logit_bias": {}})
    assert answer.choices == server.complete(max_tokens=4).choices
