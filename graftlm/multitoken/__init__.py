"""Multi-token fine-tuning: heads, their loss, their distillation, and the trainer."""

from graftlm.multitoken.config import DistillConfig, TuneConfig
from graftlm.multitoken.distill import Distillation, distill_heads
from graftlm.multitoken.heads import MultiTokenHeads
from graftlm.multitoken.loss import forking_token_mask, head_losses
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
    "distill_heads",
    "forking_token_mask",
    "WrittenText",
    "head_losses",
    "write_texts",
]
