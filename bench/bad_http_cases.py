"""Bad requests for bench/bad_inputs.py: drawn here, sent to the server's application in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

PATHS = ("/v1/completions", "/v1/chat/completions")
FIELDS: dict[str, tuple[Any, ...]] = {
    "temperature": ("x", -1, 3, [], {}, True, float("nan")), "top_p": (-1, 2, "x", [], True),
    "max_tokens": (-1, "x", 2.5, 10**9, [], True), "n": (0, -1, "x", 2.5, 10**9), "stop": ([1], {}, [""], 3, [[]]),
    "seed": ("x", 2.5, [], {}), "stream": ("x", 1, []), "model": (3, [], {}), "stream_options": ("x", [], {"x": 1}),
    "frequency_penalty": (1.5, "x"), "presence_penalty": (-1, []), "logit_bias": ({"1": 5}, "x"),
    "response_format": ({"type": "json_object"}, "x"), "temprature": (1,), "max_token": (3,), "nothing": ("x",),
}  # fmt: skip
PROMPTS: tuple[Any, ...] = (None, {}, [], [-1], [10**9], 3, [["a"]], [1.5], [None], True, "x" * 100_000)
MESSAGES: tuple[Any, ...] = (
    [], "x", None, [3], [{"role": "wizard", "content": "a"}], [{"role": "user"}], [{"content": "a"}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": {"a": 1}}], [{"role": 3, "content": "a"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {"role": "user"},
)  # fmt: skip
BODIES = (b"", b"{", b"[1]", b"3", b'"x"', b"null", b"\xff\xfe{}", b"{'a': 1}", b"[" * 5000, b'{"prompt": NaN}', b"{}")


def request(rng: Random) -> tuple[str, str, bytes, tuple[str, ...]]:
    """(kind, path, body, who must be named)."""
    path = rng.choice(PATHS)
    chat = path == PATHS[1]
    content = "messages" if chat else "prompt"
    body: dict[str, Any] = {"model": "m", "max_tokens": 2, content: [{"role": "user", "content": "a"}] if chat else "a"}
    if (draw := rng.random()) < 0.15:
        return "body", path, rng.choice(BODIES), ("JSON", "body", "object", content, "UTF-8")
    if draw < 0.5:
        body[content] = rng.choice(MESSAGES if chat else PROMPTS)
        return content, path, json.dumps(body).encode(), (content, "token", "role")
    key = rng.choice(list(FIELDS))
    body[key] = rng.choice(FIELDS[key])
    return key, path, json.dumps(body).encode(), (key, "JSON")


class Application:
    """The server's application with a tiny model, entered once, in an event loop of its own."""

    def __init__(self, folder: Path) -> None:
        from graftlm import load_model
        from graftlm.serve import create_app

        self.app: Any = create_app(*load_model(folder, device="cpu"), "m")
        self.loop = asyncio.new_event_loop()
        self.entered = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self.entered.__aenter__())

    def send(self, path: str, body: bytes) -> tuple[int, str]:
        """Status and text of the answer."""
        return self.loop.run_until_complete(self._send(path, body))

    async def _send(self, path: str, body: bytes) -> tuple[int, str]:
        headers = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        given, got = [{"type": "http.request", "body": body, "more_body": False}], []

        async def receive() -> Any:
            if given:
                return given.pop()
            await asyncio.sleep(3600)

        async def take(message: Any) -> None:
            got.append(message)

        await self.app(scope, receive, take)
        return got[0]["status"], b"".join(message.get("body", b"") for message in got[1:]).decode()
