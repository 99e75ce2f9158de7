"""What a client may not do, and what it is told."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import APIError, APIStatusError, AuthenticationError, BadRequestError, InternalServerError, RateLimitError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.serve.conftest import NAME, Serving, Watched, eventually, held, serving

KEY = "clé-secrète"


def test_a_full_queue_is_429_and_says_when_to_come_again(watched: Watched, tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(watched, tokenizer, max_queue=2, max_batch_size=1) as server, ThreadPoolExecutor() as pool:
        with held(server, watched) as running:
            waiting = pool.submit(server.complete, n=2, max_tokens=2)
            eventually(lambda: len(server.engine.waiting) == 2)
            assert server.metric("graftlm_queue_length") == 2
            with pytest.raises(RateLimitError) as caught:
                server.complete()
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "1"
        assert len(running.result().choices + waiting.result().choices) == 3
        assert len(server.complete().choices) == 1


def test_more_sequences_than_the_queue_ever_holds_are_400(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(writer, tokenizer, max_queue=4) as server:
        with pytest.raises(BadRequestError, match="6 sequences are asked for at once, but at most 4"):
            server.complete(["a", "b", "c"], n=2)
        with pytest.raises(BadRequestError, match="5 sequences"):
            server.chat(n=5)


def test_a_body_that_is_too_large_is_413_with_or_without_its_length(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(writer, tokenizer, max_body_bytes=1000) as server:
        with pytest.raises(APIStatusError) as caught:
            server.complete("x" * 1000)
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        body = json.dumps({"model": NAME, "prompt": "x" * 1000}).encode()
        parts: Any = iter([body[:500], body[500:]])  # sent in chunks
        status, _, text = server.request("POST", "/v1/completions", parts)
        assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
        assert len(server.complete("x" * 100).choices) == 1


def test_bodies_in_memory_are_limited_together_and_freed_when_answered(
    watched: Watched, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.serve.gate.MOST_BODIES", 2)
    body = json.dumps({"model": NAME, "prompt": "x", "max_tokens": 2, "user": "x" * 800})
    with serving(watched, tokenizer, max_body_bytes=1000) as server, ThreadPoolExecutor() as pool:
        with held(server, watched) as first:
            others = [pool.submit(server.request, "POST", "/v1/completions", body) for _ in range(2)]
            eventually(lambda: len(server.engine.waiting) == 2)
            status, headers, text = server.request("POST", "/v1/completions", body)
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(text)["error"]["message"] == "too many large requests are under way"
        assert len(first.result().choices[0].text) == 2
        assert [other.result()[0] for other in others] == [200, 200]
        assert [server.request("POST", "/v1/completions", body)[0] for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("in_chunks", [False, True])
def test_ten_megabytes_are_413_by_default_and_the_server_goes_on(server: Serving, in_chunks: bool) -> None:
    body = json.dumps({"model": NAME, "prompt": "x" * 10_000_000})
    sent: Any = iter([body[at : at + 2**16].encode() for at in range(0, len(body), 2**16)]) if in_chunks else body
    status, _, text = server.request("POST", "/v1/completions", sent)
    assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
    if not in_chunks:
        with pytest.raises(APIStatusError, match="larger than 4194304 bytes"):
            server.complete("x" * 10_000_000)
    assert len(server.complete(max_tokens=3).choices[0].text) == 3


def test_what_does_not_fit_the_model_is_400(server: Serving) -> None:
    with pytest.raises(BadRequestError, match="256 tokens, but the prompt has 250") as caught:
        server.complete("x" * 250, max_tokens=7)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError) as caught:
        server.chat("x" * 256)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert server.complete("x" * 250, max_tokens=6).usage.total_tokens == 256
    assert server.complete("x" * 250).usage.total_tokens == 256


def test_more_tokens_than_the_server_writes_are_400(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(writer, tokenizer, max_tokens_limit=10) as server:
        with pytest.raises(BadRequestError, match="at most 10"):
            server.complete(max_tokens=11)
        assert server.chat().usage.completion_tokens == 10
        assert server.complete().usage.completion_tokens == 10


@pytest.mark.slow
def test_a_request_that_takes_too_long_is_504_or_an_error_in_its_stream(
    watched: Watched, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(watched, tokenizer, request_seconds=1.0, max_batch_size=1) as server:
        watched.hold()
        stream = server.complete(max_tokens=250, stream=True)
        for streams in (False, True):
            with pytest.raises(APIStatusError) as caught:
                server.complete(stream=streams)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        with pytest.raises(APIError, match="not finished within 1 seconds"):
            list(stream)
        eventually(lambda: server.engine.active_count == 0 and not server.engine.waiting)
        watched.go()


def test_a_server_that_drains_finishes_what_it_has_and_takes_no_more(
    watched: Watched, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(watched, tokenizer, max_batch_size=1) as server, ThreadPoolExecutor() as pool:
        with held(server, watched) as running:
            waiting = pool.submit(server.complete, max_tokens=3)
            eventually(lambda: server.engine.waiting)
            server.engine.drain()
            with pytest.raises(InternalServerError, match="shutting down") as caught:
                server.complete()
            assert caught.value.status_code == 503
            status, _, text = server.request("GET", "/health")
            assert (status, json.loads(text)["status"]) == (503, "draining")
        assert [answer.result().usage.completion_tokens for answer in (running, waiting)] == [2, 3]


def test_a_server_that_ends_its_grace_fails_what_runs_and_what_waits(
    watched: Watched, tokenizer: PreTrainedTokenizerFast
) -> None:
    limits: dict[str, Any] = {"max_batch_size": 1, "grace_seconds": 0.01}
    with (
        serving(watched, tokenizer, **limits) as server,
        held(server, watched) as first,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(server.complete, max_tokens=3)
        eventually(lambda: server.engine.waiting)
        server.engine.drain()
        time.sleep(0.02)
        watched.go(1)
        for answer in (first, waiting):
            with pytest.raises(InternalServerError, match="shutting down"):
                answer.result()


def test_a_body_that_does_not_come_is_408(writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(writer, tokenizer, arrival_seconds=0.2) as server:
        status, _, text = server.request("POST", "/v1/completions", "{", {"Content-Length": "10"})
        assert (status, json.loads(text)["error"]["type"]) == (408, "invalid_request_error")


def test_without_the_key_nothing_but_health_is_told(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(writer, tokenizer, api_key=KEY) as server:
        for header in (None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer ", f"Bearer {KEY}x"):
            headers = {} if header is None else {"Authorization": header}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
                status, _, text = server.request("GET", path, headers=headers)
                assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(AuthenticationError, match="the API key is wrong"):
            server.complete()
        assert server.request("GET", "/health")[0] == 200
        # Of a stranger's body nothing is kept: the answer does not wait for it.
        assert server.request("POST", "/health", "{", {"Content-Length": "1000"})[0] == 405
        right = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
        assert server.request("GET", "/metrics", headers=right)[0] == 200
        assert server.request("GET", "/v1/models", headers={**right, "Host": "elsewhere.org"})[0] == 200


@pytest.mark.parametrize("host", ["elsewhere.org", "elsewhere.org:80", "127.0.0.1.elsewhere.org", ""])
def test_without_a_key_a_name_that_is_not_this_machine_is_refused(server: Serving, host: str) -> None:
    status, _, text = server.request("GET", "/v1/models", headers={"Host": host})
    assert (status, json.loads(text)["error"]["code"]) == (403, "bad_host")
    assert server.new_client(name="localhost").base_url.host == "localhost"


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_without_a_key_this_machines_own_names_are_taken(server: Serving, host: str) -> None:
    assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", "{not json", 400),
        ("POST", "/v1/completions", "[]", 400),
        ("POST", "/v1/completions", "", 400),
        ("POST", "/v1/chat/completions", '{"model": "some/model"}', 400),
        ("POST", "/v1/completions", '{"model": "some/model", "prompt": "x", "temperature": NaN}', 400),
        ("GET", "/v1/completions", None, 405),
        ("GET", "/v1/nowhere", None, 404),
    ],
)
def test_every_error_has_openais_form(server: Serving, method: str, path: str, body: str | None, status: int) -> None:
    got, headers, text = server.request(method, path, body)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}


def test_a_web_page_cannot_post_without_asking_the_browser(server: Serving) -> None:
    body = json.dumps({"model": NAME, "prompt": "x"})
    status, _, text = server.request("POST", "/v1/completions", body, {"Content-Type": "text/plain"})
    assert status == 400 and "Content-Type: application/json" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_every_response_has_the_clients_own_request_id_or_a_new_one(server: Serving, stream: bool) -> None:
    body = json.dumps({"model": NAME, "prompt": "x", "max_tokens": 2, "stream": stream})
    calls = [("GET", "/health", None), ("GET", "/v1/nowhere", None), ("POST", "/v1/completions", "{"),
             ("POST", "/v1/completions", body)]  # fmt: skip
    for call in calls:
        assert server.request(*call, {"X-Request-Id": "mine-1"})[1]["x-request-id"] == "mine-1"
        made = {server.request(*call, {"X-Request-Id": bad})[1]["x-request-id"] for bad in ("", "a b", "x" * 129)}
        assert len(made) == 3 and all(each.startswith("req_") for each in made)
    assert server.complete(max_tokens=1)._request_id.startswith("req_")
    with pytest.raises(BadRequestError) as caught:
        server.complete(n=0)
    assert caught.value.request_id.startswith("req_")


def test_an_error_of_our_own_is_500_in_openais_form_and_the_server_goes_on(
    writer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(writer, tokenizer) as server:
        monkeypatch.setattr(server.engine.metrics, "render", None)
        status, headers, text = server.request("GET", "/metrics")
        assert status == 500 and set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        assert len(server.complete(max_tokens=3).choices[0].text) == 3
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert f"graftlm: request {headers['x-request-id']} failed, the server goes on: TypeError" in err


def test_health_and_metrics_say_what_happened(writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(writer, tokenizer) as server:
        server.complete(["Once", "more"], n=2, max_tokens=5)
        server.request("GET", "/v1/nowhere")
        status, _, text = server.request("GET", "/health")
        assert status == 200
        assert json.loads(text) == {"status": "ok", "model": NAME, "queue_length": 0, "active": 0}
        assert server.metric("graftlm_prompt_tokens_total") == 8
        assert server.metric("graftlm_generated_tokens_total") == 20
        assert server.metric("graftlm_first_token_seconds_count") == 4
        assert server.metric('graftlm_requests_total{endpoint="/v1/completions",status="200"}') == 1
        assert server.metric('graftlm_requests_total{endpoint="other",status="404"}') == 1
        assert server.metric('graftlm_request_seconds_count{endpoint="/v1/completions"}') == 1
        assert server.metric("graftlm_batch_size_sum") == 4
