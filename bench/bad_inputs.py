"""Generated bad inputs, each of which must be refused: exit status 2 and one line that names the culprit.

    .venv/bin/python bench/bad_inputs.py --output bench/results/bad_inputs.json
    .venv/bin/python bench/bad_inputs.py --area adapters --count 50 --show 20

The command line runs in a worker process that has imported everything once; a case that takes longer than the limit,
or kills the worker, is counted as such. What is drawn depends on the seed and the case's number alone, so that
`--only adapters:17` runs one case again. Exit status 1 if one was not refused as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

REFUSED = "refused"
SECONDS = 60.0
VERDICTS = (REFUSED, "taken", "exit 1", "other exit", "culprit not named", "several lines", "hang", "crash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--area", action="append", help="Only this area; repeatable.")
    parser.add_argument("--count", type=int, help="So many of each area instead of its own number.")
    parser.add_argument("--only", help="AREA:NUMBER, one case, shown in full.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=10, help="Failures of each area to show.")
    parser.add_argument("--output", type=Path, help="JSON of the counts; a Markdown table is written beside it.")
    options = parser.parse_args()
    if options.only:
        area, number = options.only.rsplit(":", 1)
        wanted = [(area, int(number))]
    else:
        wanted = list(cases(options.area, options.count))
    found: dict[str, Counter[str]] = {}
    shown: Counter[str] = Counter()
    for (area, number), verdict, case, said in results(wanted, options.seed):
        found.setdefault(area, Counter())[verdict] += 1
        if options.only or (verdict != REFUSED and shown[area] < options.show):
            shown[area] += 1
            print(f"{area}:{number} {verdict}: {case}\n    {said[-400:]!r}", flush=True)
    table = markdown(found)
    print(table)
    if options.output:
        counts = {area: dict(counter) for area, counter in found.items()}
        options.output.write_text(json.dumps({"seed": options.seed, "counts": counts}, indent=2) + "\n", "utf-8")
        options.output.with_suffix(".md").write_text(table, "utf-8")
    sys.exit(any(verdict != REFUSED for counter in found.values() for verdict in counter))


def cases(areas: list[str] | None, count: int | None) -> Iterator[tuple[str, int]]:
    for area in areas or generators():
        yield from ((area, number) for number in range(count or generators()[area][1]))


def generators() -> dict[str, tuple[Any, int]]:
    """Area -> its generator, and how many are drawn; of HTTP the requests are drawn by `bad_http_cases`."""
    import bad_checkpoint_cases as files
    import bad_input_cases as words

    return {
        "settings": (words.settings, 1600), "YAML": (words.yaml_files, 500), "data": (words.data_files, 700),
        "checkpoints": (files.checkpoints, 600), "generation configs": (files.generation_configs, 300),
        "adapters": (files.adapters, 400), "heads": (files.heads, 300), "tokenizers": (files.tokenizers, 300),
        "HTTP": (None, 500),
    }  # fmt: skip


def results(wanted: list[tuple[str, int]], seed: int) -> Iterator[tuple[tuple[str, int], str, str, str]]:
    """(case, verdict, what it is, the last of stderr) of each; the worker is started anew where it died."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        here: Any = None
        worker: Any = None
        for one in wanted:
            if worker is None:
                here, there = context.Pipe()
                worker = context.Process(target=work, args=(there, Path(folder), seed), daemon=True)
                worker.start()
                assert here.poll(300) and here.recv() == "ready"
            here.send(one)
            try:
                if here.poll(SECONDS):
                    yield (one, *here.recv())
                    continue
                verdict = "hang"
            except EOFError:
                verdict = "crash"
            worker.kill()
            worker.join()
            worker = None
            yield one, verdict, "", ""
        if worker is not None:
            worker.kill()
            worker.join()


def work(pipe: Connection, folder: Path, seed: int) -> None:
    """Run the cases that come through the pipe."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from bad_http_cases import Application, request
    from bad_input_cases import make_good

    torch.set_num_threads(1)
    good = folder / "good"
    if not good.exists():
        make_good(good)
    app: Any = None
    pipe.send("ready")
    while True:
        area, number = pipe.recv()
        own = folder / "case"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        rng, draw = Random(f"{seed}:{area}:{number}"), generators()[area][0]
        if draw is None:
            kind, path, body, culprits = request(rng)
            app = Application(good / "model") if app is None else app
            status, said = app.send(path, body)
            pipe.send(
                (judge({400: 2, 200: 0}.get(status, status), said, culprits), f"{kind} | {path} {body[:200]!r}", said)
            )
            continue
        case = draw(rng, good, own)
        os.chdir(own)
        status, said = run(case.arguments)
        shown = f"{case.kind} | {' '.join(case.arguments)}".replace(str(own), "CASE").replace(str(good), "GOOD")
        pipe.send((judge(status, said, case.culprits), shown, said))


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and stderr of the command line, in this process."""
    from graftlm.cli import main as command_line

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_line(arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException as error:
            errors.write(f"\n{type(error).__name__}: {error}")
            status = 1
    return status, errors.getvalue()


def judge(status: int, said: str, culprits: tuple[str, ...]) -> str:
    said = re.sub(r"[^\n]*Warning: [^\n]*\n  warnings.warn\([^\n]*\n", "", said)  # of libraries
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("Usage: ", "Try "))]
    if status != 2:
        return {0: "taken", 1: "exit 1"}.get(status, "other exit")
    if len(lines) != 1:
        return "several lines"
    return REFUSED if any(culprit and culprit in lines[0] for culprit in culprits) else "culprit not named"


def markdown(found: dict[str, Counter[str]]) -> str:
    """The counts of each area."""
    verdicts = [verdict for verdict in VERDICTS if verdict == REFUSED or any(found[area][verdict] for area in found)]
    lines = [f"| area | inputs | {' | '.join(verdicts)} |", f"|---|{'---:|' * (len(verdicts) + 1)}"]
    rows = {**found, "all": sum(found.values(), Counter())}
    for area, counter in rows.items():
        lines.append(f"| {area} | {counter.total()} | {' | '.join(str(counter[verdict]) for verdict in verdicts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
