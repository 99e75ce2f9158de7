"""Every side-by-side measurement, one after another, then the summary: what `make bench` runs.

    .venv/bin/python bench/everything.py --folder /tmp/bench                all areas, from nothing
    .venv/bin/python bench/everything.py --folder /tmp/bench --only audit   one

FOLDER keeps the models that are trained for it, so that a call that was cut off does not train them again; what was
measured is measured anew. All of it takes several hours on two cores, half of them for pruning's 20 chains.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from graftlm.console import say

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results"


def areas(folder: Path) -> dict[str, list[tuple[str | None, list[str]]]]:
    """Area -> (what is there once the step has been done, or None for a measurement; the step's command)."""
    sibling, expert = str(folder / "sibling"), str(folder / "expert")
    graftlm = ["-m", "graftlm"]
    return {
        "multitoken": [
            (".venv-reference/.complete", ["bench/setup_reference.sh"]),
            (None, ["bench/multitoken_step.py", "--output", f"{RESULTS}/multitoken_step.json"]),
        ],
        "proxy": [
            (f"{sibling}/config.json", ["bench/small_sibling.py", "--output", sibling]),
            (f"{expert}/model", [*graftlm, "tune", "--model", sibling, "--objective", "next-token",
                                 "--data", "molecules", "--output", expert, "--overwrite"]),
            (None, ["bench/proxy_decoding.py", "--antiexpert", sibling, "--expert", f"{expert}/model", "--output",
                    f"{RESULTS}/proxy/decoding.json"]),
        ],
        "speculative": [
            (None, ["bench/speculative.py", "--folder", str(folder / "speculative")]),
            (None, ["bench/speculative_sampling.py", "--folder", str(folder / "speculative")]),
        ],
        "forking": [(None, ["bench/forking_step.py", "--output", f"{RESULTS}/forking/step.json"])],
        "pruning": [(None, ["bench/pruning_speed.py", "--every", "20", "--output", f"{RESULTS}/pruning/speed.json"])],
        "audit": [(None, ["bench/audit.py"])],
        "server": [(None, ["bench/serve_load.py", "--output", f"{RESULTS}/serve_load.json"])],
        **({"gpu": [(None, ["bench/gpu.py"])]} if torch.cuda.is_available() else {}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for models, which are used again")
    parser.add_argument("--only", nargs="+", metavar="AREA", help="some of the areas")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    every = areas(folder)
    if unknown := [name for name in arguments.only or [] if name not in every]:
        parser.error(f"there is no area {unknown[0]!r}; there are {', '.join(every)}")
    failed = []
    for name in arguments.only or every:
        for there, command in every[name]:
            if there is not None and (ROOT / there).exists():
                continue
            program = [] if command[0].endswith(".sh") else [sys.executable]
            say(f"{name}: {' '.join(command)}")
            if subprocess.run([*program, *command], cwd=ROOT).returncode != 0:
                failed.append(name)
                break
    subprocess.run([sys.executable, "bench/summary.py"], cwd=ROOT, check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the summary has their earlier figures, if any")


if __name__ == "__main__":
    main()
