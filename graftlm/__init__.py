"""graftlm: tune a language model for a domain without cutting its roots.

The names below are imported when they are first used, so that `import graftlm` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.data.named import Rows, add_named_data
from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftlm.auditing.audit import audit
    from graftlm.errors import InputError
    from graftlm.experiments.study import study_model as study
    from graftlm.heads.distill import distill_heads
    from graftlm.heads.distill import distill_model as distill
    from graftlm.heads.heads import MultiTokenHeads
    from graftlm.heads.loss import head_losses
    from graftlm.models.load import load_model
    from graftlm.models.restore import restore
    from graftlm.proxy import ProxyTunedModel
    from graftlm.pruning import PrunedChain, prune_chain
    from graftlm.pruning.prune import prune_data as prune
    from graftlm.reinforce import (
        ForkingTokenGRPOConfig,
        ForkingTokenGRPOTrainer,
        Format,
        FormatMonitor,
        forking_token_mask,
    )
    from graftlm.reinforce.reinforce import reinforce_model as reinforce
    from graftlm.tasks import Metric, Task, TaskResult
    from graftlm.tasks.evaluation import evaluate
    from graftlm.tuning.model import MultiTokenModel
    from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
    from graftlm.tuning.tune import tune_model as tune

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
    "distill",
    "distill_heads",
    "evaluate",
    "forking_token_mask",
    "head_losses",
    "load_model",
    "prune",
    "prune_chain",
    "reinforce",
    "restore",
    "study",
    "tune",
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
        "MultiTokenConfig": "graftlm.tuning",
        "MultiTokenHeads": "graftlm.heads",
        "MultiTokenModel": "graftlm.tuning",
        "MultiTokenTrainer": "graftlm.tuning",
        "ProxyTunedModel": "graftlm.proxy",
        "PrunedChain": "graftlm.pruning",
        "Task": "graftlm.tasks",
        "TaskResult": "graftlm.tasks",
        "audit": "graftlm.auditing.audit",
        "distill": "graftlm.heads.distill:distill_model",
        "distill_heads": "graftlm.heads",
        "evaluate": "graftlm.tasks.evaluation",
        "forking_token_mask": "graftlm.reinforce",
        "head_losses": "graftlm.heads",
        "load_model": "graftlm.models.load",
        "prune": "graftlm.pruning.prune:prune_data",
        "prune_chain": "graftlm.pruning",
        "reinforce": "graftlm.reinforce:",
        "restore": "graftlm.models.restore",
        "study": "graftlm.experiments.study:study_model",
        "tune": "graftlm.tuning.tune:tune_model",
    },
)


def _task_rows() -> Mapping[str, Rows]:
    from graftlm.tasks import TASKS

    return {name: task().rows for name, task in TASKS.items()}


add_named_data(_task_rows)  # here, since graftlm.data may not know graftlm.tasks


def __dir__() -> list[str]:
    return sorted(__all__)
