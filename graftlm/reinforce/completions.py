"""Texts of completions, which TRL gives as text or as lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def completion_text(completion: Any) -> str:
    """The whole text of a completion."""
    return completion if isinstance(completion, str) else "".join(map(message_text, completion))


def last_text(completion: Any) -> str:
    """The completion itself, or the text of its last message."""
    if isinstance(completion, str):
        return completion
    return message_text(completion[-1]) if completion else ""


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts (text, images)."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
