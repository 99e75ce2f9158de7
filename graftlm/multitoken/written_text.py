"""Deprecated: see graftlm.data."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "WrittenText": "graftlm.data",
        "write_texts": "graftlm.data",
    },
)
