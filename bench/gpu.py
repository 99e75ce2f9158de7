"""On a GPU: what graftlm's own code takes beside its peers and its limit, in one process and in turns.

    .venv/bin/python bench/gpu.py --output bench/results/gpu.json

- loss: cross-entropy from hidden states, forward and backward, in bfloat16: all logits at once and torch's
  cross_entropy, TRL's fused kernel (Triton), ours with several numbers of rows a chunk, and the two bare products.
- step: a LoRA step with heads beside TRL's next-token step, 16 rows of 512 tokens, half of them supervised.
- pruning: exact and screened beside the plain algorithm, with several sizes of a pass, and the same in bfloat16.

Milliseconds and peak bytes are of the device; the median of the repeats counts. The decoding benches
(bench/speculative.py, bench/proxy_decoding.py) and bench/forking_step.py run on a GPU as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from multitoken_trainer import multitoken_trainer, optimization_step
from pruning_speed import BASE, agreement, chains, plain
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from graftlm import load_model, prune_chain
from graftlm.models import linear_cross_entropy as fused
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions

REPEATS = 10


def milliseconds(run: Callable[[], object], repeats: int = REPEATS) -> dict[str, float]:
    """Median, least and peak memory above what was there."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(repeats):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        found.append(begun.elapsed_time(ended))
    peak = torch.cuda.max_memory_allocated() - before
    return {"median_ms": statistics.median(found), "least_ms": min(found), "peak_mib": peak / 2**20}


def loss() -> dict[str, Any]:
    found = {}
    for rows, hidden, words, trained in (
        (8192, 576, 49152, False), (8192, 4096, 128256, False), (8192, 4096, 128256, True)
    ):  # fmt: skip
        states = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = (torch.randn(words, hidden, device="cuda", dtype=torch.bfloat16) / hidden**0.5).requires_grad_(trained)
        targets = torch.randint(words, (rows,), device="cuda")
        weights = torch.full((rows,), 1 / rows, device="cuda")
        wanted = [states, *([weight] if trained else [])]
        found[f"{rows} rows x {hidden} x {words}{', trained' if trained else ''}"] = peers_of_loss(
            states, weight, targets, weights, wanted
        )
        del states, weight, wanted
        torch.cuda.empty_cache()
    return found


def peers_of_loss(
    states: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, wanted: list[Tensor]
) -> dict[str, Any]:
    def all_logits() -> tuple[Tensor, ...]:
        logits = torch.nn.functional.linear(states, weight).float()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), wanted)

    def trl(chunk: int) -> tuple[Tensor, ...]:
        log_probs = ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, chunk, None, 1.0, ())[0]
        return torch.autograd.grad(-log_probs.mean(), wanted)

    def ours(rows: int) -> tuple[Tensor, ...]:
        fused.ACCELERATOR_CHUNK_ROWS = rows
        return torch.autograd.grad(fused.linear_cross_entropy(states, weight, targets, weights).loss, wanted)

    def products() -> None:
        with torch.no_grad():
            for part in states.split(2048):
                logits = part @ weight.t()
                logits @ weight
                if len(wanted) > 1:
                    logits.t() @ part

    peers: dict[str, Callable[[], object]] = {"all logits": all_logits}
    peers |= {f"TRL, chunks of {chunk} words": lambda chunk=chunk: trl(chunk) for chunk in (4096, 16384)}
    peers |= {f"ours, {rows} rows": lambda rows=rows: ours(rows) for rows in (256, 512, 1024, 2048, 4096)}
    peers["bare products"] = products
    exact = all_logits()
    for name, run in peers.items():
        if name not in ("all logits", "bare products"):
            for gradient, expected in zip(run(), exact, strict=True):
                error = float((gradient - expected).float().norm() / expected.float().norm())
                assert error < 2e-2, f"{name}: gradient off by {error}"
    del exact
    torch.cuda.empty_cache()
    found = {name: milliseconds(run) for name, run in peers.items()}
    for name, each in found.items():
        say(f"  {name}: {each['median_ms']:.2f} ms, {each['peak_mib']:.0f} MiB")
    return found


def step() -> dict[str, Any]:
    found = {}
    for name, heads in (("TRL next-token", 0), ("4 heads", 4)):
        for dtype in (torch.float32, torch.bfloat16):
            model, tokenizer = load_model(BASE, dtype=dtype)
            ids = torch.randint(5, 49152, (16, 512), device="cuda")
            labels = ids.masked_fill(torch.arange(512, device="cuda") < 256, -100)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            with tempfile.TemporaryDirectory() as folder:
                trainer, _ = multitoken_trainer(model, tokenizer, num_heads=heads, recompute_every=0, folder=folder)
                label = f"{name}, weights in {str(dtype).rpartition('.')[2]}"
                found[label] = milliseconds(partial(optimization_step, trainer, batch))
                say(f"  {label}: {found[label]['median_ms']:.1f} ms, {found[label]['peak_mib']:.0f} MiB")
    return found


def pruning() -> dict[str, Any]:
    found: dict[str, Any] = {}
    orders = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_model(BASE, dtype=dtype)
        prune_chain(model, tokenizer, "One and one?\n", "It is two.", "\n2")  # what only the first passes take
        for question, chain, answer, encoding in chains(tokenizer, 1, 60, 80):
            name = f"{len(encoding.chain)} tokens, {str(dtype).rpartition('.')[2]}"
            each: dict[str, Any] = {"seconds": {}, "spearman": {}}
            for mode in ("exact", "screened"):
                for batch in (512, 16384):
                    begun = time.perf_counter()
                    pruned = prune_chain(model, tokenizer, question, chain, answer, mode=mode, batch_tokens=batch)
                    each["seconds"][f"{mode}, {batch}"] = time.perf_counter() - begun
                    exact = orders.setdefault(chain, pruned.order)  # in float32, with the passes of the CPU
                    each["spearman"][f"{mode}, {batch}"] = agreement(exact, pruned.order)
            for batch in (1024, 16384):
                taken, steps, differing = plain(model, encoding, orders[chain], 1, lambda _: None, batch)
                each["seconds"][f"plain, {batch}"] = taken
                each["steps"], each["differing"] = steps, differing
            found[name] = each
            say(f"  {name}: " + ", ".join(f"{mode} {seconds:.2f} s" for mode, seconds in each["seconds"].items()))
            say(f"  {each['spearman']}, {len(each['differing'])} of {each['steps']} choices differ")
    return found


PARTS = {"loss": loss, "step": step, "pruning": pruning}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py needs a CUDA device; the other benches run on a CPU")
    document = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    made = {"device": torch.cuda.get_device_name(), "versions": versions()}
    if any(document.get(name) != value for name, value in made.items()):
        document = made  # what another card or version took stands beside nothing of this one
    for name in arguments.only:
        say(name)
        document[name] = PARTS[name]()
        write_text(arguments.output, dump_json(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
