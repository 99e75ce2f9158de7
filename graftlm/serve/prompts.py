"""Make a request into the sequences that are to be written."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

from graftlm.data.encoding import TEMPLATE_ERRORS, encode_text, left_out
from graftlm.models.decoder import context_length, end_tokens, text_config
from graftlm.serve.own_settings import stop_strings
from graftlm.serve.protocol import COMPLETION_TOKENS, ChatRequest, CompletionRequest, GenerationRequest
from graftlm.serve.refusal import Refusal
from graftlm.serve.sequence import Piece, ServedSequence, seeded_generator
from graftlm.serve.settings import ServeSettings


class Prompts:
    """Knows a model's vocabulary, chat template, length and stop tokens."""

    def __init__(self, model: Any, tokenizer: Any, settings: ServeSettings) -> None:
        # A copy of its own: a tokenizer that pads or truncates by default is changed by its first encoding, which
        # other threads that decode meanwhile would run into. From the second on a fast one takes several threads.
        self.encoder = copy.deepcopy(tokenizer)
        self.encoder("")
        self.lock: Any = contextlib.nullcontext() if self.encoder.is_fast else threading.Lock()
        self.tokenizer = tokenizer
        self.settings = settings
        self.device = model.device
        self.context = context_length(model)
        longest = max(map(len, tokenizer.get_vocab()), default=1)  # a byte counts as a character there
        self.most_characters = None if self.context is None else self.context * longest
        self.vocabulary: int = getattr(text_config(model), "vocab_size", None) or len(tokenizer)
        self.ends = frozenset(end_tokens(model, tokenizer))
        self.stop_strings = stop_strings(model.generation_config)
        pad = tokenizer.pad_token_id
        self.pad_token: int = min(self.ends, default=0) if pad is None else pad  # never looked at
        self.special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def encode(self, request: GenerationRequest) -> list[list[int]]:
        """The token ids of each prompt of a request; takes a while for long ones."""
        if request.choices > self.settings.max_queue:  # which could never be taken into the queue
            most = self.settings.max_queue
            raise Refusal(f"{request.choices} sequences are asked for at once, but at most {most} can be", "n")
        if isinstance(request, ChatRequest):
            return [self.encode_chat(request)]
        assert isinstance(request, CompletionRequest)
        return [self.encode_prompt(prompt) for prompt in request.prompts]

    def encode_prompt(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            if max(prompt) >= self.vocabulary:
                known = f"the model knows 0 to {self.vocabulary - 1}"
                raise Refusal(f"the prompt has token {max(prompt)}, but {known}", "prompt")
            return prompt
        self.check_characters(len(prompt), "prompt")
        with self.lock:
            ids = encode_text(self.encoder, prompt)
        if not ids:
            raise Refusal("the prompt is empty", "prompt")
        return ids

    def encode_chat(self, request: ChatRequest) -> list[int]:
        """The messages in the tokenizer's own chat template."""
        if self.encoder.chat_template is None:
            raise Refusal(
                "this model's tokenizer has no chat template, so it was not made for chats; use /v1/completions",
                "messages",
                "no_chat_template",
            )
        messages = [message.for_template() for message in request.messages]
        # Each message is a character at least, so that there cannot be too many for the template either.
        self.check_characters(sum(len(message["content"]) + 1 for message in messages), "messages")
        if (lost := left_out(messages, lambda marked: self.render(marked, tokenize=False))) is not None:
            raise Refusal(
                f"{lost}: the model's chat template leaves it out, so the model would not read it", "messages"
            )
        return list(self.render(messages)["input_ids"])

    def render(self, messages: Sequence[dict[str, str]], *, tokenize: bool = True) -> Any:
        """The messages in the chat template, as text or as the tokenizer's encoding of it."""
        try:
            with self.lock:
                return self.encoder.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=tokenize, return_dict=tokenize
                )
        except TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())
            raise Refusal(f"the model's chat template does not take these messages: {reason}", "messages") from error

    def check_characters(self, count: int, param: str) -> None:
        """Refuse a text that cannot fit before it is encoded, which takes seconds and memory for megabytes."""
        if self.most_characters is not None and count > self.most_characters:
            raise Refusal(
                f"this model's maximum context length is {self.context} tokens, which hold {self.most_characters} "
                f"characters at most, but the {param} have {count}; shorten it",
                param,
                "context_length_exceeded",
            )

    def tokens_to_write(self, request: GenerationRequest, prompt_tokens: int) -> int:
        """The most tokens that the answer to one prompt may have."""
        asked, most = request.asked_tokens, self.settings.max_tokens_limit
        if asked is not None and asked > most:
            raise Refusal(f"max_tokens is {asked}, but this server writes at most {most}", "max_tokens")
        wanted = most if isinstance(request, ChatRequest) else min(COMPLETION_TOKENS, most)
        if self.context is None:
            return asked or wanted
        room = self.context - prompt_tokens
        if room < (asked or 1):
            raise Refusal(
                f"this model's maximum context length is {self.context} tokens, but the prompt has {prompt_tokens} "
                f"and at least {asked or 1} should be written; shorten it or lower max_tokens",
                "messages" if isinstance(request, ChatRequest) else "prompt",
                "context_length_exceeded",
            )
        return asked or min(wanted, room)

    def sequences(
        self, request: GenerationRequest, prompts: Sequence[list[int]], deliver: Callable[[Piece], None]
    ) -> list[ServedSequence]:
        """`n` sequences for each prompt, in the order of the choices of the answer."""
        limits = [self.tokens_to_write(request, len(prompt)) for prompt in prompts]
        stop = request.stops + self.stop_strings
        # Special tokens are no text, so as a stop text one would never be found.
        stop_ids = self.ends | {self.special[text] for text in stop if text in self.special}
        return [
            ServedSequence(
                index=number * request.n + choice,
                request=request,
                prompt=prompt,
                max_tokens=limit,
                tokenizer=self.tokenizer,
                stop=stop,
                stop_ids=stop_ids,
                deliver=deliver,
                generator=seeded_generator(request.seed, choice, self.device),
            )
            for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
            for choice in range(request.n)
        ]
