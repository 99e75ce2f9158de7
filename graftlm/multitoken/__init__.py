"""Multi-token fine-tuning: heads, their loss, their distillation, and the trainer."""

from graftlm.multitoken.config import DistillConfig, TuneConfig
from graftlm.multitoken.distill import Distillation, distill_heads
from graftlm.multitoken.heads import MultiTokenHeads
from graftlm.multitoken.loss import forking_token_mask, head_losses
from graftlm.multitoken.model import MultiTokenModel
from graftlm.multitoken.trainer import MultiTokenConfig, MultiTokenTrainer

__all__ = [
    "DistillConfig",
    "Distillation",
    "MultiTokenConfig",
    "MultiTokenHeads",
    "MultiTokenModel",
    "MultiTokenTrainer",
    "TuneConfig",
    "distill_heads",
    "forking_token_mask",
    "head_losses",
]
