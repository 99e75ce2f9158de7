"""A real server in a thread, the official client, and models that can be watched and held."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import uvicorn
from openai import OpenAI
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast

from graftlm.serve import ServeSettings, create_app
from graftlm.serve.batching import Engine
from graftlm.serve.server import uvicorn_config
from tests.conftest import VOCABULARY, tiny_model

NAME = "some/model"
SECONDS = 60.0  # far more than anything takes, for a machine that is busy


class Watched:
    """No more of a model than the engine may use; records its batches, and can be held between two tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.config = model.config
        self.generation_config = model.generation_config
        self.batches: list[int] = []
        self.changed = threading.Condition()
        self.steps_left = float("inf")
        self.is_held = False

    def generate(self, **inputs: Any) -> Any:
        self.batches.append(len(inputs["input_ids"]))
        return self.model.generate(**{**inputs, "logits_processor": [*inputs["logits_processor"], Wait(self)]})

    def hold(self) -> None:
        """Stop after the next token of each sequence, until `go`."""
        self.steps_left = 0

    def go(self, steps: float = float("inf")) -> None:
        with self.changed:
            self.steps_left = steps
            self.changed.notify()


class Wait(LogitsProcessor):
    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with self.watched.changed:
            self.watched.is_held = self.watched.steps_left <= 0
            assert self.watched.changed.wait_for(lambda: self.watched.steps_left > 0, SECONDS)
            self.watched.is_held = False
            self.watched.steps_left -= 1
        return scores


@dataclass
class Serving:
    """A server that runs, and its clients."""

    port: int
    engine: Engine
    clients: list[OpenAI] = field(default_factory=list)

    @property
    def client(self) -> OpenAI:
        if not self.clients:
            self.clients.append(self.new_client())
        return self.clients[0]

    def new_client(self, key: str = "none", name: str = "127.0.0.1") -> OpenAI:
        return OpenAI(base_url=f"http://{name}:{self.port}/v1", api_key=key, max_retries=0, timeout=SECONDS)

    def complete(self, prompt: Any = "Once", **options: Any) -> Any:
        return self.client.completions.create(model=NAME, prompt=prompt, **{"temperature": 0, **options})

    def chat(self, content: Any = "Hello", **options: Any) -> Any:
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        return self.client.chat.completions.create(model=NAME, messages=messages, **{"temperature": 0, **options})

    def request(
        self, method: str, path: str, body: str | bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of one request without the client's help."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return (
                response.status,
                {key.lower(): value for key, value in response.getheaders()},
                response.read().decode(),
            )
        finally:
            connection.close()

    def post(self, path: str, document: Any) -> tuple[int, dict[str, str], Any]:
        status, headers, text = self.request("POST", path, json.dumps(document))
        return status, headers, json.loads(text)

    def metric(self, name: str) -> float:
        """The value of a line of /metrics that begins with `name`."""
        _, _, text = self.request("GET", "/metrics")
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(values[0]) if values else 0.0


@contextmanager
def held(server: Serving, watched: Watched) -> Iterator[Future[Any]]:
    """A request for two tokens that has got the first; the model stands still until `watched.go`."""
    watched.hold()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.complete, "held", max_tokens=2)
        try:
            eventually(lambda: watched.is_held)
            yield answer
        finally:
            watched.go()


@contextmanager
def serving(model: Any, tokenizer: Any, **settings: Any) -> Iterator[Serving]:
    limits = ServeSettings(**settings)
    app = create_app(model, tokenizer, NAME, limits)
    config = uvicorn_config(app, limits)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Serving(listener.getsockname()[1], app.state.engine)
        try:
            eventually(lambda: server.started)
            yield running
        finally:
            for client in running.clients:
                client.close()
            if isinstance(model, Watched):
                model.go()
            server.should_exit = True
            thread.join(SECONDS)


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def ascii_ids(tokenizer: Any) -> list[int]:
    """The tokens that are printable ASCII."""
    return [
        number
        for number in range(256)
        if tokenizer.decode([number]).isascii() and tokenizer.decode([number]).isprintable()
    ]


def ascii_model(tokenizer: Any, **settings: Any) -> PreTrainedModel:
    """A random model that writes ASCII and never ends by itself, so that each token shows as it comes."""
    model = tiny_model(**settings)
    allowed = set(ascii_ids(tokenizer))
    model.generation_config.suppress_tokens = [number for number in range(VOCABULARY) if number not in allowed]
    return model


def greedy(model: PreTrainedModel, tokenizer: Any, prompt: list[int], tokens: int) -> str:
    """What `model.generate` itself says."""
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)[0, len(prompt) :]
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="session")
def writer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return ascii_model(tokenizer)


@pytest.fixture
def watched(writer: PreTrainedModel) -> Watched:
    return Watched(writer)


@pytest.fixture(scope="session")
def server(writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[Serving]:
    """One with default settings, for all tests that only ask."""
    with serving(writer, tokenizer) as running:
        yield running
