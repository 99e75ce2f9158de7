"""The run: its settings, its folder, and how it goes on where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.runs.config import load_config, option
    from graftlm.runs.run import Run

__all__ = ["Run", "load_config", "option"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Run": "graftlm.runs.run",
        "load_config": "graftlm.runs.config",
        "option": "graftlm.runs.config",
    },
)
