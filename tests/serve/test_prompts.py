"""What is refused before it is encoded, and who waits for whom."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from openai import BadRequestError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.serve.conftest import SECONDS, Serving, serving


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(map(len, tokenizer.get_vocab()))
    with serving(writer, tokenizer) as server:
        monkeypatch.setattr(type(tokenizer), "__call__", None)
        for ask in (server.complete, server.chat):
            with pytest.raises(BadRequestError, match=f"{256 * longest} characters at most") as caught:
                ask("x" * 3_000_000)
            assert caught.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_a_small_request_does_not_wait_for_a_large_one_to_be_encoded(
    writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And large ones, which take memory, are encoded one after the other."""
    go, begun = threading.Event(), []
    encode = type(tokenizer).__call__

    def slow(self: Any, text: Any = None, *args: Any, **options: Any) -> Any:
        if text is not None and len(text) > 70_000:
            begun.append(text)
            assert go.wait(SECONDS)
        return encode(self, text, *args, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", slow)
    long_context: Any = writer.config
    monkeypatch.setattr(long_context, "max_position_embeddings", 2**20)
    with serving(writer, tokenizer) as server:
        large = [threading.Thread(target=ask_too_much, args=(server,)) for _ in range(3)]
        for thread in large:
            thread.start()
        try:
            for _ in range(3):
                assert len(server.complete("small", max_tokens=2).choices[0].text) == 2
            assert server.chat("small", max_tokens=2).usage.completion_tokens == 2
            assert len(begun) == 1
        finally:
            go.set()
            for thread in large:
                thread.join()
        assert len(begun) == 3


def ask_too_much(server: Serving) -> None:
    with pytest.raises(BadRequestError, match="at most 1024"):
        server.complete("x" * 80_000, max_tokens=5000)
