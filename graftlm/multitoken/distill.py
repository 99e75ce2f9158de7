"""Deprecated: see graftlm.heads.distill."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "distill": "graftlm.heads.distill",
        "distill_heads": "graftlm.heads",
    },
)
