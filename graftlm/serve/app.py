"""The HTTP server of one loaded model, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from graftlm import __version__
from graftlm.runs.console import say
from graftlm.serve.answers import Answer, ChatAnswer, CompletionAnswer
from graftlm.serve.batching import Engine
from graftlm.serve.gate import CLIENT_GONE, Gate
from graftlm.serve.metrics import Metrics
from graftlm.serve.own_settings import left_out
from graftlm.serve.prompts import Prompts
from graftlm.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest, read
from graftlm.serve.refusal import Refusal, shortened
from graftlm.serve.settings import ServeSettings
from graftlm.serve.writing import EventStream, Writing, in_time, unless_gone

LARGE = 64 * 1024  # bytes of a body

router = APIRouter()


def create_app(model: Any, tokenizer: Any, name: str, settings: ServeSettings | None = None) -> FastAPI:
    """An ASGI application that answers with `model`.

    Args:
        model: anything with the `generate`, `device`, `config` and `generation_config` of a Hugging Face causal LM.
        tokenizer: its tokenizer.
        name: what clients call it.
        settings: limits and key; the defaults serve this machine alone. Host and port are the caller's matter.
    """
    settings = settings or ServeSettings()
    app = FastAPI(title="graftlm", version=__version__, openapi_url=None, lifespan=engine_runs)
    prompts = Prompts(model, tokenizer, settings)
    app.state.name = name
    app.state.created = int(time.time())
    app.state.prompts = prompts
    app.state.engine = Engine(model, prompts.pad_token, settings, Metrics())
    if without := left_out(model.generation_config):
        named = ", ".join(f"{key}={shortened(repr(value))}" for key, value in without.items())
        say(f"graftlm: left out, since the server cannot honour it of the model's generation config: {named}")
    app.include_router(router)
    app.add_middleware(Gate, engine=app.state.engine, settings=settings)
    app.add_exception_handler(HTTPException, answer_http_error)
    return app


@asynccontextmanager
async def engine_runs(app: FastAPI) -> AsyncIterator[None]:
    app.state.large = CapacityLimiter(1)
    app.state.engine.thread.start()
    yield
    await run_in_threadpool(app.state.engine.stop)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    return await answer_with(CompletionAnswer, CompletionRequest, request)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    return await answer_with(ChatAnswer, ChatRequest, request)


async def answer_with(shape: type[Answer], kind: type[GenerationRequest], request: Request) -> Response:
    """Write an answer and send it whole or, if asked, as it comes."""
    state = request.app.state
    seconds = state.engine.settings.request_seconds
    deadline = asyncio.get_running_loop().time() + seconds
    raw = await request.body()

    def prepare() -> tuple[GenerationRequest, list[list[int]]]:
        body = read(kind, raw, request.headers.get("content-type", ""))
        check_model(body.model, state.name)
        return body, state.prompts.encode(body)

    # One large request at a time: each takes much memory, and small ones should not wait for a thread.
    limiter = state.large if len(raw) > LARGE else None
    body, ids = await in_time(to_thread.run_sync(prepare, limiter=limiter), deadline, seconds)
    writing = Writing(state.engine, state.prompts, body, ids, deadline)
    answer = shape(state.name, with_logprobs=body.alternatives is not None)
    streams = False
    try:
        if not body.stream:
            document = await unless_gone(request, writing.whole(answer))
            return Response(status_code=CLIENT_GONE) if document is None else JSONResponse(document)
        chunks = writing.chunks(answer, with_usage=body.wants_usage)
        # Until the first chunk has come an error can still be a status.
        first = await unless_gone(request, anext(chunks))
        if first is None:
            return Response(status_code=CLIENT_GONE)
        streams = True
        return EventStream(writing, first, chunks)
    finally:
        if not streams:
            writing.cancel()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [describe_model(request)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    check_model(name, request.app.state.name)
    return describe_model(request)


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """503 where new requests would be refused, so that a load balancer looks elsewhere."""
    engine = request.app.state.engine
    status = "draining" if engine.draining else "ok" if engine.thread.is_alive() else "failed"
    counts = {"queue_length": len(engine.waiting), "active": engine.active_count}
    return JSONResponse({"status": status, "model": request.app.state.name} | counts, 200 if status == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.engine.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def describe_model(request: Request) -> dict[str, Any]:
    state = request.app.state
    return {"id": state.name, "object": "model", "created": state.created, "owned_by": "graftlm"}


def check_model(asked: str, name: str) -> None:
    if asked != name:
        message = f"there is no model {shortened(asked)!r} here; this server has {name!r}"
        raise Refusal(message, "model", "model_not_found", status=404)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the framework itself: no such path, or not this method."""
    assert isinstance(error, HTTPException)
    return Refusal(str(error.detail), status=error.status_code).response
