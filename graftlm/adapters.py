"""Deprecated: see graftlm.models."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "merged": "graftlm.models",
    },
)
