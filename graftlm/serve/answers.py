"""The answers of OpenAI's API, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from graftlm.serve.sequence import Candidate, Piece, Token


class Answer(ABC):
    """The answer to one request; the two endpoints differ in the shape of a choice."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, model: str, *, with_logprobs: bool) -> None:
        self.with_logprobs = with_logprobs
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before a choice's first text, if there is one."""
        return None

    @abstractmethod
    def delta(self, text: str) -> dict[str, Any]:
        """The part of a choice that holds a text, in a chunk."""

    @abstractmethod
    def content(self, text: str) -> dict[str, Any]:
        """The part of a choice that holds a text, in a whole answer."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]: ...

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self._chunk([self._choice(self.delta(piece.text), [piece])])

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": usage}

    def whole(self, pieces: Sequence[Piece], choices: int, usage: dict[str, int]) -> dict[str, Any]:
        by_choice: list[list[Piece]] = [[] for _ in range(choices)]
        for piece in pieces:
            by_choice[piece.index].append(piece)
        joined = [self._choice(self.content("".join(piece.text for piece in own)), own) for own in by_choice]
        return {"object": self.kind, **self.head, "choices": joined, "usage": usage}

    def _choice(self, content: dict[str, Any], pieces: Sequence[Piece]) -> dict[str, Any]:
        tokens = [token for piece in pieces for token in piece.tokens]
        logprobs = self.logprobs(tokens) if self.with_logprobs else None
        last = pieces[-1]
        return {"index": last.index, **content, "logprobs": logprobs, "finish_reason": last.finish}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": self.chunk_kind, **self.head, "choices": choices}


class CompletionAnswer(Answer):
    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    content = delta

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Four lists, one entry a token; the chosen token is among the likeliest even where it is not."""
        return {
            "tokens": [token.chosen.text for token in tokens],
            "token_logprobs": [token.chosen.logprob for token in tokens],
            "top_logprobs": [{each.text: each.logprob for each in (*token.top, token.chosen)} for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk([self._choice({"delta": {"role": "assistant", "content": ""}}, [Piece(index=index)])])

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = [{**entry(token.chosen), "top_logprobs": [entry(each) for each in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


def entry(candidate: Candidate) -> dict[str, Any]:
    text = candidate.text
    return {"token": text, "logprob": candidate.logprob, "bytes": list(text.encode()) if candidate.whole else None}
