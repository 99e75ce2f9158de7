"""What a body may not be; each is 400 in one line."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from graftlm.serve.protocol import MOST_STOPS, ChatRequest, CompletionRequest, GenerationRequest, read
from graftlm.serve.refusal import Refusal
from tests.serve.conftest import NAME, Serving

COMPLETION = {"model": NAME, "prompt": "Once"}
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
KINDS: list[tuple[type[GenerationRequest], dict[str, Any]]] = [(CompletionRequest, COMPLETION), (ChatRequest, CHAT)]


def refusal(kind: type[GenerationRequest], body: bytes | dict[str, Any]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(kind, json.dumps(body).encode() if isinstance(body, dict) else body, "application/json")
    assert caught.value.status == 400
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    json.dumps(caught.value.body, ensure_ascii=False).encode()
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "some/model", "prompt": "\\ud800"}',
        b'{"model": "some/model", "prompt": "x", "user": "\\udc00\\ud800"}',
        b'{"model": "some/model", "prompt": "x", "\\ud83d": 1}',
        b'{"model": "some/model", "prompt": "\xff"}',
        '{"model": "some/model", "prompt": "x"}'.encode("utf-16"),
        b'{"model": "some/model", "prompt": "x", "metadata": ' + b"[" * 100_000,
        b'{"model": "some/model", "prompt": "x", "metadata": NaN}',
        b'{"model": "some/model", "prompt": "x", "seed": ' + b"9" * 100_000 + b"}",
        b'{"model": "some/model", "prompt": "x"} {}',
        b"\x00",
        b"",
    ],
)
def test_bytes_that_are_no_json_are_400_whatever_key_they_are_at(server: Serving, body: bytes) -> None:
    assert str(refusal(CompletionRequest, body)).startswith("the body is not JSON: ")
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, _, text = server.request("POST", path, body)
        assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(("kind", "whole"), KINDS)
def test_wrong_types_everywhere_are_refused_and_named(kind: type[GenerationRequest], whole: dict[str, Any]) -> None:
    values = [{}, {"a": 1}, [[]], [[[1]]], [None], [1.5], ["a", 1], "", True, -1, 2**70, 1e300, -1e300, 1.5, "1"]
    refused = 0
    for name in kind.model_fields:
        for value in values:
            try:
                read(kind, json.dumps(whole | {name: value}).encode(), "application/json")
            except Refusal as error:
                refused += 1
                assert error.status == 400 and name in str(error) and str(error).isprintable(), (name, value)
    assert refused > 10 * len(kind.model_fields)


@pytest.mark.parametrize("name", ["frequency_penalty", "best_of", "echo", "logit_bias", "response_format", "tools"])
def test_what_has_an_effect_is_refused_and_named(name: str) -> None:
    for value in (2, True, "x", [1], {"a": 1}):
        if name == "echo" and value is True:
            continue
        assert refusal(CompletionRequest, COMPLETION | {name: value}).param == name
    assert refusal(CompletionRequest, COMPLETION | {"echo": True}).param == "echo"


@pytest.mark.slow
def test_one_of_a_hundred_thousand_faults_is_told_at_once() -> None:
    """An error for each took seconds, in which no other client was answered."""
    many = 300_000
    bodies: list[dict[str, Any]] = [
        COMPLETION | {f"key{number}": 1 for number in range(many)},
        COMPLETION | {"stream": True, "stream_options": {f"key{number}": 1 for number in range(many)}},
        COMPLETION | {"prompt": [None] * many},
        COMPLETION | {"prompt": [[None]] * many},
        COMPLETION | {"prompt": [[1], *["a"] * many]},
        COMPLETION | {"stop": [1] * many},
        COMPLETION | {"stop": "x" * 3_000_000},
        COMPLETION | {"x" * 3_000_000: 1},
    ]
    chats: list[dict[str, Any]] = [
        CHAT | {"messages": [{}] * many},
        CHAT | {"messages": [{"role": "user", "content": [{}] * many}]},
        CHAT | {"messages": [{"role": "user", "content": "x"} | {f"key{number}": 1 for number in range(many)}]},
    ]
    for kind, body in [(CompletionRequest, body) for body in bodies] + [(ChatRequest, body) for body in chats]:
        text = json.dumps(body).encode()
        begun = time.process_time()
        refusal(kind, text)
        assert time.process_time() - begun < 1


def test_as_many_stop_texts_as_evaluations_have_are_taken() -> None:
    for count in (5, MOST_STOPS):
        body = json.dumps(COMPLETION | {"stop": [str(number) for number in range(count)]}).encode()
        assert len(read(CompletionRequest, body, "application/json").stops) == count
    assert refusal(CompletionRequest, COMPLETION | {"stop": ["a"] * (MOST_STOPS + 1)}).param == "stop"
