"""Every caller of `generate` but the server: batches, candidates, drafting with heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.decoding.batches import generate_completions
    from graftlm.decoding.heads_decoding import HeadsDecoding

__all__ = ["HeadsDecoding", "generate_completions"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "HeadsDecoding": "graftlm.decoding.heads_decoding",
        "generate_completions": "graftlm.decoding.batches",
    },
)
