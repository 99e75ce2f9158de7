"""Times a training step and measures its peak memory. Standard library only: all environments import it.

What is measured (Linux):

- seconds: wall clock of each call of the step, the warm-up calls left out.
- peak memory: the kernel's high-water mark of this process's resident set (VmHWM), reset just before the
  timed steps by writing 5 to /proc/self/clear_refs, minus the resident set (VmRSS) at the baseline. Take
  the baseline with `resident_bytes()` right after the model is loaded and everything is imported; without
  one, it is taken on entry. So the peak counts heads, adapters, gradients, optimizer state, activations,
  logits, and also what the allocator holds back and the library pages that a step is first to touch.

Two traps are closed. Heap that loading left free but resident would hide part of a step's memory: it is
given back to the system before a baseline is read. Weights that are still a lazy mapping of the file
would enter the resident set only in the first step: see that they are copied to memory before the
baseline (`tensor.clone()`).
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class Measurement(TypedDict):
    """seconds: one per repeat; in bytes: peak above the baseline, the baseline, the peak resident set."""

    seconds: list[float]
    peak_bytes: int
    baseline_bytes: int
    peak_resident_bytes: int


def resident_bytes() -> int:
    """Resident set of this process in bytes, after garbage and free heap went back to the system."""
    gc.collect()
    # glibc only; elsewhere free heap stays in the baseline
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status_bytes("VmRSS")


def measure_step(
    step: Callable[[], object], warmup: int, repeats: int, baseline_bytes: int | None = None
) -> Measurement:
    """Call `step` warmup + repeats times and measure the last `repeats` calls.

    The step must be complete in itself (a batch, forward, backward, optimizer step, gradients cleared) and
    wait for its own work to be done. Raises ValueError for repeats < 1 and OSError where /proc/self cannot
    tell (not Linux).
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    if baseline_bytes is None:
        baseline_bytes = resident_bytes()
    for _ in range(warmup):
        step()
    gc.collect()
    CLEAR_REFS.write_text("5")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = _status_bytes("VmHWM")
    return Measurement(
        seconds=seconds,
        peak_bytes=peak - baseline_bytes,
        baseline_bytes=baseline_bytes,
        peak_resident_bytes=peak,
    )


def _status_bytes(field: str) -> int:
    """A "kB" field of /proc/self/status, in bytes."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {field}")
