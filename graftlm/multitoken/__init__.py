"""Multi-token fine-tuning: heads, their loss, their distillation, and the trainer.

Imported when first used: the command line reads the configs without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.multitoken.config import DistillConfig, TuneConfig
    from graftlm.multitoken.distill import Distillation, distill_heads
    from graftlm.multitoken.heads import MultiTokenHeads
    from graftlm.multitoken.loss import head_losses
    from graftlm.multitoken.model import MultiTokenModel
    from graftlm.multitoken.trainer import MultiTokenConfig, MultiTokenTrainer
    from graftlm.multitoken.written_text import WrittenText, write_texts

__all__ = [
    "DistillConfig",
    "Distillation",
    "MultiTokenConfig",
    "MultiTokenHeads",
    "MultiTokenModel",
    "MultiTokenTrainer",
    "TuneConfig",
    "WrittenText",
    "distill_heads",
    "head_losses",
    "write_texts",
]

_MODULES = {
    "DistillConfig": "config",
    "Distillation": "distill",
    "MultiTokenConfig": "trainer",
    "MultiTokenHeads": "heads",
    "MultiTokenModel": "model",
    "MultiTokenTrainer": "trainer",
    "TuneConfig": "config",
    "WrittenText": "written_text",
    "distill_heads": "distill",
    "head_losses": "loss",
    "write_texts": "written_text",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
