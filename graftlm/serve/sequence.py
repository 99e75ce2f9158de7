"""One sequence that is being written for a client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from graftlm.serve.protocol import CompletionRequest, GenerationRequest
from graftlm.serve.refusal import Refusal
from graftlm.serve.text import TextWriter

Finish = Literal["stop", "length"]


CONTEXT = 4
"""Tokens of the prompt that the text which continues it is decoded after."""


Scores = Sequence[tuple[int, float]]
"""(token, log-probability) of the chosen token and of the likeliest ones, which come in order, at one place: of the
model's own distribution, before temperature and top-p."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token that was chosen or might have been, as it is reported."""

    text: str  # its name in the vocabulary where it is not `whole`
    whole: bool  # whether it is text of its own, and not part of a character or a special token
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Token:
    """A place in the text."""

    chosen: Candidate
    top: Sequence[Candidate]
    offset: int  # where it begins in the text


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some text of a sequence, its end, or an error, on the way to the client."""

    index: int
    text: str = ""
    tokens: Sequence[Token] = ()
    finish: Finish | None = None
    error: Refusal | None = None


@dataclass(eq=False, kw_only=True)
class ServedSequence:
    """A prompt and what follows it.

    Belongs to the engine's thread; others only set `cancelled`.
    """

    index: int  # the choice's place in the answer
    request: GenerationRequest
    prompt: Sequence[int]
    max_tokens: int
    tokenizer: Any
    stop: Sequence[str]
    stop_ids: Collection[int]
    deliver: Callable[[Piece], None]
    generator: torch.Generator
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    finished: bool = False
    generated: int = 0

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        before = self.prompt[-CONTEXT:] if isinstance(self.request, CompletionRequest) else ()  # a chat's is no text
        self.writer = TextWriter(self.tokenizer, self.stop, before)
        self.unreported: list[Token] = []

    @property
    def done(self) -> bool:
        return self.finished or self.cancelled

    @property
    def remaining(self) -> int:
        return self.max_tokens - self.generated

    def push(self, token: int, scores: Scores | None = None) -> None:
        """Add the model's next token."""
        self.generated += 1
        if token in self.stop_ids:
            return self.end("stop")
        self.ids.append(token)
        if scores is not None:
            chosen, *top = (self.candidate(*each) for each in scores)
            self.unreported.append(Token(chosen=chosen, top=top, offset=len(self.writer.text)))
        text = self.writer.push(token)
        if self.writer.stopped:
            return self.end("stop", text)
        if self.remaining <= 0:
            return self.end("length", text)
        if text:
            self.deliver(Piece(index=self.index, text=text, tokens=self.report(self.writer.released)))

    def end(self, finish: Finish, text: str = "") -> None:
        """Finish: no token follows."""
        self.finished = True
        text += self.writer.finish()
        # At the limit every token counts, also one without text; a stop text and what is in it do not.
        tokens = self.report(None if finish == "length" else self.writer.released)
        self.deliver(Piece(index=self.index, text=text, tokens=tokens, finish=finish))

    def fail(self, error: Refusal) -> None:
        self.finished = True
        self.deliver(Piece(index=self.index, error=error))

    def report(self, end: int | None) -> list[Token]:
        """The tokens, not reported before, that begin before `end` in the text; None: all."""
        count = sum(end is None or token.offset < end for token in self.unreported)
        reported, self.unreported = self.unreported[:count], self.unreported[count:]
        return reported

    def candidate(self, token: int, logprob: float) -> Candidate:
        text = self.writer.token_text(token)
        name = text or str(self.tokenizer.convert_ids_to_tokens(token))
        return Candidate(text=name, whole=bool(text), logprob=logprob)


def seeded_generator(seed: int | None, choice: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of one choice's random numbers: the first of `n` choices is what n=1 gives."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed if choice == 0 else random.Random(f"{seed}/{choice}").getrandbits(63))
    return generator
