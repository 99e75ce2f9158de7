"""`graftlm tune`: from a TuneConfig and a run folder to a tuned model.

run folder: model/ (the plain model or adapter, its heads in model/heads/), checkpoints/, metrics.jsonl, run.yaml.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from graftlm.config import describe_unknown
from graftlm.console import say
from graftlm.datasets import data_fingerprint, general_text, load_rows, prompt_too_long
from graftlm.errors import InputError
from graftlm.models import load_model
from graftlm.multitoken.callbacks import ConsoleCallback, InterruptCallback, RunCallback
from graftlm.multitoken.config import TuneConfig
from graftlm.multitoken.heads import MultiTokenHeads
from graftlm.multitoken.sample import describe_plan
from graftlm.multitoken.trainer import MultiTokenConfig, MultiTokenTrainer
from graftlm.runs import Run

CHECKPOINTS = "checkpoints"
MODEL = "model"


def tune(config: TuneConfig, run: Run, *, dry_run: bool = False) -> None:
    """Train as `config` says, log to `run`, save the tuned model into its folder.

    With `dry_run`, print the plan (trainable parameters, steps, memory, one row with its loss mask) and stop.

    Raises:
        InputError: for data, heads or settings that cannot be used.
        KeyboardInterrupt: after Ctrl-C, once the step under way is done and a checkpoint is saved.
    """
    trainer = build_trainer(config, run)
    if dry_run:
        print(describe_plan(trainer))
        return
    run.record(
        data_fingerprint=data_fingerprint(load_rows(config.data)),
        rows=len(trainer.train_dataset),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    )
    checkpoint = last_checkpoint(run.folder / CHECKPOINTS) if run.resumed else None
    if run.resumed:
        run.rewind(int(checkpoint.rpartition("-")[2]) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=checkpoint)
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, InterruptCallback))
    if interrupt.interrupted:
        raise KeyboardInterrupt(
            f"checkpoint saved at step {trainer.state.global_step}; continue with: {run.resume_command}"
        )
    save_model(trainer, run.folder / MODEL)
    if config.push_to_hub:
        trainer.push_to_hub()
    say(f"tuned model: {run.folder / MODEL}")


def build_trainer(config: TuneConfig, run: Run) -> MultiTokenTrainer:
    """The trainer with its model, heads and rows, ready to run."""
    arguments = training_arguments(config, run.folder)
    model, tokenizer = load_model(config.model, trust_remote_code=config.trust_remote_code)
    rows = checked_rows(config, "train", tokenizer)
    evaluated = checked_rows(config, config.eval_split, tokenizer) if config.eval_split else None
    heads = None
    if config.objective == "multi-token":
        assert config.heads is not None  # TuneConfig sees to it
        heads = (
            MultiTokenHeads.from_model(model, config.num_heads)
            if config.heads == "cold"
            else MultiTokenHeads.from_pretrained(config.heads, model)
        )
    adapted = hasattr(model, "merge_and_unload")
    if config.method == "lora" and adapted:
        # The adapter that is there is trained on: a second one would not load without the first.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif config.method != "lora":
        model = (model.merge_and_unload() if adapted else model).requires_grad_(True)
    callbacks: list[Any] = [RunCallback(run), InterruptCallback()]
    if config.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = MultiTokenTrainer(
            model,
            arguments,
            heads=heads,
            anchor_texts=anchor_texts(config),
            train_dataset=rows,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=lora(config) if config.method == "lora" and not adapted else None,
            callbacks=callbacks,
        )
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ConsoleCallback())
    return trainer


def checked_rows(config: TuneConfig, split: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = load_rows(config.data, split)
    prompt_too_long(rows, tokenizer, config.max_length)
    return rows


def anchor_texts(config: TuneConfig) -> list[str] | None:
    if config.anchor == "none":
        return None
    if config.anchor_data is None:
        return general_text()
    rows = load_rows(config.anchor_data)
    if "text" not in rows.column_names:
        raise InputError(f"--anchor-data {config.anchor_data} has no text rows (it has {', '.join(rows.column_names)})")
    return list(rows["text"])


def lora(config: TuneConfig) -> LoraConfig:
    """LoRA on every linear layer of the decoder; PEFT leaves the unembedding out."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def training_arguments(config: TuneConfig, folder: Path) -> MultiTokenConfig:
    """The trainer's arguments; `config.trainer` has the last word. Raises InputError for an unknown one."""
    known = {field.name: field for field in fields(MultiTokenConfig)}
    for name in config.trainer:
        if name not in known:
            raise InputError(f"--trainer: unknown field {describe_unknown(name, known)}")
    evaluates = config.eval_split is not None
    saving = {"save_strategy": "epoch"} if config.save_steps is None else {"save_steps": config.save_steps}
    evaluating: dict[str, Any] = {"eval_strategy": "epoch" if evaluates else "no"}
    if evaluates and config.eval_steps is not None:
        evaluating = {"eval_strategy": "steps", "eval_steps": config.eval_steps}
    if config.early_stopping is not None:
        saving = {"save_strategy": evaluating["eval_strategy"], "save_steps": config.eval_steps or 500}
        evaluating |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    settings: dict[str, Any] = {
        "coefficient": config.coefficient,
        "decay": config.decay,
        "schedule": config.schedule,
        "weights": config.weights,
        "forking_fraction": config.forking_fraction,
        "train_heads": config.train_heads,
        "heads_learning_rate": config.heads_learning_rate,
        "freeze_unembedding": config.method == "frozen-unembedding",
        "protect_layers": config.protect_layers,
        "anchor_weight": config.anchor_weight if config.anchor == "kl" else 0.0,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps if config.max_steps is not None else -1,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "max_length": config.max_length,
        "packing": config.packing,
        "seed": config.seed,
        "report_to": [name.strip() for name in config.report_to.split(",")],
        "push_to_hub": config.push_to_hub is not None,
        "hub_model_id": config.push_to_hub,
        "train_sampling_strategy": "group_by_length",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": 10,
        "save_total_limit": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": checkpointing(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
        **saving,
        **evaluating,
        **config.trainer,
    }
    try:
        with warnings.catch_warnings():
            # transformers warns of the names that TRL still uses.
            warnings.simplefilter("ignore", FutureWarning)
            return MultiTokenConfig(str(folder / CHECKPOINTS), **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"the trainer refuses its settings: {' '.join(str(error).split())}") from error


def checkpointing() -> dict[str, Any] | None:
    """Every layer is recomputed on a GPU; on a CPU, where memory is rarely short, every fifth (bench/results)."""
    return None if torch.cuda.is_available() else {"every_n_layers": 5}


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; one that a kill cut short (no trainer_state.json, written last) is removed."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        if (Path(newest) / "trainer_state.json").is_file():
            return newest
        shutil.rmtree(newest)
    return None


def save_model(trainer: MultiTokenTrainer, folder: Path) -> None:
    """Write the tuned model beside `folder`, then put it in place at once."""
    partial = folder.with_name(f".{folder.name}.partial")
    if trainer.args.should_save:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    if trainer.args.should_save:
        # TRL's pickled arguments; run.yaml has them in plain text.
        (partial / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
