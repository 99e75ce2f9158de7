"""Every side-by-side measurement, one after another, then summary, README and docs: what `make bench` runs.

    .venv/bin/python bench/everything.py --folder /tmp/bench                all areas, from nothing
    .venv/bin/python bench/everything.py --folder /tmp/bench --only audit   one, by itself

An area's figures replace those in bench/results when it has been measured to its end, and bench/results/runs.json says
which run they are of. A run that was cut off goes on with the area, and within pruning with the chain, that it was at;
one that came to its end is followed by a new one. FOLDER keeps the models that are trained for it. On two cores
training them takes an hour and a half, once, and the run two hours. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from graftlm.runs.console import say
from graftlm.runs.files import dump_json, remove, write_text
from graftlm.runs.provenance import git_commit, now

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CHAINS = ["--chains", "3", "--longest", "100", "--every", "20"]
"""For pruning: twenty minutes. docs/pruning.md has the figures of 20 chains, longer ones among them."""


class Preparation(NamedTuple):
    """`made`: what is there once `command` has been run; it is not run again."""

    made: Path
    command: list[str]


class Measurement(NamedTuple):
    """`output`: the file that `command --output` writes, in bench/results in the end."""

    output: str
    command: list[str]


def areas(folder: Path) -> dict[str, list[Preparation | Measurement]]:
    sibling, expert, drafting = folder / "sibling", folder / "expert", ["--folder", str(folder / "speculative")]
    tune = ["-m", "graftlm", "tune", "--model", str(sibling), "--objective", "next-token", "--data", "molecules",
            "--max-steps", "100", "--learning-rate", "6e-4", "--output", str(expert), "--overwrite"]  # fmt: skip
    small_models = ["--antiexpert", str(sibling), "--expert", str(expert / "model")]
    return {
        "multitoken": [
            Preparation(ROOT / ".venv-reference" / ".complete", ["bench/setup_reference.sh"]),
            Measurement("multitoken_step.json", ["bench/multitoken_step.py"]),
        ],
        "proxy": [
            Preparation(sibling / "config.json", ["bench/small_sibling.py", "--output", str(sibling)]),
            Preparation(expert / "model", tune),
            Measurement("proxy/decoding.json", ["bench/proxy_decoding.py", *small_models]),
        ],
        "speculative": [
            Measurement("speculative.json", ["bench/speculative.py", *drafting]),
            Measurement("speculative_sampling.json", ["bench/speculative_sampling.py", *drafting]),
        ],
        "forking": [Measurement("forking/step.json", ["bench/forking_step.py", "--tokens", "48"])],
        "pruning": [Measurement("pruning/speed.json", ["bench/pruning_speed.py", *CHAINS])],
        "audit": [Measurement("audit.json", ["bench/audit.py"])],
        "server": [Measurement("serve_load.json", ["bench/serve_load.py"])],
        **({"gpu": [Measurement("gpu.json", ["bench/gpu.py"])]} if torch.cuda.is_available() else {}),
    }


def measured(steps: Iterable[Preparation | Measurement], outputs: Path) -> bool:
    """Whether all steps of an area could be done; its figures are in bench/results only then."""
    found = []
    for step in steps:
        command = step.command
        if isinstance(step, Preparation):
            if step.made.exists():
                continue
        else:
            output = outputs / step.output
            output.parent.mkdir(parents=True, exist_ok=True)
            command = [*command, "--output", str(output)]
            found.append(step.output)
        say(" ".join(command))
        program = [] if command[0].endswith(".sh") else [sys.executable]
        if subprocess.run([*program, *command], cwd=ROOT).returncode != 0:
            return False
    for name in found:
        for output in (outputs / name).parent.glob(f"{Path(name).stem}.*"):  # some write a table beside the figures
            write_text(RESULTS / Path(name).with_suffix(output.suffix), output.read_text("utf-8"))
    return True


def record(area: str, origin: dict[str, Any]) -> None:
    runs = RESULTS / "runs.json"
    known = json.loads(runs.read_text("utf-8")) if runs.exists() else {}
    write_text(runs, dump_json({**known, area: origin}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for models, which are used again, and for the run")
    parser.add_argument("--only", nargs="+", metavar="AREA", help="some of the areas, outside the run of all")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    every = areas(folder)
    if unknown := [name for name in arguments.only or [] if name not in every]:
        parser.error(f"there is no area {unknown[0]!r}; there are {', '.join(every)}")
    begun, outputs = folder / "run.json", folder / ("part" if arguments.only else "run")
    if arguments.only or not begun.exists():
        remove(outputs)
    run: dict[str, Any] = {"begun": now(), "finished": []}
    if begun.exists() and not arguments.only:
        run = json.loads(begun.read_text("utf-8"))
    commit, failed = git_commit(), []
    for name in arguments.only or every:
        if name in run["finished"]:
            say(f"{name}: measured in this run already")
            continue
        say(name)
        if not arguments.only:
            write_text(begun, dump_json(run) + "\n")
        started = time.monotonic()
        if not measured(every[name], outputs):
            failed.append(name)
            continue
        run["finished"].append(name)
        record(name, {"run": run["begun"], "commit": commit, "minutes": round((time.monotonic() - started) / 60, 1)})
    if not arguments.only and not failed:
        remove(begun)
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries only them again")
    for program in ("bench/summary.py", "bench/documents.py"):
        subprocess.run([sys.executable, program], cwd=ROOT, check=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
