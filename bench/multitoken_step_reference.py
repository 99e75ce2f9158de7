"""Worker of bench/multitoken_step.py: the reference implementation's multi-token step (PyPI caft-llm 0.0.1).

Run by the python of .venv-reference (bench/setup_reference.sh). Nothing of graftlm is imported, and no
file of the reference is changed: its modules import on transformers 4.51.3 and torch 2.13.0 as they are.
The wheel carries the model and the loss (`caft.core`) but not the training script, so this file repeats
the steps of its `scripts/train.py` with `-ftm lora` at its defaults (stage 2): load untied in one dtype,
`add_auxiliary_heads` (one Llama decoder layer per head, shared unembedding, frozen), LoRA r=8 alpha=16 on
the seven projections with the heads excluded, `add_caft_loss` (heads_coef 0.01, decay 0.8, rsine) patched
into `Trainer`, `Trainer`.

Where this differs from `scripts/train.py`, and why:

1. float32 instead of bf16: all arms run on the CPU in float32.
2. LoRA dropout 0.0 instead of 0.1: all arms do the same work (it would only slow the reference).
3. torch's AdamW instead of adamw_bnb_8bit, which needs a GPU.
4. The heads are fresh (`auxiliary_heads_dir=None`): pretrained ones exist for Llama-3.1-8B only. Time and
   memory do not depend on their values; the loss of the heads does.
5. `tie_word_embeddings=False` makes transformers draw a random unembedding for a model whose checkpoint
   has a tied one, as SmolLM2 does; it is filled with the embedding, as the script itself does when it
   trains the unembedding. The extra copy belongs to the loaded model and so is in the baseline, not in
   the peak.
6. A config.json written by transformers 5 keeps `rope_theta` inside `rope_parameters`, where 4.51.3 does
   not look (it would silently take 10000): it is passed on by name.
7. Weights are copied out of the memory-mapped file after loading, so that the baseline contains them (see
   measure.py).

A step = `Trainer.training_step` (train mode, its compute_loss, backward), `optimizer.step()`, gradients
cleared to None. No gradient clipping and no learning-rate schedule: the training loop adds them, in every
arm alike. Memory = as measure.py, baseline right after the base model is loaded: the auxiliary heads'
weights and LoRA count in the peak; `built_bytes` (resident once both are there, before the first step)
lets a reader take them out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

COLUMNS = ("input_ids", "attention_mask", "labels")
LORA_TARGETS = ["o_proj", "v_proj", "k_proj", "down_proj", "gate_proj", "q_proj", "up_proj"]
PACKAGES = ("caft-llm", "torch", "transformers", "peft", "accelerate", "numpy")
TOTAL_STEPS = 10_000  # rsine starts at 1 and is still 1 to four digits after the few steps of a benchmark


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the reference's multi-token training step.")
    parser.add_argument("model", type=Path, help="folder of the base model (Llama architecture, safetensors)")
    parser.add_argument(
        "batches",
        type=Path,
        help=f".npz with {', '.join(COLUMNS)} as int64 [batch, time] or [batches, batch, time], or .json "
        "with one object of these lists per batch; steps take the batches in turn",
    )
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's choice)")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def load_batches(path: Path) -> list[dict[str, torch.Tensor]]:
    """One dict of int64 tensors [batch, time] per batch."""
    import numpy as np
    import torch

    if path.suffix == ".json":
        loaded = json.loads(path.read_text())
        rows = [{name: np.asarray(batch[name], dtype=np.int64) for name in COLUMNS} for batch in loaded]
    else:
        with np.load(path) as arrays:
            stacked = {name: arrays[name].astype(np.int64) for name in COLUMNS}
        stacked = {name: array if array.ndim == 3 else array[None] for name, array in stacked.items()}
        rows = [{name: array[i] for name, array in stacked.items()} for i in range(len(stacked["labels"]))]
    return [{name: torch.from_numpy(array.copy()) for name, array in row.items()} for row in rows]


def load_base_model(folder: Path) -> Any:
    """The base model as scripts/train.py loads it (points 1, 5, 6, 7 above)."""
    import torch
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    options: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if rope is not None and "rope_theta" not in config:
        if rope.get("rope_type", "default") != "default":
            raise SystemExit(f"multitoken_step_reference: {folder}: rope_type other than 'default' is not handled")
        options["rope_theta"] = rope["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, tie_word_embeddings=False, low_cpu_mem_usage=True, **options
    )
    if config.get("tie_word_embeddings", False):
        model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def build_trainer(model: Any, num_heads: int, learning_rate: float, folder: str) -> Trainer:
    """scripts/train.py from `add_auxiliary_heads` to `Trainer`, at its defaults for `-ftm lora`."""
    import caft
    import transformers
    from peft import LoraConfig, get_peft_model

    caft.add_auxiliary_heads(
        model,
        caft_num_heads=num_heads,
        caft_num_layers=1,
        separate_unembedding=False,
        head_arch="transformer",
        caft_only_heads=False,
        requires_grad=False,
        auxiliary_heads_dir=None,
    )
    lora = LoraConfig(
        r=8,
        rank_pattern={r".*auxiliary_head.*": 8},
        lora_alpha=16,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=LORA_TARGETS,
        exclude_modules=r".*auxiliary_head.*",
        modules_to_save=[],
    )
    model = get_peft_model(model, lora)
    caft.add_caft_loss(
        transformers,
        caft_heads_coefficient=0.01,
        caft_decay_coefficient=0.8,
        caft_scheduler="rsine",
        caft_only_heads=False,
    )
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        optim="adamw_torch",
        learning_rate=learning_rate,
        weight_decay=0.0,
        use_cpu=True,
        report_to="none",
    )
    trainer = transformers.Trainer(model=model, args=arguments)
    trainer.create_optimizer()
    trainer.state.max_steps = TOTAL_STEPS
    return trainer


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Build the reference's trainer, measure its step, return what --output holds."""
    # everything a step needs is imported before the baseline is read
    import caft  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401
    from measure import measure_step, resident_bytes

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    batches = load_batches(arguments.batches)
    model = load_base_model(arguments.model)
    baseline = resident_bytes()
    trainer = build_trainer(model, arguments.num_heads, arguments.learning_rate, folder)
    built = resident_bytes()
    wrapped, optimizer = trainer.model, trainer.optimizer
    assert wrapped is not None and optimizer is not None
    losses: list[float] = []

    def step() -> None:
        batch = batches[len(losses) % len(batches)]
        losses.append(float(trainer.training_step(wrapped, dict(batch))))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        trainer.state.global_step += 1

    result = measure_step(step, arguments.warmup, arguments.repeats, baseline)
    parameters = list(wrapped.parameters())
    return {
        **result,
        "built_bytes": built,
        "losses": losses,
        "num_heads": arguments.num_heads,
        "batch_shapes": [list(batch["labels"].shape) for batch in batches],
        "supervised": [int((batch["labels"] != -100).sum()) for batch in batches],
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "threads": torch.get_num_threads(),
        "warmup": arguments.warmup,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    arguments = parse_arguments()
    for path in (arguments.model / "config.json", arguments.batches):
        if not path.is_file():
            raise SystemExit(f"multitoken_step_reference: no file {path}")
    # the reference prints to standard output
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments, folder)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
