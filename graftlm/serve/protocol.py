"""The requests of OpenAI's API, as far as they are understood.

A parameter that is not understood is refused, since the answer would not be what was asked for. Left out before
that: whatever is null, what cannot change the output, and what only repeats the default.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from graftlm.serve.refusal import Refusal, shortened

MOST_STOPS = 64  # OpenAI takes four; tasks of evaluations have more
LONGEST_STOP = 1000  # characters
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
)  # they are for OpenAI's own records and caches, and change no answer
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "verbosity": ("medium",),
}

NAME = re.compile(r"(?!(?:str|int|float|bool)$)\w+")
"""A field's name, where pydantic also puts the names of types."""

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class Understood(BaseModel):
    """Refuses a key that it does not know, unless that key is without effect."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def leave_out(cls, data: Any) -> Any:
        """Leave out keys without effect, and of the unknown ones all but the first: an error for each takes seconds."""
        if not isinstance(data, dict):
            return data
        unknown = (key for key, value in data.items() if key not in cls.model_fields and cls.acts(key, value))
        kept = {key: data[key] for key in cls.model_fields if data.get(key) is not None}
        return kept | {key: data[key] for key in itertools.islice(unknown, 1)}

    @classmethod
    def acts(cls, key: str, value: Any) -> bool:
        """Whether a key that is not a field's would change the answer."""
        if value is None or key in cls.ignored:
            return False
        without_effect = cls.neutral.get(key, ())
        return not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in without_effect)


class StreamOptions(Understood):
    ignored: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool = False


class GenerationRequest(Understood):
    """The parameters of both endpoints."""

    ignored: ClassVar[frozenset[str]] = IGNORED
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True)] = []

    @model_validator(mode="after")
    def check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true only")
        return self

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to report at each place; None reports nothing, not even the chosen."""
        raise NotImplementedError

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices(self) -> int:
        """How many sequences answer it."""
        return self.n

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(GenerationRequest):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def prompts(self) -> list[Any]:
        """Texts or lists of token ids, one for each prompt."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else list(self.prompt)

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TextPart(Understood):
    type: Literal["text"]
    text: str


class Message(Understood):
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"tool_calls": ([],), "annotations": ([],)}
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Annotated[str, Field(min_length=1)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def for_template(self) -> dict[str, str]:
        # OpenAI's newer name for the system's role; no model's template knows it.
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.text} | ({} if self.name is None else {"name": self.name})


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def check_pairs(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens is the old name of max_completion_tokens; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Request = TypeVar("Request", bound=GenerationRequest)


def read(kind: type[Request], body: bytes, content_type: str) -> Request:
    """The request that a body holds. Raises Refusal for the first thing that is wrong with it.

    Bytes that are not UTF-8, halves of a character, NaN, deep nesting and numbers of thousands of digits are no JSON.
    """
    if "json" not in content_type:  # a web page elsewhere may send other types without asking the browser
        raise Refusal("the body is not read as JSON: send the header Content-Type: application/json")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise Refusal(*described(error.errors(include_url=False, include_context=False, include_input=False))) from None


def described(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The message for the first error, and the parameter that it is about.

    Where a parameter may be of several types, each of them has an error; the one that is no mismatch of types tells.
    """
    same = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    first = next((error for error in same if not error["type"].endswith("_type")), errors[0])
    where = [str(part) for part in first["loc"] if isinstance(part, int) or NAME.fullmatch(part)]
    if first["type"] == "extra_forbidden":
        name = shortened(".".join([*where[:-1], str(first["loc"][-1])]))
        return f"{name} is not supported by this server; leave it out", name
    reason = str(first["msg"]).removeprefix("Value error, ")
    return (f"{'.'.join(where)}: {reason}", where[0]) if where else (f"the body is not valid: {reason}", None)
