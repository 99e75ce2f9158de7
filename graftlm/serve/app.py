"""The HTTP server of one loaded model, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from graftlm import __version__
from graftlm.serve.answers import Answer, ChatAnswer, CompletionAnswer
from graftlm.serve.batching import Engine
from graftlm.serve.gate import Gate, error_response
from graftlm.serve.metrics import Metrics
from graftlm.serve.prompts import Prompts
from graftlm.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest
from graftlm.serve.refusal import Refusal
from graftlm.serve.settings import ServeSettings
from graftlm.serve.writing import EventStream, Writing, unless_gone

NAME = re.compile(r"(?!(?:str|int|float|bool)$)\w+")
"""A field's name, where pydantic also puts the names of types."""
CLIENT_GONE = 499  # as nginx has it; nobody reads it but the metrics

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
    app = FastAPI(title="graftlm", version=__version__, docs_url=None, redoc_url=None, lifespan=engine_runs)
    prompts = Prompts(model, tokenizer, settings)
    app.state.name = name
    app.state.created = int(time.time())
    app.state.prompts = prompts
    app.state.engine = Engine(model, prompts.pad_token, settings, Metrics())
    app.include_router(router)
    app.add_middleware(Gate, engine=app.state.engine, settings=settings)
    app.add_exception_handler(Refusal, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http_error)
    return app


@asynccontextmanager
async def engine_runs(app: FastAPI) -> AsyncIterator[None]:
    app.state.engine.start()
    yield
    await run_in_threadpool(app.state.engine.stop)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    return await answer_with(CompletionAnswer, body, request)


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    return await answer_with(ChatAnswer, body, request)


async def answer_with(shape: type[Answer], body: GenerationRequest, request: Request) -> Response:
    """Write, and send the answer in one or, if asked, as it comes."""
    state = request.app.state
    deadline = asyncio.get_running_loop().time() + state.engine.settings.request_seconds
    check_model(body.model, state.name)
    ids = await run_in_threadpool(state.prompts.encode, body)
    writing = Writing(state.engine, state.prompts, body, ids, deadline)
    answer = shape(state.name, with_logprobs=body.alternatives is not None)
    streams = False
    try:
        if not body.stream:
            document = await unless_gone(request, writing.whole(answer))
            return Response(status_code=CLIENT_GONE) if document is None else JSONResponse(document)
        # Until the first pieces have come an error can still be a status.
        first = await unless_gone(request, writing.next())
        if first is None:
            return Response(status_code=CLIENT_GONE)
        streams = True
        return EventStream(writing, writing.chunks(answer, first, with_usage=body.wants_usage))
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
    facts = {
        "status": status,
        "model": request.app.state.name,
        "queue_length": len(engine.waiting),
        "active": engine.active_count,
    }
    return JSONResponse(facts, 200 if status == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.engine.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def describe_model(request: Request) -> dict[str, Any]:
    state = request.app.state
    return {"id": state.name, "object": "model", "created": state.created, "owned_by": "graftlm"}


def check_model(asked: str, name: str) -> None:
    if asked != name:
        raise Refusal(
            404, f"there is no model {asked!r} here; this server has {name!r}", param="model", code="model_not_found"
        )


async def answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error_response(error)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Of the framework itself: no such path, or not this method."""
    assert isinstance(error, HTTPException)
    return error_response(Refusal(error.status_code, str(error.detail)))


async def answer_invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body, in OpenAI's form and with its status."""
    assert isinstance(error, RequestValidationError)
    message, param = describe_invalid(error.errors())
    if error.errors()[0]["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        message = "the body is not read as JSON: send the header Content-Type: application/json"
    return error_response(Refusal(400, message, param=param))


def describe_invalid(errors: Sequence[Any]) -> tuple[str, str | None]:
    """What is wrong, and the parameter that it is about.

    Where a parameter may be of several types, each of them has an error; the one that is no mismatch of types tells.
    """
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    first = next((error for error in same if not error["type"].endswith("_type")), errors[0])
    where = [str(part) for part in first["loc"][1:] if isinstance(part, int) or NAME.fullmatch(part)]
    if first["type"] == "json_invalid":
        return "the body is not JSON", None
    if first["type"] == "extra_forbidden":
        name = ".".join([*where[:-1], str(first["loc"][-1])])
        return f"{name} is not supported by this server; leave it out", name
    reason = str(first["msg"]).removeprefix("Value error, ")
    return (f"{'.'.join(where)}: {reason}", where[0]) if where else (f"the body is not valid: {reason}", None)
