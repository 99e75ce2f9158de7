"""Deprecated: see graftlm.decoding."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "generate_completions": "graftlm.decoding",
    },
)
