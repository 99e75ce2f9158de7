"""`graftlm reinforce`: from a ReinforceConfig and a run folder to a trained model.

run folder: model/ (the plain model or adapter), checkpoints/, metrics.jsonl, formats.jsonl, rewards.jsonl (samples
whose reward failed), report.html, run.yaml.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl.rewards import get_soft_overlong_punishment

from graftlm.data.encoding import encode_messages
from graftlm.data.load import begun_once, data_fingerprint
from graftlm.errors import InputError
from graftlm.models.adapters import untie
from graftlm.models.given import Given, GivenPair, name_of
from graftlm.reinforce.config import ReinforceConfig
from graftlm.reinforce.format_guards import FormatDivergence, Guard, WithinFormat
from graftlm.reinforce.format_monitor import FormatMonitor
from graftlm.reinforce.formats import Format
from graftlm.reinforce.page import reward_of, write_reinforce_report
from graftlm.reinforce.prompts import load_prompts
from graftlm.reinforce.rewards import reward_function
from graftlm.reinforce.trainer import ForkingTokenGRPOConfig, ForkingTokenGRPOTrainer
from graftlm.runs.console import printable, say
from graftlm.runs.files import read_json_lines
from graftlm.runs.run import Run, call_verb
from graftlm.tasks import TASKS
from graftlm.tasks.reasoning import PREFIX
from graftlm.tuning.callbacks import ConsoleCallback, InterruptCallback, RunCallback, TableCallback, updates_together
from graftlm.tuning.terms import make_terms
from graftlm.tuning.training import (
    model_to_train,
    refused_settings,
    save_steps,
    train_and_save,
    trained_part,
    trainer_arguments,
)

FORMATS = "formats.jsonl"
REWARDS = "rewards.jsonl"
REPORT = "report.html"
SAME_IN_TRL = ("forking_fraction", "forking_scope", "forking_normaliser", "forking_tokens", "beta", "epsilon",
               "epsilon_high", "learning_rate", "num_generations", "max_completion_length", "temperature", "seed",
               "trust_remote_code")  # fmt: skip
"""Settings of the trainer that have the name of ours."""


def reinforce_model(
    model: Given,
    data: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> PreTrainedModel | PeftModel | None:
    """`graftlm.reinforce`: train a model with a verifiable reward, into a run folder; returns the trained model.

    Args:
        model: a name as `load_model` takes it, or a loaded model, which is changed.
        data: prompts: reasoning-gym:NAME, a built-in task, a file with prompts, or a hub id.
        tokenizer: of a loaded model (None: the one that is saved where it came from).
        resume, overwrite: go on with the run in the folder `output`, or replace it.
        settings: the further fields of ReinforceConfig, such as reward="answer" and output="run".

    Raises InputError as `graftlm reinforce` does.
    """
    given = (model, tokenizer)
    settings = {"model": name_of(model), "data": data, **settings}
    return call_verb("reinforce", ReinforceConfig, reinforce, settings, resume=resume, overwrite=overwrite, given=given)


def reinforce(
    config: ReinforceConfig, run: Run, *, given: GivenPair | None = None, dry_run: bool = False
) -> PreTrainedModel | PeftModel | None:
    """Train as `config` says, log to `run`, save the trained model and a report into its folder; returns the model.

    `given`: a loaded model in the place of `config.model`, and its tokenizer. With `dry_run`, print the plan (prompts,
    steps, trainable parameters, one prompt) and stop.

    Raises:
        InputError: for data, a reward, formats or settings that cannot be used.
        KeyboardInterrupt: after Ctrl-C, once the step under way is done and a checkpoint is saved.
    """
    trainer = build_trainer(config, run, given)
    if dry_run:
        print(printable(describe_plan(trainer, config)))
        return None
    rows = trainer.train_dataset
    run.record(
        data_fingerprint=data_fingerprint(rows),
        rows=len(rows),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    )
    try:
        train_and_save(trainer, run, push_to_hub=config.push_to_hub is not None)
    finally:
        if run.is_main and run.metrics():
            write_reinforce_report(
                run.folder / REPORT, run.metrics(), read_json_lines(run.folder / FORMATS),
                title=f"{config.model} on {config.data}", settings=asdict(config),
            )  # fmt: skip
            say(f"report: {run.folder / REPORT}")
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def build_trainer(config: ReinforceConfig, run: Run, given: GivenPair | None = None) -> ForkingTokenGRPOTrainer:
    """The trainer with its model, prompts, reward and monitor, ready to run."""
    reward = reward_function(
        config.reward or default_reward(config.data), seconds=config.reward_seconds, log=run.folder / REWARDS
    )
    formats = [Format(name, pattern) for name, pattern in config.formats.items()]
    monitor = FormatMonitor(formats, guard=guard_of(config), path=run.folder / FORMATS) if formats else None
    arguments = training_arguments(config, run.folder)
    rows = load_prompts(config.data, rows=config.rows, options=config.data_options)
    # Steps as small as RL's are lost in bfloat16 weights.
    dtype = "float32" if config.method == "full" else "auto"
    model, tokenizer = model_to_train(
        given or (config.model, None), config.trainer, dtype=dtype, trust_remote_code=config.trust_remote_code
    )
    rows = begun_once(rows, tokenizer)
    check_prompts(rows, tokenizer, config)
    reward.check(rows)
    adapted = isinstance(model, PeftModel)
    model, adapter = trained_part(model, config.method, config.lora_rank, config.lora_alpha, 0.0)
    rewards: list[Any] = [monitor.watch(reward) if monitor else reward]
    if config.overlong_buffer:
        rewards.append(get_soft_overlong_punishment(config.max_completion_length, config.overlong_buffer))
    with warnings.catch_warnings(), refused_settings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = ForkingTokenGRPOTrainer(
            model,
            reward_funcs=rewards,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter,
            terms=make_terms(config.term_settings()),
            callbacks=[*([monitor] if monitor else []), RunCallback(run), InterruptCallback()],
        )
    if adapted:
        complete_reference(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TableCallback(step_cells) if sys.stderr.isatty() else ConsoleCallback(describe=describe_step))
    return trainer


def complete_reference(trainer: ForkingTokenGRPOTrainer) -> None:
    """Make the reference the start model with its adapter.

    TRL (1.16) loads the base model by its name where the adapter was merged. Where the adapter is trained on, it copies
    neither rows of tokens nor LoRA of an embedding.
    """
    model: Any = trainer.model
    if "ref" in getattr(model, "peft_config", {}):
        saved = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
        set_peft_model_state_dict(model, saved, adapter_name="ref")
    reference: Any = trainer.ref_model
    if reference is not None:
        embedding, unembedding = model.get_input_embeddings(), model.get_output_embeddings()
        if reference.get_input_embeddings().num_embeddings != embedding.num_embeddings:
            reference.resize_token_embeddings(embedding.num_embeddings)
        if unembedding.weight is not embedding.weight:
            untie(reference)
        reference.load_state_dict(model.state_dict())


def default_reward(data: str) -> str:
    """The reward of the data where none is given; InputError where it has none of its own."""
    if data.startswith(PREFIX):
        return data
    if data in TASKS:
        raise InputError(f"the task {data} has no reward of its own: give --reward, such as answer or module:function")
    return "answer"


def guard_of(config: ReinforceConfig) -> Guard | None:
    if config.guard == "within-format":
        return WithinFormat()
    return FormatDivergence(config.guard_coefficient) if config.guard == "divergence" else None


def check_prompts(rows: Any, tokenizer: Any, config: ReinforceConfig) -> None:
    """InputError for messages that the tokenizer's chat template does not take, or fewer prompts than a step takes."""
    if not isinstance(rows[0]["prompt"], str):
        for messages in rows["prompt"]:
            encode_messages(tokenizer, messages)
    if len(rows) < config.prompts_per_step:
        raise InputError(
            f"data {config.data!r} has {len(rows)} prompts, fewer than --prompts-per-step {config.prompts_per_step}"
        )


def training_arguments(config: ReinforceConfig, folder: Path) -> ForkingTokenGRPOConfig:
    """The trainer's arguments; `config.trainer` has the last word. Raises InputError for an unknown one."""
    if config.vllm and not (find_spec("vllm") and torch.cuda.is_available()):
        raise InputError("--vllm needs vLLM and a GPU: pip install vllm, or leave it out")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    completions = config.prompts_per_step * config.num_generations
    accumulated, rest = divmod(completions, config.batch_size * config.updates_per_rollout * processes)
    if rest:
        raise InputError(
            f"{completions} completions a step cannot be divided into batches of {config.batch_size} on {processes} "
            f"processes, {config.updates_per_rollout} times: change --batch-size or --prompts-per-step"
        )
    gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        **{name: getattr(config, name) for name in SAME_IN_TRL},
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": accumulated,
        "steps_per_generation": accumulated * config.updates_per_rollout,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps if config.max_steps is not None else -1,
        "use_vllm": config.vllm,
        "vllm_mode": "colocate",
        "report_to": [name.strip() for name in config.report_to.split(",")],
        "push_to_hub": config.push_to_hub is not None,
        "hub_model_id": config.push_to_hub,
        "bf16": gpu and torch.cuda.is_bf16_supported(),  # TRL's default crawls on a CPU
        "gradient_checkpointing": gpu,
        "use_cpu": not gpu and not torch.backends.mps.is_available(),
        "logging_steps": 1,
        "save_total_limit": 2,
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,  # a table or lines stand in its place
        # A guard's price must not be blown up in groups whose rewards are all alike.
        **({"scale_rewards": "batch"} if config.guard != "none" else {}),
        **save_steps(config.save_steps),
    }
    arguments = trainer_arguments(ForkingTokenGRPOConfig, folder, settings, config.trainer)
    together = updates_together(arguments)
    if arguments.save_strategy == "steps" and arguments.save_steps % together:
        raise InputError(
            f"--save-steps is {arguments.save_steps:g}, but a rollout batch serves {together} optimizer steps, and a "
            f"checkpoint within it could not be resumed: give a multiple of {together}"
        )
    return arguments


def step_cells(line: dict[str, Any]) -> dict[str, str]:
    """Reward, entropy and the formats' shares of a logged step; nothing of a line without a reward."""
    if line.get("reward") is None:
        return {}
    cells = {"reward": f"{reward_of(line):.3f}"}
    if line.get("entropy") is not None:
        cells["token entropy"] = f"{line['entropy']:.2f}"
    shares = {
        name.removeprefix("formats/").removesuffix("/share"): value
        for name, value in line.items()
        if name.endswith("/share")
    }
    return cells | {name: f"{share:.0%}" for name, share in shares.items()}


def describe_step(line: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in step_cells(line).items())


def describe_plan(trainer: ForkingTokenGRPOTrainer, config: ReinforceConfig) -> str:
    """The plan of a run, for --dry-run."""
    arguments, rows = trainer.args, trainer.train_dataset
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    steps, together = arguments.max_steps, updates_together(arguments)
    if steps < 0:
        steps = math.ceil(arguments.num_train_epochs * (len(rows) // config.prompts_per_step * together))
    lines = [
        f"prompts: {len(rows)}; columns: {', '.join(rows.column_names)}",
        f"reward: {', '.join(trainer.reward_func_names)}",
        f"steps: {steps}, {together} for each {config.prompts_per_step} prompts x {config.num_generations} completions "
        f"of at most {config.max_completion_length} tokens",
        f"trainable parameters: {trained:,}",
        f"policy loss on: {config.forking_tokens} {config.forking_fraction:.0%} of the tokens, {config.forking_scope}",
        f"first prompt: {rows[0]['prompt']!r}",
    ]
    return "\n".join(lines)
