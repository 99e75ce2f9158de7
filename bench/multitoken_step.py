"""One optimisation step, side by side: graftlm's multi-token step, TRL's next-token step, the reference `caft-llm`.

    bench/setup_reference.sh                                  # once: the reference's own environment
    .venv/bin/python bench/multitoken_step.py --output bench/results/multitoken_step.json

Every arm runs alone in a process of its own, one after another, on the same SmolLM2-135M, LoRA rank 8 on all linear
layers of the decoder, and the same batches of 8 rows: 128 tokens with half or a quarter of the positions supervised,
and rows of 32 to 128 tokens with half supervised. A step is forward, loss, backward, AdamW, gradients cleared.

The lower bound is the time that the step's necessary matrix products take alone, each at its own shape. It is measured
in the arm's own process, in turns with the steps, so that both meet the same machine; of both the fastest counts.
Necessary are: the decoder forward and the
gradient with respect to its inputs (its weights are frozen), the same of the heads, LoRA's products, attention over
the causal half, and of each head's supervised rows the unembedding forward and back; padding is not. `× best`
divides all FLOPs by the fastest speed of any shape instead, which no mixture of these shapes reaches. A run that was
cut short goes on with the arms that are missing; delete the output to start anew.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
REFERENCE = HERE.parent / ".venv-reference" / "bin" / "python"
ROWS, TIME, RANK = 8, 128, 8
BATCHES = ("half", "quarter", "varied")
RECOMPUTE_EVERY = 5  # what `graftlm tune` does on a CPU: every fifth layer is computed again in the backward pass
LIVE = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}


def make_batches(folder: Path, vocabulary: int) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    for name in BATCHES:
        lengths = random.integers(32, TIME + 1, ROWS) if name == "varied" else np.full(ROWS, TIME)
        width = int(lengths.max())
        ids = random.integers(5, vocabulary, (ROWS, width))
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        share = 0.25 if name == "quarter" else 0.5
        supervised = (np.arange(width) >= (lengths * (1 - share)).astype(int)[:, None]) & (mask == 1)
        np.savez(
            folder / f"{name}.npz",
            input_ids=np.where(mask == 1, ids, 2),
            attention_mask=mask,
            labels=np.where(supervised, ids, -100),
        )


def run_graftlm(arguments: argparse.Namespace) -> dict[str, Any]:
    """graftlm's step (objective multi-token, --num-heads) or TRL's next-token step (--num-heads 0)."""
    import numpy as np
    import torch
    from measure import measure_step, resident_bytes
    from multitoken_trainer import multitoken_trainer, optimization_step

    from graftlm import load_model

    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # safetensors maps the file; the copy is resident
    model.tie_weights()
    baseline = resident_bytes()
    stored = np.load(arguments.batch)
    batch = {name: torch.from_numpy(stored[name]) for name in stored}
    with tempfile.TemporaryDirectory() as folder:
        trainer, heads = multitoken_trainer(
            model, tokenizer, num_heads=arguments.num_heads, recompute_every=arguments.recompute_every, folder=folder
        )
        losses: list[float] = []

        def step() -> None:
            losses.append(float(optimization_step(trainer, batch)))

        result: dict[str, Any] = {}
        seconds, bound = [], []
        needed = products(arguments.batch, arguments.num_heads, model.config)
        for repeat in range(arguments.repeats):
            result = dict(measure_step(step, arguments.warmup if repeat == 0 else 0, 1, baseline))
            seconds += result["seconds"]
            if not arguments.memory_only:
                bound.append(multiply(needed))
    heads_bytes = 4 * sum(p.numel() for p in heads.parameters()) if heads is not None else 0
    result |= {"seconds": seconds, "losses": losses, "heads_bytes": heads_bytes}
    if bound:
        result["flops"] = sum(flops(shape) * count for shape, count in needed)
        result["bound_seconds"] = [sum(of_shape.values()) for of_shape in bound]
        counts = dict(needed)
        result["best_flops_per_second"] = max(
            flops(shape) * counts[shape] / spent for of_shape in bound for shape, spent in of_shape.items()
        )
    return result


Shape = tuple[int, int, int, int]  # as many products as the first says, [m, k] times [k, n]


def flops(shape: Shape) -> int:
    batch, m, k, n = shape
    return 2 * batch * m * k * n


def multiply(needed: list[tuple[Shape, int]]) -> dict[Shape, float]:
    """Seconds that the products of each shape take, one pass over all of them."""
    import torch

    seconds = {}
    for shape, count in needed:
        batch, m, k, n = shape
        left, right, out = torch.randn(batch, m, k), torch.randn(batch, k, n), torch.empty(batch, m, n)
        if batch == 1:
            left, right, out = left[0], right[0], out[0]
        product = torch.mm if batch == 1 else torch.bmm
        product(left, right, out=out)
        started = time.perf_counter()
        for _ in range(count):
            product(left, right, out=out)
        seconds[shape] = time.perf_counter() - started
    return seconds


def products(batch: Path, num_heads: int, config: Any) -> list[tuple[Shape, int]]:
    """The necessary matrix products of a step: each shape once, and how many there are of it."""
    import numpy as np

    stored = np.load(batch)
    tokens = int(stored["attention_mask"].sum())
    rows = sum(int((stored["labels"][:, k + 1 :] != -100).sum()) for k in range(num_heads + 1))
    hidden, inner = config.hidden_size, config.intermediate_size
    wide = config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    linear = [(hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden)]
    linear += [(hidden, inner), (hidden, inner), (inner, hidden)]
    layers = config.num_hidden_layers
    needed: list[tuple[tuple[int, int, int], int]] = []
    for inputs, outputs in linear:
        needed += [((tokens, inputs, outputs), layers + num_heads), ((tokens, outputs, inputs), layers + num_heads)]
        # LoRA: down and up, forward, with respect to inputs, with respect to weights.
        needed += [((tokens, inputs, RANK), 3 * layers), ((tokens, RANK, outputs), 3 * layers)]
    needed += [((rows, hidden, config.vocab_size), 1), ((rows, config.vocab_size, hidden), 1)]
    counts: collections.Counter[Shape] = collections.Counter()
    for (m, k, n), count in needed:
        counts[1, m, k, n] += count
    for length in stored["attention_mask"].sum(1).tolist():
        # Two products forward and four back, of which causal attention needs half.
        counts[config.num_attention_heads, length, config.head_dim, length] += 3 * (layers + num_heads)
    return list(counts.items())


def call(command: list[str], output: Path, live_memory: bool = False) -> dict[str, Any]:
    """Run a worker; with `live_memory` glibc gives every larger block back when it is freed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(LIVE if live_memory else {})})
    if done.returncode:
        sys.exit(f"multitoken_step: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")
    return dict(json.loads(output.read_text()))


def measure_arm(command: list[str], output: Path, repeats: int) -> dict[str, Any]:
    """Seconds from one process, peak memory from another: what makes the second exact slows the first."""
    timed = call([*command, "--warmup", "1", "--repeats", str(repeats)], output)
    no_bound = ["--memory-only"] if "--worker" in command else []  # the reference's process measures none
    weighed = call([*command, "--warmup", "1", "--repeats", "1", *no_bound], output, live_memory=True)
    return {**timed, "peak_bytes": weighed["peak_bytes"]}


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    from graftlm.models.bundled import SMOLLM2_135M, bundled_folder

    if not REFERENCE.exists():
        sys.exit("multitoken_step: the reference's environment is missing; run bench/setup_reference.sh first")
    model = str(bundled_folder(SMOLLM2_135M))
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "arms": {},
    }
    if arguments.output.exists():
        results["arms"] = json.loads(arguments.output.read_text("utf-8"))["arms"]
    arms = results["arms"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch), Path(scratch) / "result.json"
        make_batches(folder, 49152)
        shared = ["--output", str(output), "--threads", str(arguments.threads)]
        me = [sys.executable, str(Path(__file__)), "--model", model, *shared]
        for name in BATCHES:
            batch = folder / f"{name}.npz"
            step = [*me, "--worker", "step", "--batch", str(batch)]
            workers = {"trl-next-token": [*step, "--num-heads", "0"]}
            for heads in arguments.heads if name == "half" else [4]:
                ours = [*step, "--num-heads", str(heads), "--recompute-every"]
                workers[f"graftlm-{heads}"] = [*ours, str(RECOMPUTE_EVERY)]
                if heads == 4:
                    workers["graftlm-all-kept-4"] = [*ours, "0"]
            for heads in arguments.reference_heads if name == "half" else [4]:
                worker = [str(REFERENCE), str(HERE / "multitoken_step_reference.py"), model, str(batch), *shared]
                workers[f"reference-{heads}"] = [*worker, "--num-heads", str(heads)]
            for label, worker in workers.items():
                if f"{name}/{label}" in arms:
                    continue
                arm = arms[f"{name}/{label}"] = measure_arm(worker, output, arguments.repeats)
                arguments.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
                line = f"{name}/{label}: {min(arm['seconds']):.2f} s, {arm['peak_bytes'] / 2**20:.0f} MiB"
                print(line, file=sys.stderr, flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: the fastest of the repeats of each arm, peak memory above the weights, and the ratios."""
    arms = results["arms"]
    best = max(arm.get("best_flops_per_second", 0) for arm in arms.values())
    lines = [
        "| batch | arm | seconds (min of n; max) | × reference speed | peak MiB | of reference | × bound | × best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, arm in arms.items():
        batch, label = key.split("/")
        heads = int(label.rpartition("-")[2]) if label[-1].isdigit() else 0
        seconds, peak = min(arm["seconds"]), arm["peak_bytes"]
        reference = arms.get(f"{batch}/reference-{heads}")
        # The reference's process has no torch of the same version: graftlm's bound of the same step stands for it.
        measured = arm if "bound_seconds" in arm else arms.get(f"{batch}/graftlm-{heads}")
        faster = f"{min(reference['seconds']) / seconds:.2f}" if reference else ""
        smaller = f"{peak / reference['peak_bytes']:.2f}" if reference else ""
        over = f"{seconds / min(measured['bound_seconds']):.2f}" if measured else ""
        over_best = f"{seconds / (measured['flops'] / best):.2f}" if measured else ""
        spread = f"{seconds:.2f} ({len(arm['seconds'])}; {max(arm['seconds']):.2f})"
        lines.append(
            f"| {batch} | {label} | {spread} | {faster} | {peak / 2**20:.0f} | {smaller} | {over} | {over_best} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a multi-token step against its peers and its lower bound.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .md")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--heads", type=int, action="append", help="numbers of heads (default 1, 2, 4, 8)")
    parser.add_argument("--reference-heads", type=int, action="append", help="default 1, 4, 8")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    for hidden, kind in (
        ("--worker", str),
        ("--model", str),
        ("--batch", Path),
        ("--num-heads", int),
        ("--recompute-every", int),
    ):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.heads = arguments.heads or [1, 2, 4, 8]
    arguments.reference_heads = arguments.reference_heads or [1, 4, 8]
    if arguments.worker == "step":
        arguments.output.write_text(json.dumps(run_graftlm(arguments)))
    else:
        results = measure_all(arguments)
        arguments.output.with_suffix(".md").write_text(table(results) + "\n")
        print(table(results))


if __name__ == "__main__":
    main()
