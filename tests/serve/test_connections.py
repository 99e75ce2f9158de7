"""Clients that send or read nothing, and those that come after them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.serve import ServeSettings
from graftlm.serve.connections import LONGEST_BACKLOG, OWN_FILES, room_for_connections
from graftlm.serve.server import NEWS
from tests.serve.conftest import NAME, SECONDS, Serving, Watched, eventually, serving

HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@contextmanager
def connected(server: Serving, first: bytes = b"", receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", server.port))
        client.sendall(first)
        yield client


def is_cut(client: socket.socket) -> bool:
    """Whether the other side has closed it; what comes before that is read and dropped."""
    client.settimeout(0.001)
    try:
        return client.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("before", [b"", HEALTH])
def test_half_a_head_is_cut_in_time_though_more_of_it_comes(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, before: bytes
) -> None:
    """On a new connection, and on one that has had an answer."""
    with serving(writer, tokenizer, arrival_seconds=0.4) as server, connected(server, before) as client:
        if before:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /health HTTP/1.1\r\n")
        begun = time.monotonic()
        while not is_cut(client):
            assert time.monotonic() - begun < SECONDS
            try:
                client.sendall(b"X-Slow: 1\r\n")
            except ConnectionError:
                break
            time.sleep(0.05)
        assert time.monotonic() - begun > 0.2


@pytest.mark.slow
def test_a_long_answer_is_no_reason_to_cut(watched: Watched, tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(watched, tokenizer, arrival_seconds=0.1) as server:
        stream = server.complete(max_tokens=40, stream=True)
        next(stream)
        watched.hold()
        time.sleep(0.5)
        watched.go()
        assert len(list(stream)) == 39


@pytest.mark.slow
def test_an_answer_that_is_not_read_is_cut(writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with serving(writer, tokenizer, arrival_seconds=0.5) as server:
        engine = server.engine
        answer = b"x" * 100_000
        engine.metrics.render = lambda: answer  # type: ignore[method-assign]
        with connected(server, request * 300, receive_buffer=4096) as client:
            time.sleep(1)
            received = 0
            while chunk := client.recv(2**20):
                received += len(chunk)
            assert 0 < received < 300 * len(answer)


def test_silent_connections_beyond_the_limit_make_room_for_who_asks(
    watched: Watched, tokenizer: PreTrainedTokenizerFast
) -> None:
    body = json.dumps({"model": NAME, "prompt": "Once"}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    beginnings = [b"", b"GET /he", HEALTH, head.encode() + body[:5]]
    with serving(watched, tokenizer, max_connections=8) as server, ExitStack() as stack:
        stream = server.complete(max_tokens=30, stream=True)
        next(stream)
        watched.hold()
        silent = []
        for number in range(40):
            silent.append(stack.enter_context(connected(server, beginnings[number % len(beginnings)])))
            if number % 10 == 9:
                begun = time.monotonic()
                assert server.request("GET", "/health")[0] == 200
                assert time.monotonic() - begun < SECONDS / 10
        eventually(lambda: sum(map(is_cut, silent)) >= 32)
        watched.go()
        assert len(list(stream)) == 29


def test_bad_requests_do_not_fill_the_log(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    NEWS.logged.clear()
    with serving(writer, tokenizer) as server:
        for _ in range(50):
            with connected(server, b"\x16\x03\x01nonsense\r\n\r\n") as client:
                assert client.recv(65536).startswith(b"HTTP/1.1 400")
            with connected(server, HEALTH[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n") as client:
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert len(capfd.readouterr().err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 1024, (480, 120)),
        (256, 256, (96, 24)),
        (256, 4096, (512, 512)),
        (1_000_000, 1_000_000, (512, 512)),
        (-1, -1, (512, 512)),
    ],
)
def test_connections_and_those_that_wait_for_them_fit_into_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: tuple[int, int]
) -> None:
    raised: list[int] = []
    monkeypatch.setattr("resource.getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda what, limits: raised.append(limits[0]))
    connections, backlog = room_for_connections(ServeSettings())
    assert (connections, backlog) == expected
    limit = max([*raised, soft])
    assert limit == -1 or OWN_FILES + connections + 4 * backlog <= limit
    assert not raised or raised == [min(hard, OWN_FILES + 512 + 4 * LONGEST_BACKLOG)]


def test_too_low_a_limit_of_open_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (80, 80))
    monkeypatch.setattr("resource.setrlimit", lambda what, limits: None)
    with pytest.raises(InputError, match="at most 80 files may be open at once"):
        room_for_connections(ServeSettings())
