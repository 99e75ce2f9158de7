"""Where the time goes on the five main paths: torch's profiler, by operator.

    .venv/bin/python bench/profiles.py --heads FOLDER/heads --antiexpert SIBLING --expert EXPERT/model

Shares are of the process's CPU time with one thread, so that other work on the machine does not move them much. What is
between the operators (Python, their dispatch, and the profiler itself, which makes it look larger) is told as such. The
folders are those that bench/speculative.py and bench/proxy_decoding.py leave.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forking_step import even_length
from forking_step import trainer as reinforcement_trainer
from multitoken_step import make_batches
from multitoken_trainer import multitoken_trainer, optimization_step
from pruning_speed import chains
from torch.profiler import ProfilerActivity, profile

from graftlm import (
    ForkingTokenGRPOTrainer,
    Format,
    FormatMonitor,
    ProxyTunedModel,
    load_model,
    prune_chain,
)
from graftlm.data.load import general_prompts
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.models.few_rows import use_fast_cpu_products
from graftlm.runs.console import say
from graftlm.runs.files import write_text

BASE = "smollm2-135m"
SHOWN = 8
"""Operators told of each path."""

Setup = Callable[[argparse.Namespace], tuple[str, Callable[[], object]]]
"""Sets up what is to be measured: what it is in words, and the function that does it once."""


def multitoken(arguments: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    import numpy as np

    model, tokenizer = load_model(BASE)
    folder = Path(tempfile.mkdtemp())
    trainer, _ = multitoken_trainer(model, tokenizer, num_heads=4, recompute_every=5, folder=str(folder))
    make_batches(folder, model.config.vocab_size)
    stored = np.load(folder / "half.npz")
    batch = {name: torch.from_numpy(stored[name]) for name in stored}
    said = "a step of LoRA with 4 heads, 8 rows of 128 tokens, half of them supervised"
    return said, lambda: optimization_step(trainer, batch)


def prompts_of(tokenizer: Any) -> list[Any]:
    return [tokenizer(text, return_tensors="pt") for text in general_prompts()[:2]]


def proxy(arguments: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    model = ProxyTunedModel(BASE, arguments.expert, arguments.antiexpert)
    prompts = prompts_of(model.tokenizer)

    def write() -> None:
        for inputs in prompts:
            model.generate(**inputs, max_new_tokens=32, do_sample=False)

    return "proxy-tuned decoding, two prompts one by one, 32 tokens each", write


def pruning(arguments: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    model, tokenizer = load_model(BASE)
    question, chain, answer, encoding = chains(tokenizer, 1, 34, 38)[0]
    said = f"exact pruning of a chain of {len(encoding.chain)} tokens"
    return said, lambda: prune_chain(model, tokenizer, question, chain, answer, mode="exact")


def reinforcement(arguments: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    settings = argparse.Namespace(batch_size=16, completions=32, tokens=64, steps=1)
    monitor = FormatMonitor([Format("working", r"\d\s*[-+*/]\s*\d"), Format("boxed", r"\\boxed")])
    rewards = monitor.watch(even_length)

    def step() -> None:
        reinforcement_trainer(ForkingTokenGRPOTrainer, rewards, settings, [monitor]).train()

    return "a step of GRPO on forking tokens with LoRA, 32 completions of 64 tokens, the model's loading included", step


def drafting(arguments: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    model, tokenizer = load_model(BASE)
    decoding = HeadsDecoding.load(model, arguments.heads)
    use_fast_cpu_products(model)
    use_fast_cpu_products(decoding.heads)
    prompts = prompts_of(tokenizer)

    def write() -> None:
        for inputs in prompts:
            decoding.generate(**inputs, max_new_tokens=32, do_sample=False)

    return "decoding with drafting heads, two prompts one by one, 32 tokens each", write


PATHS: dict[str, Setup] = {
    "multi-token step": multitoken,
    "proxy decoding": proxy,
    "pruning": pruning,
    "reinforcement step": reinforcement,
    "drafting heads": drafting,
}


def profiled(name: str, path: Setup, arguments: argparse.Namespace) -> str:
    """A section of Markdown."""
    said, run = path(arguments)
    if path not in (pruning, reinforcement):  # those are long enough for a first call not to show
        run()
    begun = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = time.process_time() - begun
    operators = sorted(profiler.key_averages(), key=lambda each: -each.self_cpu_time_total)
    spent = sum(each.self_cpu_time_total for each in operators) / 1e6
    lines = [f"## {name[0].upper()}{name[1:]}", "", f"{said[0].upper()}{said[1:]}: {seconds:.1f} s of CPU time.", "",
             "| operator | share | calls |", "|---|--:|--:|"]  # fmt: skip
    for each in operators[:SHOWN]:
        lines.append(f"| `{each.key}` | {each.self_cpu_time_total / 1e6 / seconds:.1%} | {each.count:,} |")
    rest = sum(each.self_cpu_time_total for each in operators[SHOWN:]) / 1e6
    lines.append(f"| {len(operators) - SHOWN} other operators | {rest / seconds:.1%} | |")
    lines.append(f"| between operators | {max(0.0, 1 - spent / seconds):.1%} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", required=True, help="heads of the bundled model")
    parser.add_argument("--antiexpert", required=True, help="a small model")
    parser.add_argument("--expert", required=True, help="its tuned adapter")
    parser.add_argument("--output", type=Path, default=Path("bench/results/profiles.md"))
    parser.add_argument("--only", nargs="+", choices=PATHS, metavar="PATH", help=f"some of {', '.join(PATHS)}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)  # a second thread's waiting would count as time between operators
    sections = []
    for name in arguments.only or PATHS:
        say(name)
        sections.append(profiled(name, PATHS[name], arguments))
        print(sections[-1])
    write_text(arguments.output, "# Where the time goes\n\n" + "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
