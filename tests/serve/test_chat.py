"""/v1/chat/completions, asked by the official client."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.serve.conftest import NAME, Serving, greedy, serving

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None},
    {"role": "user", "content": "Go on", "name": "me"},
]


def test_an_answer_follows_the_tokenizers_own_template(
    server: Serving, writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "[system]Be brief.<eos>[user]Hello<eos>[assistant]Hi<eos>[user]Go on<eos>[assistant]"
    answer = server.chat(TALK, max_completion_tokens=20)
    assert answer.choices[0].message.content == greedy(writer, tokenizer, tokenizer(text)["input_ids"], 20)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(tokenizer(text)["input_ids"])
    developer = [{**TALK[0], "role": "developer"}, *TALK[1:]]
    assert server.chat(developer, max_tokens=20).choices[0].message.content == answer.choices[0].message.content


def test_streamed_deltas_join_to_the_message(server: Serving) -> None:
    options = {"max_tokens": 15, "temperature": 1, "seed": 3, "n": 2}
    whole = server.chat(**options)
    *chunks, last = server.chat(stream=True, stream_options={"include_usage": True}, **options)
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own if each.finish_reason] == ["length"]
    assert last.usage == whole.usage


def test_without_a_limit_a_chat_goes_on_to_the_end_of_the_context(server: Serving) -> None:
    answer = server.chat("x" * 200)
    assert answer.usage.total_tokens == 256
    assert answer.choices[0].finish_reason == "length"


def test_log_probabilities_come_in_the_form_of_chats(server: Serving) -> None:
    choice = server.chat(max_tokens=6, logprobs=True, top_logprobs=3).choices[0]
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
    bare = server.chat(max_tokens=6, logprobs=True).choices[0].logprobs.content
    assert [(each.token, each.logprob, each.top_logprobs) for each in bare] == [
        (each.token, each.logprob, []) for each in entries
    ]
    chunks = server.chat(max_tokens=6, logprobs=True, top_logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [entry for part in parts for entry in part.content] == entries
    assert server.chat(max_tokens=6).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"top_logprobs": 2}, None),
        ({"max_tokens": 3, "max_completion_tokens": 3}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"content": []}, "messages"),
        ({"content": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ],
)
def test_what_is_not_understood_is_refused(server: Serving, options: dict[str, Any], param: str | None) -> None:
    with pytest.raises(BadRequestError) as caught:
        server.chat(**options)
    assert (caught.value.param or "").partition(".")[0] == (param or "")


def test_what_changes_nothing_is_taken(server: Serving) -> None:
    options: dict[str, Any] = {"tools": [], "response_format": {"type": "text"}, "store": False, "metadata": {"a": "b"}}
    assert server.chat(max_tokens=3, **options).choices == server.chat(max_tokens=3).choices


def test_a_chat_without_a_template_is_refused_and_says_why(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with serving(writer, plain) as server, pytest.raises(BadRequestError, match="no chat template"):
        server.chat()


def test_messages_that_the_template_refuses_are_the_clients_fault(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with serving(writer, strict) as server, pytest.raises(BadRequestError, match="roles must alternate"):
        server.chat()


def test_models_are_listed_and_another_one_is_not_there(server: Serving) -> None:
    assert [model.id for model in server.client.models.list()] == [NAME]
    assert server.client.models.retrieve(NAME).owned_by == "graftlm"
    with pytest.raises(NotFoundError, match="no model 'gpt-4o' here"):
        server.client.models.retrieve("gpt-4o")
    with pytest.raises(NotFoundError) as caught:
        server.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
