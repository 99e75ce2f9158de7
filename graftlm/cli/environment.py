"""The environment that graftlm runs in: versions, machine, cache, the bundled model, optional parts."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Any

from graftlm.models.bundled import SMOLLM2_135M, cache_folder, find_gguf
from graftlm.runs.provenance import git_commit, versions

EXTRAS = {
    "molecules": ("rdkit",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "eval": ("lm_eval",),
    "math": ("math_verify",),
    "reasoning": ("reasoning_gym",),
    "dev": ("pytest", "ruff", "mypy"),
}


def describe_environment() -> dict[str, Any]:
    """Plain facts, ready for JSON; memory in GiB. Imports torch."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cores": cores(),
        "torch_threads": torch_threads(),
        "memory_gib": memory_gib(),
        "gpus": gpus(),
        "cache_folder": str(cache_folder()),
        SMOLLM2_135M.name: bundled_model(),
        "extras": {name: all(find_spec(module) for module in modules) for name, modules in EXTRAS.items()},
    }


def cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def memory_gib() -> float | None:
    """The machine's memory; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def gpus() -> list[str]:
    """Name and memory of each CUDA or ROCm device, and the kind of any other accelerator."""
    import torch

    names = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        names.append(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)")
    if not names and torch.accelerator.is_available():
        names.append(str(torch.accelerator.current_accelerator()))
    return names


def bundled_model() -> str:
    """Where the default model comes from on this machine."""
    if (cache_folder() / SMOLLM2_135M.name).is_dir():
        return "in the cache"
    if find_gguf(SMOLLM2_135M) is not None:
        return "installed; converted into the cache on first use"
    return f"not installed: {SMOLLM2_135M.install_command}"
