"""Deprecated: see graftlm.data."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "general_prompts": "graftlm.data",
        "general_text": "graftlm.data",
        "load_rows": "graftlm.data",
        "prompt_tokens": "graftlm.data",
    },
)
