"""Text out of tokens while they come, in pieces that never have to be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a tokenizer decodes the first bytes of a character to, until the last one is there.
UNFINISHED = "�"


class TextWriter:
    """The text of a growing list of tokens, cut before the first stop text.

    Held back are the bytes of a character that is not complete, and the end of the text as long as it may be the
    beginning of a stop text. Special tokens are no text.

    Attributes:
        text: everything written so far, stop text and all, but no unfinished character.
        released: how much of `text` may be shown.
        stopped: whether a stop text has come; `text` then ends before it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """`before`: tokens that the text goes on from, without which some tokenizers leave out its first space."""
        self.tokenizer = tokenizer
        self.stop = stop
        self.tokens: list[int] = [] if self._decode(list(before)).endswith(UNFINISHED) else list(before)
        # Tokens before `context` do not matter any more; those from `settled` on are not in `text` yet.
        self.context = 0
        self.settled = len(self.tokens)
        self.text = ""
        self.released = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that this releases."""
        self.tokens.append(token)
        piece = self._pending()
        if piece.endswith(UNFINISHED):
            return ""
        return self._add(piece)

    def finish(self) -> str:
        """The text that was held back, now that no token follows."""
        if self.stopped:
            return ""
        held = self._release(len(self.text))
        return held + self._add(self._pending()) + self._release(len(self.text))

    def token_text(self, token: int) -> str:
        """The text that `token` would add; nothing if that is no whole character."""
        before = self._decode(self.tokens[self.context :])
        after = self._decode([*self.tokens[self.context :], token])
        piece = after.removeprefix(before)
        return "" if UNFINISHED in piece or not after.startswith(before) else piece

    def _pending(self) -> str:
        """The text of the tokens that are not settled; decoded in context, as spaces may depend on it."""
        before = self._decode(self.tokens[self.context : self.settled])
        return self._decode(self.tokens[self.context :])[len(before) :]

    def _add(self, piece: str) -> str:
        if piece:
            self.context, self.settled = self.settled, len(self.tokens)
        searched = max(0, len(self.text) - max(map(len, self.stop), default=0) + 1)
        self.text += piece
        stops = [(at + len(stop), at) for stop in self.stop if (at := self.text.find(stop, searched)) >= 0]
        if stops:
            # The one that was complete first, so that it does not matter how the text is cut into tokens.
            self.text = self.text[: min(stops)[1]]
            self.stopped = True
            return self._release(len(self.text))
        return self._release(len(self.text) - held_length(self.text, self.stop))

    def _release(self, end: int) -> str:
        piece = self.text[self.released : end]
        self.released = max(self.released, end)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def held_length(text: str, stop: Sequence[str]) -> int:
    """The length of the longest end of `text` that is the beginning, but not the whole, of a stop text."""
    longest = 0
    for each in stop:
        start = max(0, len(text) - len(each) + 1)
        while (start := text.find(each[0], start)) >= 0:
            if each.startswith(text[start:]):
                longest = max(longest, len(text) - start)
                break
            start += 1
    return longest
