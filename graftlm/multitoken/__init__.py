"""Deprecated: see graftlm.tuning, graftlm.heads and graftlm.data."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "DistillConfig": "graftlm.heads",
        "Distillation": "graftlm.heads",
        "MultiTokenConfig": "graftlm.tuning",
        "MultiTokenHeads": "graftlm.heads",
        "MultiTokenModel": "graftlm.tuning",
        "MultiTokenTrainer": "graftlm.tuning",
        "TuneConfig": "graftlm.tuning",
        "WrittenText": "graftlm.data",
        "distill_heads": "graftlm.heads",
        "head_losses": "graftlm.heads",
        "write_texts": "graftlm.data",
    },
)
