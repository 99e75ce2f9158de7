"""The checks before a route: key, host and size of a request; and the count of its answer."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
import traceback
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graftlm.runs.console import say
from graftlm.serve.batching import SHUTTING_DOWN, Engine
from graftlm.serve.refusal import Refusal, shortened
from graftlm.serve.settings import LOCAL_HOSTS, ServeSettings

ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
OPEN_ENDPOINTS = ("/health",)  # without a key, and while the server drains
BEARER = "Bearer "
CLIENT_GONE = 499  # as nginx has it; nobody reads it but the metrics
MOST_BODIES = 32  # of the largest size, in memory at once
REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Gate:
    """ASGI middleware. Reads the whole body first, at most `max_body_bytes`, but none of a request for health."""

    def __init__(self, app: ASGIApp, *, engine: Engine, settings: ServeSettings) -> None:
        self.app = app
        self.engine = engine
        self.settings = settings
        self.held_bytes = 0  # of the bodies of all requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), CLIENT_GONE
        own_id = request_id(Headers(scope=scope))

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = own_id
            await send(message)

        try:
            await self.pass_on(scope, receive, counted)
        except Exception as error:
            traceback.print_exception(error)
            say(f"graftlm: request {own_id} failed, the server goes on: {type(error).__name__}: {error}")
            if status == CLIENT_GONE:  # nothing was sent
                await Refusal("the server failed; its log says why", status=500).response(scope, receive, counted)
        finally:
            self.engine.metrics.observe(endpoint(scope["path"]), status, time.monotonic() - begun)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_ENDPOINTS:  # whose body nobody reads: strangers must not have it kept here
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            self.check(scope["path"], Headers(scope=scope))
            if await asyncio.wait_for(self.read(receive, body), self.settings.arrival_seconds):
                await self.app(scope, replay(body, receive), send)
        except Refusal as refusal:
            await refusal.response(scope, receive, send)
        except asyncio.TimeoutError:
            await Refusal("the request did not arrive in time", status=408).response(scope, receive, send)
        finally:
            self.held_bytes -= len(body)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise Refusal for a request that may not pass, before any of its body is read."""
        if self.settings.api_key is None:
            check_host(headers)
        else:
            check_key(headers, self.settings.api_key)
        if self.engine.draining and path.startswith("/v1/"):
            raise Refusal(SHUTTING_DOWN, status=503)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.settings.max_body_bytes:
            raise self.too_large()

    async def read(self, receive: Receive, body: bytearray) -> bool:
        """Add the request's body to `body`. Returns whether it is whole: the client may hang up before."""
        while (message := await receive())["type"] != "http.disconnect":
            part = message.get("body", b"")
            body += part
            self.held_bytes += len(part)
            if len(body) > self.settings.max_body_bytes:
                raise self.too_large()
            if self.held_bytes > MOST_BODIES * self.settings.max_body_bytes:
                raise Refusal("too many large requests are under way", status=503)
            if not message.get("more_body", False):
                return True
        return False

    def too_large(self) -> Refusal:
        most = self.settings.max_body_bytes
        return Refusal(f"the request's body is larger than {most} bytes", code="request_too_large", status=413)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own name of a request, which its logs may have, or else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def check_host(headers: Mapping[str, str]) -> None:
    """Without a key, only this machine's own names will do: a web page elsewhere could have its name point here."""
    host = re.sub(r":\d*$", "", headers.get("host", ""))
    if host.strip("[]") not in LOCAL_HOSTS:
        message = f"host {shortened(host)!r} is not this machine; a server for others needs --api-key"
        raise Refusal(message, code="bad_host", status=403)


def check_key(headers: Mapping[str, str], key: str) -> None:
    given = headers.get("authorization", "")
    right = hmac.compare_digest(given.removeprefix(BEARER).encode("latin-1"), key.encode())
    if not (given.startswith(BEARER) and right):
        message = "the API key is wrong" if given else "an API key is needed: 'Authorization: Bearer KEY'"
        raise Refusal(message, code="invalid_api_key", status=401)


def replay(body: bytearray, receive: Receive) -> Receive:
    """A `receive` that gives this body first."""
    left: list[Message] = [{"type": "http.request", "body": bytes(body)}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def endpoint(path: str) -> str:
    """The label of a path; one for all that do not exist, so that nobody can make labels without end."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ENDPOINTS else "other"
