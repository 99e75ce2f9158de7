"""Two scales of Llama decoders, trained from scratch on a mixture of the three formats.

    .venv/bin/python bench/format_collapse/pretrain.py --models /tmp/format_collapse/models      (all; cached)

Of the mixtures, in `4x` the most frequent format is the least accurate, and another one could well win; in `8x` it is
so frequent that it may win all the same (after the passes over OpenMathInstruct1 in the paper). A training that was
cut short goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measurement import measure, some_problems
from problems import FORMATS, build_tokenizer, problems, solution
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, get_cosine_schedule_with_warmup
from transformers.utils import logging

from graftlm.runs.console import reported_progress, say
from graftlm.runs.files import write_text

DONE = "pretraining.json"
PART = "part.pt"
BATCH, PARTS = 64, 2  # sequences of a step, by length in so many parts, which saves padding
CHECKPOINT_EVERY = 500


@dataclass(frozen=True, kw_only=True)
class Scale:
    hidden: int
    layers: int
    heads: int
    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of a mixture: the share of a format, and how many of its solutions are wrong."""

    share: float
    error_rate: float


SCALES = {
    "small": Scale(hidden=48, layers=3, heads=2, steps=3000, learning_rate=3e-3),
    "large": Scale(hidden=128, layers=5, heads=4, steps=3000, learning_rate=2e-3),
}
MIXTURES = {
    "4x": {
        "program": Part(share=0.28, error_rate=0.40),
        "tagged": Part(share=0.46, error_rate=0.45),
        "prose": Part(share=0.26, error_rate=0.05),
    },
    "8x": {
        "program": Part(share=0.14, error_rate=0.40),
        "tagged": Part(share=0.73, error_rate=0.45),
        "prose": Part(share=0.13, error_rate=0.05),
    },
}


def new_model(scale: Scale, tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=scale.hidden, intermediate_size=scale.hidden * 8 // 3,
        num_hidden_layers=scale.layers, num_attention_heads=scale.heads, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.02,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def padded(tokenizer: Any, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Pairs (prompt, solution) -> input_ids and labels [rows, time], padded right; −100 where no loss is taken."""
    starts = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    ends = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    width = max(len(start) + len(end) + 1 for start, end in zip(starts, ends, strict=True))
    ids = torch.full((len(texts), width), tokenizer.pad_token_id)
    labels = torch.full((len(texts), width), -100)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        whole = torch.tensor([*start, *end, tokenizer.eos_token_id])
        ids[row, : len(whole)] = whole
        labels[row, len(start) : len(whole)] = whole[len(start) :]
    return ids, labels


def solution_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of the NLL in nats of the solutions' tokens; padding stands right, where causal attention never sees it."""
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def descend(model: Any, tokenizer: Any, optimizer: Any, texts: Sequence[tuple[str, str]]) -> float:
    """An optimizer step on pairs (prompt, solution); returns the mean NLL of the solutions' tokens."""
    ordered = sorted(texts, key=lambda pair: len(pair[0]) + len(pair[1]))
    size = -(-len(ordered) // PARTS)
    batches = [padded(tokenizer, ordered[start : start + size]) for start in range(0, len(ordered), size)]
    count = sum(int((labels != -100).sum()) for _, labels in batches)
    total = 0.0
    for ids, labels in batches:
        loss = solution_loss(model, ids, labels) / count
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def texts_of_step(mixture: dict[str, Part], step: int, seed: int) -> list[tuple[str, str]]:
    """The same for a step however often it is asked, so that a resumed training goes on as if it had not stopped."""
    draw = random.Random(f"{seed} {step}")
    shares = [mixture[form].share for form in FORMATS]
    found = []
    for problem in itertools.islice(problems("train", draw.randrange(2**60)), BATCH):
        form = draw.choices(FORMATS, shares)[0]
        found.append((problem.prompt, solution(problem, form, mixture[form].error_rate, draw)))
    return found


def train(model: Any, tokenizer: Any, scale: Scale, mixture: dict[str, Part], folder: Path, report: Any) -> list[Any]:
    """Train `model` in place; returns [step, loss] of every 50th step, each the mean of those 50."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=scale.learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, scale.steps // 20, scale.steps)
    first, curve, recent = 0, [], []
    part = folder / PART
    if part.exists():
        state = torch.load(part, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, curve = state["step"], state["curve"]
    model.train()
    for step in range(first, scale.steps):
        recent.append(descend(model, tokenizer, optimizer, texts_of_step(mixture, step, 0)))
        schedule.step()
        if (step + 1) % 50 == 0:
            curve.append([step + 1, sum(recent) / len(recent)])
            recent = []
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"schedule": schedule.state_dict(), "step": step + 1, "curve": curve}, f"{part}.new")
            Path(f"{part}.new").replace(part)
        report(step + 1, scale.steps)
    part.unlink(missing_ok=True)
    return curve


def pretrain(models: Path, scale_name: str, mixture_name: str) -> Path:
    """The folder of the model of that scale and mixture, trained if it is not there yet."""
    folder = models / f"{scale_name}-{mixture_name}"
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    scale, mixture = SCALES[scale_name], MIXTURES[mixture_name]
    tokenizer = build_tokenizer()
    model = new_model(scale, tokenizer, seed=0)
    begun = time.monotonic()
    with reported_progress() as progress:
        curve = train(
            model, tokenizer, scale, mixture, folder,
            lambda done, total: progress(f"pretraining {folder.name}", done, total),
        )  # fmt: skip
    trained = time.monotonic() - begun
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    held_out = some_problems("test", 256)
    found = {
        "scale": asdict(scale),
        "mixture": {form: asdict(part) for form, part in mixture.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": BATCH,
        "seconds": trained,
        "loss": curve,
        "sampled": measure(model, tokenizer, held_out, each=16),
        "greedy": measure(model, tokenizer, held_out, each=1, temperature=0.0),
    }
    write_text(folder / DONE, json.dumps(found, indent=1) + "\n")
    say(f"{folder.name}: {found['parameters']:,} parameters, {trained:.0f} s, loss {curve[-1][1]:.3f}")
    for way in ("sampled", "greedy"):
        formats = ", ".join(
            f"{form} {found[way]['shares'][form]:.0%} (accuracy {found[way]['accuracy'][form] or 0:.0%})"
            for form in FORMATS
        )
        say(f"  {way}: {formats}; pass@1 {found[way]['pass_at_1']:.1%}")
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder for the models, one folder each")
    parser.add_argument("--scale", choices=SCALES, action="append", help="only this one (default: all)")
    parser.add_argument("--mixture", choices=MIXTURES, action="append", help="only this one (default: all)")
    arguments = parser.parse_args()
    for mixture in arguments.mixture or MIXTURES:
        for scale in arguments.scale or SCALES:
            pretrain(arguments.models, scale, mixture)


if __name__ == "__main__":
    main()
