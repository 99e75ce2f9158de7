"""`graftlm tune`: from a TuneConfig and a run folder to a tuned model.

run folder: model/ (the plain model or adapter, its heads in model/heads/), checkpoints/, metrics.jsonl, run.yaml.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from graftlm.data.load import begun_once, data_fingerprint, load_rows, prompt_too_long, row_lengths
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.given import Given, GivenPair, name_of
from graftlm.runs.console import say
from graftlm.runs.run import Run, call_verb
from graftlm.tuning.callbacks import ConsoleCallback, InterruptCallback, RunCallback
from graftlm.tuning.config import MULTI_TOKEN_FLAGS, TuneConfig
from graftlm.tuning.sample import describe_plan
from graftlm.tuning.terms import make_terms
from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
from graftlm.tuning.training import (
    checkpointing,
    model_to_train,
    save_steps,
    train_and_save,
    trained_part,
    trainer_arguments,
)


def tune_model(
    model: Given,
    data: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> PreTrainedModel | PeftModel | None:
    """`graftlm.tune`: fine-tune a model, multi-token or next-token, into a run folder; returns the tuned model.

    Args:
        model: a name as `load_model` takes it, or a loaded model, which is changed.
        data: a built-in task, a JSON(L), CSV or Parquet file, or a hub id.
        tokenizer: of a loaded model (None: the one that is saved where it came from).
        resume, overwrite: go on with the run in the folder `output`, or replace it.
        settings: the further fields of TuneConfig, such as heads="cold" and output="run".

    Raises InputError as `graftlm tune` does.
    """
    given = (model, tokenizer)
    settings = {"model": name_of(model), "data": data, **settings}
    return call_verb("tune", TuneConfig, tune, settings, resume=resume, overwrite=overwrite, given=given)


def tune(
    config: TuneConfig, run: Run, *, given: GivenPair | None = None, dry_run: bool = False
) -> PreTrainedModel | PeftModel | None:
    """Train as `config` says, log to `run`, save the tuned model into its folder; returns it.

    `given`: a loaded model in the place of `config.model`, and its tokenizer. With `dry_run`, print the plan (trainable
    parameters, steps, memory, one row with its loss mask) and stop.

    Raises:
        InputError: for data, heads or settings that cannot be used.
        KeyboardInterrupt: after Ctrl-C, once the step under way is done and a checkpoint is saved.
    """
    trainer = build_trainer(config, run, given)
    cut = [line for split in ("train", config.eval_split) if split and (line := describe_cut(config, split, trainer))]
    if dry_run:
        print("\n".join([describe_plan(trainer), *cut]))
        return None
    for line in cut if run.is_main else []:
        say(f"graftlm: {line}")
    run.record(
        data_fingerprint=data_fingerprint(load_rows(config.data)),
        rows=len(trainer.train_dataset),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    )
    train_and_save(trainer, run, push_to_hub=config.push_to_hub is not None)
    return trainer.accelerator.unwrap_model(trainer.model).model.eval()


def build_trainer(config: TuneConfig, run: Run, given: GivenPair | None = None) -> MultiTokenTrainer:
    """Build the trainer with its model, heads, terms and rows."""
    arguments = training_arguments(config, run.folder)
    model, tokenizer = model_to_train(
        given or (config.model, None), config.trainer, trust_remote_code=config.trust_remote_code
    )
    longest = arguments.max_length
    rows = checked_rows(config, "train", tokenizer, longest)
    evaluated = checked_rows(config, config.eval_split, tokenizer, longest) if config.eval_split else None
    heads: Any = config.heads
    if heads is not None:
        heads = (
            MultiTokenHeads.from_model(model, config.num_heads)
            if heads == "cold"
            else MultiTokenHeads.from_pretrained(heads, model)
        )
    model, adapter = trained_part(model, config.method, config.lora_rank, config.lora_alpha, config.lora_dropout)
    terms = {name: settings for name, settings in config.term_settings().items() if name != "multi_token"}
    callbacks: list[Any] = [RunCallback(run), InterruptCallback()]
    if config.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = MultiTokenTrainer(
            model,
            arguments,
            heads=heads,
            terms=make_terms(terms),
            train_dataset=rows,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=callbacks,
        )
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ConsoleCallback())
    return trainer


def checked_rows(config: TuneConfig, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    rows = begun_once(load_rows(config.data, split), tokenizer)
    prompt_too_long(rows, tokenizer, max_length)
    end = config.trainer.get("eos_token") or tokenizer.eos_token
    if end is None and not isinstance(rows[0].get("prompt"), list):
        raise InputError(
            f"the tokenizer of {config.model} has no end-of-sequence token to put after each row: name it in its "
            "tokenizer_config.json, or give messages, whose end the chat template writes"
        )
    return rows


def describe_cut(config: TuneConfig, split: str, trainer: MultiTokenTrainer) -> str | None:
    """Say how many rows are longer than the maximum length; None where none is, or none loses a token."""
    args, tokenizer = trainer.args, trainer.processing_class
    if args.max_length is None or (args.packing and args.packing_strategy != "bfd"):
        return None
    lengths = row_lengths(begun_once(load_rows(config.data, split), tokenizer), tokenizer)
    cut = sum(length > args.max_length for length in lengths)
    lost = "beginning" if args.truncation_mode == "keep_end" and not args.packing else "end, and their end token,"
    if not cut:
        return None
    return (
        f"{cut} of {len(lengths)} rows ({split}) are cut: they have more than --max-length {args.max_length} tokens "
        f"(the longest {max(lengths)}) and lose their {lost}; raise it, or shorten them"
    )


def training_arguments(config: TuneConfig, folder: Path) -> MultiTokenConfig:
    """Make the trainer's arguments; `config.trainer` has the last word. Raises InputError for an unknown one."""
    evaluates = config.eval_split is not None
    saving = save_steps(config.save_steps)
    evaluating: dict[str, Any] = {"eval_strategy": "epoch" if evaluates else "no"}
    if evaluates and config.eval_steps is not None:
        evaluating = {"eval_strategy": "steps", "eval_steps": config.eval_steps}
    if config.early_stopping is not None:
        saving = {"save_strategy": evaluating["eval_strategy"], "save_steps": config.eval_steps or 500}
        evaluating |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    multi_token = config.term_settings().get("multi_token")
    settings: dict[str, Any] = {
        **{flag: getattr(multi_token, name) for flag, name in MULTI_TOKEN_FLAGS.items() if multi_token},
        "train_heads": config.train_heads,
        "heads_learning_rate": config.heads_learning_rate,
        "freeze_unembedding": config.method == "frozen-unembedding",
        "protect_layers": config.protect_layers,
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
    }
    return trainer_arguments(MultiTokenConfig, folder, settings, config.trainer)
