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
    {"role": "user", "content": "Go on"},
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


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("1.role", {"role": "narrator", "content": "x"}),
        ("1.role", {"role": "tool", "content": "x", "tool_call_id": "1"}),
        ("1.role", {"role": "function", "content": "x", "name": "f"}),
        ("1.role", {"content": "x"}),
        ("1.content", {"role": "user"}),
        ("1.content", {"role": "assistant", "content": None}),
        ("1.content", {"role": "user", "content": []}),
        ("1.content", {"role": "user", "content": {"text": "x"}}),
        ("1.content.0.text", {"role": "user", "content": [{"type": "text"}]}),
        ("1.content.0.type", {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]}),
        ("1.content.1.type", {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}),
        ("1.content.0.user", {"role": "user", "content": [{"type": "text", "text": "x", "user": "me"}]}),
        ("1.tool_calls", {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}),
        ("1.function_call", {"role": "assistant", "content": "x", "function_call": {"name": "f"}}),
        ("1.refusal", {"role": "assistant", "content": "x", "refusal": "no"}),
        ("1.name", {"role": "user", "content": "x", "name": "me"}),
    ],
)  # fmt: skip
def test_what_the_model_would_not_read_of_a_message_is_refused_and_named(
    server: Serving, place: str, message: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError, match=rf"messages\.{place}") as caught:
        server.chat([{"role": "user", "content": "Hello"}, message])
    assert caught.value.param.startswith("messages")


SOME = "{% for m in WHICH %}[{{ m.role }}]{{ m.content | trim }}<eos>{% endfor %}[assistant]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "place"),
    [
        ("messages if m.role != 'system'", 0),
        ("messages if m.role != 'assistant'", 2),
        ("messages[-1:]", 0),
        ("messages[:1]", 1),
    ],
)
def test_a_template_that_leaves_out_a_message_is_400_though_another_has_the_same_text(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, which: str, place: int
) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = SOME.replace("WHICH", which)
    talk = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant", "user")]
    with serving(writer, own) as server, pytest.raises(BadRequestError, match=rf"messages\.{place}\.content"):
        server.chat(talk)


def test_a_template_may_trim_join_and_move_what_it_reads(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The first system message before the last user's text, names, and thoughts of earlier turns left out."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% for m in messages[1:] %}[{{ m.name or m.role }}]"
        "{% if loop.last %}{{ messages[0].content | trim }} {% endif %}"
        "{{ m.content.split('</think>')[-1] | trim }}{% endfor %}"
    )
    talk = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "", "name": "me"},
        {"role": "assistant", "content": "<think>long</think> Hi"},
        {"role": "user", "content": "Go on\n"},
    ]
    text = "[me][assistant]Hi[user]Be brief. Go on"
    with serving(writer, own) as server:
        answer = server.chat(talk, max_tokens=20)
    assert answer.usage.prompt_tokens == len(text)
    assert answer.choices[0].message.content == greedy(writer, own, own(text)["input_ids"], 20)


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
