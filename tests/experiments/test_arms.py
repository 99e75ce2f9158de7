"""Arms as data: what a block inherits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import InputError
from graftlm.experiments.arms import Arm, read_arm
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.study import experiment_of
from graftlm.runs.config import load_config
from graftlm.runs.yaml_text import parse_yaml
from graftlm.tuning.config import TuneConfig


def test_an_arm_changes_the_one_that_it_is_from() -> None:
    arms = StudyConfig().chosen_arms
    anchored = arms["kl-anchor"]
    assert anchored.settings == {
        "objective": "multi-token", "train_heads": True, "protect_layers": 0.5, "anchor": "kl",
    }  # fmt: skip
    assert anchored.parent == "protected-layers" and anchored.root == "distilled-heads"


def test_arms_of_a_file_come_with_those_that_they_are_from() -> None:
    own = {"mine": {"from": "next-token-lora", "tune": {"anchor": "kl"}}, "other": {"from": "mine"}}
    assert list(StudyConfig(own_arms=own).chosen_arms) == ["next-token-lora", "mine", "other"]
    assert list(StudyConfig(own_arms=own, arms=["mine"]).chosen_arms) == ["mine"]
    assert list(StudyConfig(own_arms={"kl-anchor": None, **own}).chosen_arms)[:2] == ["next-token-lora", "kl-anchor"]


def test_the_study_gives_what_an_arm_leaves_out() -> None:
    config = StudyConfig(learning_rate=1e-3, full_learning_rate=1e-4, mtp_coefficient=0.2, batch_size=2, output="o")
    filled = {name: config.filled(arm, "o/heads").settings for name, arm in config.chosen_arms.items()}
    tuned = {name: TuneConfig(output="o", **settings) for name, settings in filled.items()}
    assert tuned["next-token-full"].learning_rate == 1e-4 and tuned["next-token-lora"].learning_rate == 1e-3
    assert tuned["cold-heads"].heads == "cold" and tuned["distilled-heads"].heads == "o/heads"
    assert {each.batch_size for each in tuned.values()} == {2} and "heads" not in filled["next-token-lora"]
    assert tuned["cold-heads"].mtp_coefficient == 0.2
    plain = Arm(name="plain", verb="tune", settings={"terms": {"l2_to_base": {}}})
    assert "heads" not in config.filled(plain, "o/heads").settings
    own = {"slow": {"from": "next-token-lora", "tune": {"learning_rate": 1e-5}}}
    config = StudyConfig(own_arms=own)
    assert config.filled(config.chosen_arms["slow"], "h").settings["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"from": "next-token-lor"}, "arm x is from an unknown arm 'next-token-lor'; did you mean 'next-token-lora'"),
        ({"tune": {"lora_rnk": 4}}, "arm x: tune: unknown setting 'lora_rnk'; did you mean 'lora_rank'"),
        ({"tune": {"lora_rank": "four"}}, "arm x: tune: lora_rank is 'four', but a whole number is expected"),
        ({"tune": {"seed": 1}}, "arm x: tune: unknown setting 'seed'"),
        ({"tun": {}}, "arm x: unknown setting 'tun'; did you mean 'tune'"),
        ({"from": "x"}, "arm x is from itself"),
        ({}, "arm x needs one verb"),
        ({"tune": {}, "evaluate": {}}, "arm x needs one verb"),
        ({"from": "next-token-lora", "evaluate": {}}, "arm x needs the verb tune"),
        ({"tune": {}, "after": {"repair": {}}}, "arm x: after: unknown setting 'repair'"),
        ({"tune": {}, "strengths": {"learning_rate": 1}}, "arm x: learning_rate is 1, but a list"),
        ({"tune": {}, "strengths": {"learning_rate": [1, 1.0]}}, "arm x: learning_rate 1.0 is given twice"),
        ({"tune": {}, "strengths": {"scale": [1]}}, "arm x: strengths: unknown setting 'scale'"),
        ({"tune": {}, "strengths": {}}, "arm x: strengths needs one setting"),
        ("tune", "arm x is 'tune', but a mapping"),
    ],
)
def test_what_no_arm_can_be_is_refused_with_its_name(block: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        StudyConfig(own_arms={"x": block})
    assert str(error.value).startswith(message)


def test_settings_that_a_verb_refuses_name_the_arm_before_anything_is_made(tmp_path: Any) -> None:
    own = {"x": {"from": "next-token-lora", "strengths": {"learning_rate": [1e-4, -1]}}}
    with pytest.raises(InputError, match=r"arm x, learning_rate -1: .*learning.rate"):
        experiment_of(StudyConfig(own_arms=own), tmp_path)
    with pytest.raises(InputError, match="cannot have this name"):
        read_arm("heads", {"heads": {"tune": {}}})


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(InputError, match="--arms names 'warm-heads'; did you mean 'cold-heads'"):
        StudyConfig(arms=["cold-heads,warm-heads"])
    with pytest.raises(InputError, match="at least one arm"):
        StudyConfig(arms=[","])


def test_the_recipes_of_experiments_are_valid() -> None:
    ladder, _ = load_config(StudyConfig, Path("study"), {}, command="study")
    assert ladder.chosen_arms == StudyConfig().chosen_arms
    demo, _ = load_config(StudyConfig, Path("demo"), {}, command="study")
    arms = [demo.filled(arm, "heads").settings for arm in demo.chosen_arms.values()]
    assert list(demo.chosen_arms) == ["next-token", "multi-token"] and demo.seeds == 1
    assert arms[0] == {"objective": "next-token", "model": "smollm2-135m", "data": "molecules", "max_steps": 50,
                       "batch_size": 8, "learning_rate": 6e-4}  # fmt: skip
    assert TuneConfig(output="o", **arms[1]).heads == "heads"
    blocks = parse_yaml((Path(__file__).parents[2] / "bench" / "forking_tokens.yaml").read_text("utf-8"))
    assert {read_arm(name, blocks).root for name in blocks} == {"all tokens"}
