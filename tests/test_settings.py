"""Each number of each setting has a range, which is checked before any work and shown in the help."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from trl import GRPOConfig, SFTConfig
from typer.testing import CliRunner

from graftlm.auditing.config import AuditConfig
from graftlm.cli import app
from graftlm.cli.app import verbs
from graftlm.decoding.config import GenerateConfig
from graftlm.errors import InputError
from graftlm.experiments.config import StudyConfig, SweepConfig
from graftlm.heads.config import DistillConfig
from graftlm.models.restore_config import RestoreConfig
from graftlm.pruning.config import PruneConfig, PruneFitConfig
from graftlm.reinforce.config import ReinforceConfig
from graftlm.reinforce.trainer import ForkingTokenGRPOConfig
from graftlm.runs.config import load_config
from graftlm.runs.ranges import Range, range_of
from graftlm.serve.settings import ServeConfig
from graftlm.tasks.config import EvaluateConfig
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.trainer import MultiTokenConfig
from graftlm.tuning.trainer_settings import RANGE_OF, UNBOUNDED, check_trainer_settings
from graftlm.tuning.training import trainer_arguments

CONFIGS: dict[type, dict[str, Any]] = {
    DistillConfig: {}, TuneConfig: {"heads": "cold", "eval_split": "test"}, ReinforceConfig: {}, StudyConfig: {},
    AuditConfig: {"base": "b"}, RestoreConfig: {"tuned": "t", "layers": "0", "output": "o"},
    EvaluateConfig: {"models": ["m"]}, GenerateConfig: {"prompts": ["a"]}, ServeConfig: {},
    PruneConfig: {"data": "d", "pruner": "m", "output": "o.jsonl"},
    PruneFitConfig: {"data": "d", "pruner": "m", "output": "o"},
    SweepConfig: {"base": "b", "expert": "e", "tasks": ["t"]},
}  # fmt: skip
TWO_WORDS = {PruneFitConfig: ["prune", "fit"], SweepConfig: ["proxy", "sweep"]}
FREE_FLAGS = {"--alpha", "--alphas"}
"""Numbers of flags that may be anything finite, which the verb checks itself."""


def numeric(hint: Any) -> bool:
    members = get_args(hint) if get_origin(hint) not in (None, Literal) else (hint,)
    return any(member in (int, float) or (get_origin(member) is list and numeric(member)) for member in members)


def outside(allowed: Range, kind: type) -> list[float]:
    """Numbers just beyond the bounds."""
    step = 1 if kind is int else 1e-9
    found = [] if allowed.above is None else [allowed.above]
    found += [] if allowed.at_least is None else [allowed.at_least - step]
    found += [] if allowed.below is None else [allowed.below]
    found += [] if allowed.at_most is None else [allowed.at_most + step]
    return [kind(value) for value in found]


@pytest.mark.parametrize("config", CONFIGS)
def test_each_number_of_a_config_has_a_range_that_is_kept_and_shown(config: type) -> None:
    hints = get_type_hints(config)
    for field in fields(config):
        if not numeric(hints[field.name]) or f"--{field.name}" in FREE_FLAGS:
            continue
        allowed = range_of(field)
        assert allowed is not None, f"{config.__name__}.{field.name} has no range"
        kind = float if float in (hints[field.name], *get_args(hints[field.name])) else int
        flag = f"--{field.name.replace('_', '-')}"
        for value in outside(allowed, kind):
            with pytest.raises(InputError, match=f"^{flag} is {value!r}, but it must be "):
                load_config(config, None, {**CONFIGS[config], field.name: repr(value)})
    verb = TWO_WORDS.get(config) or [config.__name__.removesuffix("Config").lower()]
    assert "at least" in CliRunner().invoke(app, [*verb, "--help"]).output


def test_the_config_of_every_verb_is_tried() -> None:
    without_numbers = {"export"}
    tried = {" ".join(TWO_WORDS.get(each) or [each.__name__.removesuffix("Config").lower()]) for each in CONFIGS}
    assert tried | without_numbers == set(verbs)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["evaluate", "m", "--shots", "-1"], "--shots is -1"),
        (["generate", "m", "--prompt", "a", "--temperature", "nan"], "--temperature is nan, but a finite number"),
        (["generate", "m", "--prompt", "a", "--temperature", "inf"], "--temperature is inf, but a finite number"),
        (["generate", "m", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["audit", "a", "b", "--limit", "1"], "--limit is 1"),
        (["prune", "d", "--pruner", "m", "--output", "o.jsonl", "--batch-tokens", "0"], "--batch-tokens is 0"),
        (["restore", "m", "--layers", "0", "--output", "o", "--scale", "1.5"], "--scale is 1.5"),
    ],
)
def test_a_number_out_of_range_is_refused_before_the_model_is_looked_for(arguments: list[str], culprit: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(culprit)


@pytest.mark.parametrize("config", [MultiTokenConfig, ForkingTokenGRPOConfig, SFTConfig, GRPOConfig])
def test_each_number_of_the_trainers_config_has_a_range_or_is_listed_as_unbounded(config: type) -> None:
    hints = get_type_hints(config)
    bare = [
        field.name for field in fields(config)
        if numeric(hints[field.name]) and range_of(field) is None and field.name not in RANGE_OF
    ]  # fmt: skip
    assert set(bare) <= set(UNBOUNDED)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_length": -4}, "--trainer max_length is -4, but it must be at least 2"),
        ({"max_length": "long"}, "max_length is 'long', but a whole number or null is expected"),
        ({"max_length": 8.5}, "max_length is 8.5, but a whole number or null"),
        ({"pad_to_multiple_of": "x"}, "pad_to_multiple_of is 'x', but a whole number or auto is expected"),
        ({"packing": "no"}, "packing is 'no', but true or false is expected"),
        ({"weight_decay": -1}, "weight_decay is -1, but it must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay is inf, but a finite number"),
        ({"adam_beta1": 1.0}, "adam_beta1 is 1.0, but it must be at least 0 and below 1"),
        ({"packing_strategy": "best"}, "packing_strategy is 'best', but one of bfd"),
        ({"report_to": ["nobody"]}, "report_to names 'nobody', but the trackers are "),
        ({"mtp_decay": 2}, "mtp_decay is 2, but it must be above 0 and at most 1"),
        ({"lerning_rate": 1}, "unknown field 'lerning_rate'; did you mean 'learning_rate'"),
        ({"optim": "adamx"}, "optim is 'adamx', but one of adamw_torch, "),
    ],
)
def test_a_wrong_value_of_the_trainer_is_refused_before_the_model_is_loaded(
    setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^--trainer") as caught:
        trainer_arguments(MultiTokenConfig, tmp_path, {}, setting)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_trainers_settings_have_their_earlier_names_for_one_release() -> None:
    with pytest.warns(FutureWarning, match="coefficient is now mtp_coefficient"):
        assert check_trainer_settings(MultiTokenConfig, {"coefficient": 0.3}) == {"mtp_coefficient": 0.3}


def test_the_defaults_of_trl_are_in_range() -> None:
    for config in (SFTConfig, GRPOConfig, MultiTokenConfig, ForkingTokenGRPOConfig):
        given = {field.name: field.default for field in fields(config) if type(field.default) in (int, float)}
        check_trainer_settings(
            config, {name: value for name, value in given.items() if (name, value) != ("max_steps", -1)}
        )


def test_a_steps_setting_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="--eval-steps is 5, but it needs an --eval-split"):
        TuneConfig(heads="cold", eval_steps=5)
