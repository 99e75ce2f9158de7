"""Deprecated: see graftlm.tuning.tune."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "tune": "graftlm.tuning.tune",
    },
)
