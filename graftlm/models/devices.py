"""Choose where a model runs, and in which floating-point type."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from graftlm.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(device: torch.device | str | None) -> torch.device:
    """`device` if this machine has it; None is the process's accelerator or the CPU."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return torch.device(here.type, int(os.environ.get("LOCAL_RANK", "0"))) if here else torch.device("cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown; give cpu, cuda or cuda:0") from error
    if target.type not in ("cpu", "meta", here.type if here else "cpu"):
        raise InputError(f"device {device!r} is not available here; it has {here.type if here else 'cpu'}")
    return target


def resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype | str:
    """A floating torch dtype, or "auto" (the checkpoint's own) off the CPU."""
    import torch

    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if isinstance(resolved, torch.dtype) and resolved.is_floating_point:
        return resolved
    raise InputError(f"dtype {dtype!r} is unknown; give auto, float32, bfloat16 or float16")
