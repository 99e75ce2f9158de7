"""Models: loading, checkpoints, their parts, a tuned model beside its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.models.adapters import merged
    from graftlm.models.decoder import Decoder
    from graftlm.models.load import load_model

__all__ = ["Decoder", "load_model", "merged"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Decoder": "graftlm.models.decoder",
        "load_model": "graftlm.models.load",
        "merged": "graftlm.models.adapters",
    },
)
