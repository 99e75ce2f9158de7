"""A request while it is answered: its sequences, what they hand over, and their end when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from graftlm.serve.answers import Answer
from graftlm.serve.batching import Engine
from graftlm.serve.prompts import Prompts
from graftlm.serve.protocol import GenerationRequest
from graftlm.serve.refusal import Refusal
from graftlm.serve.sequence import Piece

Result = TypeVar("Result")


class Writing:
    """The sequences of one request, from the queue to the last piece."""

    def __init__(
        self, engine: Engine, prompts: Prompts, request: GenerationRequest, ids: list[list[int]], deadline: float
    ) -> None:
        """Queues the sequences. Raises Refusal where they do not fit the model or the queue.

        Args:
            ids: the request's prompts as tokens.
            deadline: by the event loop's clock.
        """
        self.engine = engine
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.streams = request.stream
        self.held: list[Piece] = []  # the engine's thread's own
        self.delivered: asyncio.Queue[list[Piece]] = asyncio.Queue()
        self.prompt_tokens = sum(map(len, ids))
        self.sequences = prompts.sequences(request, ids, self._deliver)
        engine.submit(self.sequences)
        engine.metrics.prompt_tokens.inc(self.prompt_tokens)

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, sum(sequence.generated for sequence in self.sequences)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def cancel(self) -> None:
        """Nobody reads on: what is not finished need not be."""
        self.engine.cancel([sequence for sequence in self.sequences if not sequence.done])

    async def next(self) -> list[Piece]:
        """The next pieces, of any sequences. Raises Refusal for an error, and when the request's time is over."""
        pieces = await in_time(self.delivered.get(), self.deadline, self.engine.settings.request_seconds)
        if (error := pieces[-1].error) is not None:
            raise error
        return pieces

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all sequences, until the last one ends."""
        unfinished = len(self.sequences)
        while unfinished:
            for piece in await self.next():
                unfinished -= piece.finish is not None
                yield piece

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer, when all sequences are finished."""
        pieces = [piece async for piece in self.pieces()]
        return answer.whole(pieces, len(self.sequences), self.usage)

    async def chunks(self, answer: Answer, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes; nothing comes before the first piece does."""
        openings = [answer.opening(sequence.index) for sequence in self.sequences]
        async for piece in self.pieces():
            for opening in filter(None, openings):
                yield opening
            openings = []
            yield answer.chunk(piece)
        if with_usage:
            yield answer.usage_chunk(self.usage)

    def _deliver(self, piece: Piece) -> None:
        """Hand a piece from the engine's thread to the event loop, which a whole answer wakes only at its end."""
        self.held.append(piece)
        if not self.streams and piece.finish is None and piece.error is None:
            return
        held, self.held = self.held, []
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended, nobody reads
            self.loop.call_soon_threadsafe(self.delivered.put_nowait, held)


class EventStream(StreamingResponse):
    """Server-sent events, one a chunk; the writing ends with the response, however that ends."""

    def __init__(self, writing: Writing, first: dict[str, Any], following: AsyncIterator[dict[str, Any]]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events(first, following), media_type="text/event-stream", headers=headers)
        self.writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.writing.cancel()


async def events(first: dict[str, Any], following: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """The chunks as events. An error after the first one is the last event, since the status has been sent."""
    yield event(first)
    try:
        async for chunk in following:
            yield event(chunk)
    except Refusal as refusal:
        yield event(refusal.body)
        return
    yield "data: [DONE]\n\n"


def event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


async def in_time(work: Awaitable[Result], deadline: float, seconds: float) -> Result:
    """The result of `work`. Raises Refusal at `deadline`, by the event loop's clock, `seconds` after the request."""
    try:
        return await asyncio.wait_for(work, max(0.0, deadline - asyncio.get_running_loop().time()))
    except asyncio.TimeoutError:
        raise Refusal(f"not finished within {seconds:g} seconds", code="timeout", status=504) from None


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of `work`, or None where the client hangs up before; `work` is cancelled then."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(hang_up(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


async def hang_up(request: Request) -> None:
    """Returns when the client is gone. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
