"""Every public name of the last version can still be imported; one that has moved says where to."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import graftlm

KEPT = {
    "graftlm": [
        "ForkingTokenGRPOConfig", "ForkingTokenGRPOTrainer", "Format", "FormatMonitor", "InputError", "Metric",
        "MultiTokenConfig", "MultiTokenHeads", "MultiTokenModel", "MultiTokenTrainer", "ProxyTunedModel",
        "PrunedChain", "Task", "TaskResult", "__version__", "audit", "distill_heads", "evaluate",
        "forking_token_mask", "head_losses", "load_model", "prune_chain",
    ],
    "graftlm.auditing.audit": ["audit"],
    "graftlm.models": ["load_model"],
    "graftlm.proxy": ["ProxyTunedConfig", "ProxyTunedModel", "disagreement_above"],
    "graftlm.pruning": ["ChainToken", "PrunedChain", "prune_chain"],
    "graftlm.reinforce": [
        "ForkingTokenGRPOConfig", "ForkingTokenGRPOTrainer", "Format", "FormatDivergence", "FormatMonitor",
        "WithinFormat", "forking_token_mask", "reward_function",
    ],
    "graftlm.runs": ["Run"],
    "graftlm.serve": ["ServeSettings", "create_app", "serve"],
    "graftlm.tasks": [
        "TASKS", "Capitals", "Code", "Elements", "FileProbe", "GeneralText", "Glosses", "HarnessTask", "Metric",
        "Molecules", "Reasoning", "Task", "TaskResult", "get_task",
    ],
}  # fmt: skip
MOVED = {
    "graftlm.adapters": ["merged"],
    "graftlm.datasets": ["general_prompts", "general_text", "load_rows", "prompt_tokens"],
    "graftlm.multitoken": [
        "DistillConfig", "Distillation", "MultiTokenConfig", "MultiTokenHeads", "MultiTokenModel", "MultiTokenTrainer",
        "TuneConfig", "WrittenText", "distill_heads", "head_losses", "write_texts",
    ],
    "graftlm.multitoken.distill": ["distill"],
    "graftlm.multitoken.speculative": ["HeadsDecoding"],
    "graftlm.multitoken.tune": ["tune"],
    "graftlm.multitoken.written_text": ["write_texts"],
    "graftlm.report": [
        "agreement_section", "audit_verdict", "losses_section", "reinforce_verdict", "write_audit_report",
        "write_prune_report", "write_reinforce_report",
    ],
    "graftlm.tasks.generation": ["generate_completions"],
}  # fmt: skip


def pairs(names: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(module, name) for module, those in names.items() for name in those]


@pytest.mark.parametrize(("module", "name"), pairs(KEPT))
def test_a_public_name_is_where_it_was(module: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert getattr(import_module(module), name) is not None


@pytest.mark.parametrize(("module", "name"), pairs(MOVED))
def test_a_name_that_has_moved_works_and_says_where_it_is(module: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now graftlm\..*\.{name}"):
        assert getattr(import_module(module), name) is not None


def test_all_that_the_package_lists_can_be_imported() -> None:
    assert [name for name in graftlm.__all__ if not hasattr(graftlm, name)] == []


def test_importing_the_package_brings_no_torch() -> None:
    code = "import sys, graftlm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
