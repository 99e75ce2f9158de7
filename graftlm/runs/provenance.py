"""Where a result comes from: command line, versions, commit, time."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from graftlm import __version__

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str | None]:
    """Version of graftlm, Python and each distribution (None: not installed), without importing it."""
    found: dict[str, str | None] = {"graftlm": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def command_line() -> str:
    """The command as a shell would take it again."""
    program = Path(sys.argv[0]).name
    started_as = ["python", "-m", "graftlm"] if program == "__main__.py" else [program]
    return shlex.join([*started_as, *sys.argv[1:]])


def git_commit() -> str | None:
    """Commit of the checkout that graftlm runs from, "-dirty" where edited; None where it was installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
