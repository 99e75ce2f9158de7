"""Reinforcement learning that spends its gradient where the model decides, and watches its formats.

Imported when first used: the command line reads the config without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import callable_package, lazy_attributes

if TYPE_CHECKING:
    from graftlm.models.forking import forking_token_mask
    from graftlm.reinforce.built_in_rewards import reward
    from graftlm.reinforce.format_guards import FormatDivergence, WithinFormat
    from graftlm.reinforce.format_monitor import FormatMonitor
    from graftlm.reinforce.formats import Format
    from graftlm.reinforce.rewards import reward_function
    from graftlm.reinforce.trainer import ForkingTokenGRPOConfig, ForkingTokenGRPOTrainer

__all__ = [
    "ForkingTokenGRPOConfig",
    "ForkingTokenGRPOTrainer",
    "Format",
    "FormatDivergence",
    "FormatMonitor",
    "WithinFormat",
    "forking_token_mask",
    "reward",
    "reward_function",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ForkingTokenGRPOConfig": "graftlm.reinforce.trainer",
        "ForkingTokenGRPOTrainer": "graftlm.reinforce.trainer",
        "Format": "graftlm.reinforce.formats",
        "FormatDivergence": "graftlm.reinforce.format_guards",
        "FormatMonitor": "graftlm.reinforce.format_monitor",
        "WithinFormat": "graftlm.reinforce.format_guards",
        "forking_token_mask": "graftlm.models.forking",
        "reward": "graftlm.reinforce.built_in_rewards",
        "reward_function": "graftlm.reinforce.rewards",
    },
)

callable_package(__name__, "graftlm.reinforce.reinforce:reinforce_model")
