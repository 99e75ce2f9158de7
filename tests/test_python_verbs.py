"""The commands from Python: under their own names, with models by name or loaded, and the config's fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import graftlm
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.runs.yaml_text import parse_yaml
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")]
SHORT: dict[str, Any] = {"objective": "next-token", "max_steps": 2, "batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} ->", "completion": f" {i % 3}"}) + "\n" for i in range(8)))
    return str(path)


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_tune_takes_a_loaded_model_or_its_name_and_gives_the_tuned_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: str
) -> None:
    named = saved(tmp_path / "tiny", tiny_model(), tokenizer)
    one = graftlm.tune(named, data, output=tmp_path / "one", method="full", **SHORT)
    two = graftlm.tune(tiny_model(), data, tokenizer=tokenizer, output=tmp_path / "two", method="full", **SHORT)
    assert one is not None and two is not None and not one.training
    before = tiny_model().state_dict()
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, two.state_dict()[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in one.state_dict().items())
    document = parse_yaml((tmp_path / "one" / "run.yaml").read_text())
    assert document["sources"]["max_steps"] == "argument" and document["config"]["model"] == str(named)
    assert (tmp_path / "two" / "model" / "config.json").exists()
    with pytest.raises(InputError, match="holds a run; give --resume, --overwrite"):
        graftlm.tune(named, data, output=tmp_path / "one", **SHORT)


def test_a_setting_of_a_wrong_name_or_value_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown option 'lora_rnk'; did you mean 'lora_rank'"):
        graftlm.tune("nowhere", "molecules", lora_rnk=4, output=tmp_path / "run")
    with pytest.raises(InputError, match="--num-heads is 0"):
        graftlm.distill("nowhere", "molecules", num_heads=0, output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_distill_gives_the_heads(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: str) -> None:
    small: dict[str, Any] = {
        "num_heads": 1,
        "domain_tokens": 60,
        "general_tokens": 30,
        "max_new_tokens": 8,
        "epochs": 1,
    }
    heads = graftlm.distill(tiny_model(), data, tokenizer=tokenizer, output=tmp_path / "heads", **small)
    assert isinstance(heads, MultiTokenHeads) and (tmp_path / "heads" / "model.safetensors").exists()


@pytest.mark.slow
def test_reinforce_is_a_package_and_a_verb(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    import graftlm.reinforce
    from graftlm.reinforce.trainer import ForkingTokenGRPOConfig

    assert ForkingTokenGRPOConfig is graftlm.ForkingTokenGRPOConfig
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"{i} +", "answer": i}) + "\n" for i in range(4)))
    tiny: dict[str, Any] = {
        "num_generations": 2, "prompts_per_step": 2, "batch_size": 4, "max_completion_length": 4, "max_steps": 1
    }  # fmt: skip
    tuned = graftlm.reinforce(
        tiny_model(), str(prompts), tokenizer=tokenizer, reward="regex:[a-m]", output=tmp_path / "run", **tiny
    )
    assert hasattr(tuned, "generate") and (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("name", ["tune", "distill", "audit", "evaluate", "restore", "reinforce"])
def test_each_verb_is_callable_under_its_own_name(name: str) -> None:
    assert callable(getattr(graftlm, name)) and name in graftlm.__all__


@pytest.mark.slow
def test_study_takes_arms_of_ones_own_and_a_loaded_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: str
) -> None:
    arms = {"mine": {"tune": {"objective": "next-token", "lora_rank": 2}}}
    settings: dict[str, Any] = {"seeds": 1, "max_steps": 1, "limit": 2, "tasks": [data], "probes": [], "arms": arms}
    named = saved(tmp_path / "tiny", tiny_model(), tokenizer)
    one = graftlm.study(named, data, output=tmp_path / "one", **settings)
    two = graftlm.study(tiny_model(), data, tokenizer=tokenizer, output=tmp_path / "two", **settings)
    assert list(one.groups) == ["mine"] and (tmp_path / "two" / "report.html").exists()
    for ours, theirs in zip(one.every, two.every, strict=True):
        assert ours.scores["rows"].metrics == pytest.approx(theirs.scores["rows"].metrics)
    again = graftlm.study(tiny_model(), data, tokenizer=tokenizer, output=tmp_path / "two", resume=True, **settings)
    assert again.every == two.every
    with pytest.raises(InputError, match="arm mine: tune: unknown setting 'lora_rnk'; did you mean 'lora_rank'"):
        graftlm.study(named, data, output=tmp_path / "bad", arms={"mine": {"tune": {"lora_rnk": 2}}})
    assert not (tmp_path / "bad").exists()
