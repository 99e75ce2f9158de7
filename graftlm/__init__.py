"""graftlm: tune a language model for a domain without cutting its roots.

The names below are imported when they are first used, so that `import graftlm` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.auditing.audit import audit
    from graftlm.errors import InputError
    from graftlm.evaluation import evaluate
    from graftlm.models import load_model
    from graftlm.multitoken import (
        MultiTokenConfig,
        MultiTokenHeads,
        MultiTokenModel,
        MultiTokenTrainer,
        distill_heads,
        head_losses,
    )
    from graftlm.proxy import ProxyTunedModel
    from graftlm.pruning import PrunedChain, prune_chain
    from graftlm.reinforce import (
        ForkingTokenGRPOConfig,
        ForkingTokenGRPOTrainer,
        Format,
        FormatMonitor,
        forking_token_mask,
    )
    from graftlm.tasks import Metric, Task, TaskResult

__version__ = "0.1.0.dev0"

__all__ = [
    "ForkingTokenGRPOConfig",
    "ForkingTokenGRPOTrainer",
    "Format",
    "FormatMonitor",
    "InputError",
    "Metric",
    "MultiTokenConfig",
    "MultiTokenHeads",
    "MultiTokenModel",
    "MultiTokenTrainer",
    "ProxyTunedModel",
    "PrunedChain",
    "Task",
    "TaskResult",
    "__version__",
    "audit",
    "distill_heads",
    "evaluate",
    "forking_token_mask",
    "head_losses",
    "load_model",
    "prune_chain",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ForkingTokenGRPOConfig": "graftlm.reinforce",
        "ForkingTokenGRPOTrainer": "graftlm.reinforce",
        "Format": "graftlm.reinforce",
        "FormatMonitor": "graftlm.reinforce",
        "InputError": "graftlm.errors",
        "Metric": "graftlm.tasks",
        "MultiTokenConfig": "graftlm.multitoken",
        "MultiTokenHeads": "graftlm.multitoken",
        "MultiTokenModel": "graftlm.multitoken",
        "MultiTokenTrainer": "graftlm.multitoken",
        "ProxyTunedModel": "graftlm.proxy",
        "PrunedChain": "graftlm.pruning",
        "Task": "graftlm.tasks",
        "TaskResult": "graftlm.tasks",
        "audit": "graftlm.auditing.audit",
        "distill_heads": "graftlm.multitoken",
        "evaluate": "graftlm.evaluation",
        "forking_token_mask": "graftlm.reinforce",
        "head_losses": "graftlm.multitoken",
        "load_model": "graftlm.models",
        "prune_chain": "graftlm.pruning",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
