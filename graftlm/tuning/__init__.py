"""Supervised fine-tuning: the trainer and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.tuning.config import TuneConfig
    from graftlm.tuning.model import MultiTokenModel
    from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer

__all__ = ["MultiTokenConfig", "MultiTokenModel", "MultiTokenTrainer", "TuneConfig"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "MultiTokenConfig": "graftlm.tuning.trainer",
        "MultiTokenModel": "graftlm.tuning.model",
        "MultiTokenTrainer": "graftlm.tuning.trainer",
        "TuneConfig": "graftlm.tuning.config",
    },
)
