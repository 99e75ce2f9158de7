"""Multi-token heads: grown on a model by self-distillation, used by tuning and by decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.heads.config import DistillConfig
    from graftlm.heads.distill import Distillation, distill_heads
    from graftlm.heads.heads import MultiTokenHeads
    from graftlm.heads.loss import head_losses

__all__ = ["DistillConfig", "Distillation", "MultiTokenHeads", "distill_heads", "head_losses"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "DistillConfig": "graftlm.heads.config",
        "Distillation": "graftlm.heads.distill",
        "MultiTokenHeads": "graftlm.heads.heads",
        "distill_heads": "graftlm.heads.distill",
        "head_losses": "graftlm.heads.loss",
    },
)
