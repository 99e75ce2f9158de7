"""The plan that `--dry-run` prints before anything is trained."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from graftlm.heads.loss import IGNORE
from graftlm.runs.console import printable

if TYPE_CHECKING:
    from graftlm.tuning.trainer import MultiTokenTrainer

SUPERVISED, PLAIN = "\x1b[32m", "\x1b[0m"


def describe_plan(trainer: MultiTokenTrainer) -> str:
    """Describe rows, steps, terms of the loss, parameters, memory and one row.

    The part of the row that the loss reads is green, or in [[...]] without colour.
    """
    args, rows = trainer.args, trainer.train_dataset
    parameters = list(trainer.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    # Gradient and two moments of AdamW, each as large as the parameter.
    training = sum(3 * p.numel() * p.element_size() for p in parameters if p.requires_grad)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(len(rows) / batch * args.num_train_epochs)
    lengths = [len(ids) for ids in rows["input_ids"]]
    supervised = sum(sum(label != IGNORE for label in labels) for labels in rows["labels"])
    heads = trainer.model.heads
    lines = [
        f"rows: {len(rows)}, {sum(lengths)} tokens ({supervised} in the loss), longest {max(lengths)}",
        f"steps: {steps} of {batch} rows",
        f"loss: {' + '.join(term.name for term in trainer.model.terms)}",
        f"heads: {heads.num_heads if heads is not None else 'none (next-token)'}",
        f"parameters: {sum(p.numel() for p in parameters):,}, of which {trainable:,} are trained",
        f"memory: {weights / 2**20:,.0f} MiB weights, {training / 2**20:,.0f} MiB gradients and optimizer, "
        "and the activations of one batch",
        "first row:",
        marked_row(trainer, rows[0]["input_ids"], rows[0]["labels"]),
    ]
    return "\n".join(lines)


def marked_row(trainer: MultiTokenTrainer, input_ids: list[int], labels: list[int]) -> str:
    """Text of a row, with marks around what the loss reads."""
    tokenizer: Any = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    before, after = (SUPERVISED, PLAIN) if sys.stdout.isatty() else ("[[", "]]")
    pieces: list[str] = []
    start = 0
    for end in range(1, len(labels) + 1):
        if end == len(labels) or (labels[end] == IGNORE) != (labels[start] == IGNORE):
            text = printable(tokenizer.decode(input_ids[start:end]))
            pieces.append(text if labels[start] == IGNORE else f"{before}{text}{after}")
            start = end
    return "".join(pieces)
