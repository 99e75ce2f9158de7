"""Checks of `--trainer key=value`: the types, choices and ranges of TRL's SFTConfig and GRPOConfig.

Their own checks leave most of it to the training loop: they take `max_length: -4` or `packing: "no"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from enum import Enum
from typing import Any, get_args

from graftlm.errors import InputError
from graftlm.runs.config import current_names, describe, typed_fields
from graftlm.runs.ranges import LARGEST_SEED, Range, range_of
from graftlm.runs.typed_values import expected, fits

POSITIVE, COUNT, FROM_ZERO = Range(above=0), Range(at_least=1), Range(at_least=0)
SHARE, BELOW_ONE = Range(at_least=0, at_most=1), Range(at_least=0, below=1)
SEED, PORT = Range(at_least=0, at_most=LARGEST_SEED), Range(at_least=0, at_most=65535)

RANGES: dict[Range, tuple[str, ...]] = {
    POSITIVE: (
        "learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps",
        "temperature", "repetition_penalty", "epsilon", "epsilon_high", "delta", "vllm_server_timeout",
        "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg",
        "vespo_lambda_neg", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap",
    ),
    COUNT: (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "torch_empty_cache_steps", "eval_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor",
        "ddp_bucket_cap_mb", "ddp_timeout", "dataset_num_proc", "pad_to_multiple_of", "num_generations_eval",
        "max_completion_length", "generation_batch_size", "steps_per_generation", "vllm_max_model_length",
        "vllm_tensor_parallel_size", "num_iterations", "ref_model_sync_steps", "num_completions_to_print",
        "max_steps",
    ),
    FROM_ZERO: (
        "warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "eval_delay", "dataloader_num_workers",
        "router_aux_loss_coef", "top_k", "beta", "entropy_coef", "entropy_coef_min", "entropy_coef_max",
        "entropy_coef_delta", "entropy_target", "max_tool_calling_iterations", "vllm_importance_sampling_clip_min",
    ),
    Range(at_least=2): ("max_length", "num_generations"),
    Range(at_least=-1): ("local_rank",),
    BELOW_ONE: ("adam_beta1", "adam_beta2", "label_smoothing_factor"),
    SHARE: ("min_p", "ref_model_mixup_alpha"),
    Range(above=0, at_most=1): ("top_p", "top_entropy_quantile", "vllm_gpu_memory_utilization"),
    SEED: ("seed", "data_seed"),
    PORT: ("vllm_server_port", "vllm_group_port"),
}  # fmt: skip
UNBOUNDED = ("reward_weights", "off_policy_mask_threshold")
CHOICES: dict[str, tuple[Any, ...]] = {
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
}
"""Allowed values that the field itself does not declare."""
RANGE_OF = {name: allowed for allowed, names in RANGES.items() for name in names}


def check_trainer_settings(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` under today's names; InputError for a field or value that `cls`, a TRL config, does not take."""
    known = {field.name: (field, annotation) for field, annotation in typed_fields(cls)}
    current = current_names(given, known, "--trainer: unknown field")
    for name, value in current.items():
        (field, annotation), culprit = known[name], f"--trainer {name}"
        if not fits(value, annotation):
            raise InputError(f"{culprit} is {describe(value)}, but {expected(annotation)} is expected")
        choices = choices_of(field, annotation)
        if choices and value is not None and value not in choices:
            raise InputError(f"{culprit} is {describe(value)}, but one of {', '.join(map(str, choices))} is expected")
        if name == "pad_to_multiple_of" and isinstance(value, str) and value != "auto":
            raise InputError(f"{culprit} is {describe(value)}, but a whole number or auto is expected")
        if name == "report_to":
            check_trackers(culprit, value)
        allowed = range_of(field) or RANGE_OF.get(name)
        if allowed is not None and isinstance(value, (int, float)):
            allowed.check(culprit, value)
    return current


def choices_of(field: Field[Any], hint: Any) -> tuple[Any, ...]:
    """List the values that a field may have, where they are a few words."""
    for member in get_args(hint):
        if isinstance(member, type) and issubclass(member, Enum):
            return tuple(each.value for each in member)
    return tuple(field.metadata.get("choices") or CHOICES.get(field.name, ()))


def check_trackers(culprit: str, names: str | list[str] | None) -> None:
    """InputError for a tracker that transformers does not know, or that is not installed."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    for name in [names] if isinstance(names, str) else names or []:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"{culprit} names {name!r}, but the trackers are {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"{culprit} names {name!r}, which is not installed: pip install {name}")
