"""One dataclass field is the YAML key, the flag, its help and its default."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from graftlm.cli.verb import with_flags
from graftlm.errors import InputError
from graftlm.heads.config import DistillConfig
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.config import REQUIRED, load_config, option
from graftlm.runs.yaml_text import YAMLError, dump_yaml, parse_yaml
from graftlm.tuning.config import TuneConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: str = field(default="small", metadata={"help": "Model to cook."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Heat."})
    rank: int = field(default=8, metadata={"help": "Rank."})
    pack: bool = field(default=False, metadata={"help": "Pack rows."})
    candidates: int | None = field(default=2048, metadata={"help": "Words scored."})
    heads: str | None = field(default=None, metadata={"help": "Folder."})
    method: Literal["lora", "full"] = field(default="lora", metadata={"help": "What is trained."})
    trainer: dict[str, Any] = field(default_factory=dict, metadata={"help": "Anything else."})
    foods: list[str] = option([], "Foods.", flag="--food")
    shares: list[float] = option([1.0], "Shares.", above=0)
    key: str | None = field(default="secret", repr=False, metadata={"help": "Of the kitchen."})


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_overrides_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "rank: 4\nmodel: large\n")
    config, sources = load_config(Recipe, file, {"rank": "2"})
    assert config == Recipe(rank=2, model="large")
    assert (sources["rank"], sources["model"], sources["pack"]) == ("flag", "config file", "default")
    assert list(sources) == [field.name for field in fields(Recipe)]


def test_without_file_and_flags_all_is_default() -> None:
    config, sources = load_config(Recipe, None, {})
    assert config == Recipe()
    assert set(sources.values()) == {"default"}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(Recipe, write(tmp_path, "# nothing\n"), {})[0] == Recipe()


@pytest.mark.parametrize("typo", ["lerning_rate: 1", "learning-rate: 1", "learningrate: 1"])
def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path: Path, typo: str) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: unknown key .*did you mean 'learning_rate'\?"):
        load_config(Recipe, write(tmp_path, typo), {})


def test_an_unknown_key_like_none_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown key 'zzzzzz'; see --help"):
        load_config(Recipe, write(tmp_path, "zzzzzz: 1"), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: four", "rank is 'four', but a whole number is expected"),
        ("rank: 4.5", "rank is 4.5, but a whole number is expected"),
        ("rank: true", "rank is True, but a whole number is expected"),
        ("rank: null", "rank is null, but a whole number is expected"),
        ("learning_rate: hot", "learning_rate is 'hot', but a finite number is expected"),
        ("learning_rate: .nan", "learning_rate is nan, but a finite number is expected"),
        ("pack: 1", "pack is 1, but true or false is expected"),
        ("model: 7", r"model is 7, but text is expected \(quote it to make it text\)"),
        ("method: half", "method is 'half', but one of lora, full is expected"),
        ("trainer: 3", "trainer is 3, but a mapping"),
        ("foods: [rice, 3]", "foods is 3, but text is expected"),
        ("shares: [0.5, no]", "shares is False, but a finite number"),
        ("- 1", "must hold `key: value` lines"),
        ("rank: [", "is not valid YAML"),
        ("rank: 1\nrank: 2", "key 'rank' is given twice"),
        ("<<: {rank: 1}\n<<: {rank: 2}", "key '<<' is given twice"),
        ("trainer: &a {b: *a}", "recursive"),
        ("trainer: {a: 2020-13-45}", "month must be in 1..12"),
        ("trainer: {a: !!bool x}", "KeyError"),
        ("rank: 9223372036854775808", "whole numbers go to"),
        ("rank: " + "[" * 2000, "not valid YAML"),
        (
            "trainer:\n  a0: &a0 [1]\n"
            + "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
            "its aliases make it too large",
        ),
    ],
)
def test_a_wrong_value_in_the_file_names_key_value_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(Recipe, write(tmp_path, text), {})
    assert "\n" not in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rank": "four"}, "--rank is 'four', but a whole number is expected"),
        ({"learning_rate": "inf"}, "--learning-rate is inf, but a finite number is expected"),
        ({"method": "half"}, "--method is 'half', but one of lora, full is expected"),
        ({"trainer": ["weight_decay"]}, "--trainer is 'weight_decay', but key=value is expected"),
        ({"shares": "1,x"}, "--shares is 'x', but a finite number is expected"),
        ({"trainer": ["a=["]}, "--trainer a is '\\[', which is not valid YAML"),
    ],
)
def test_a_wrong_flag_names_flag_value_and_expectation(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(Recipe, None, flags)


def test_a_number_without_a_dot_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    file = write(tmp_path, "learning_rate: 1e-3\ntrainer: {weight_decay: 5E-2}")
    config, _ = load_config(Recipe, file, {"trainer": ["adam_epsilon=1e-8"]})
    assert config.learning_rate == 1e-3
    assert config.trainer == {"weight_decay": 0.05, "adam_epsilon": 1e-8}


def test_a_whole_number_is_a_number_and_becomes_a_float(tmp_path: Path) -> None:
    config, _ = load_config(Recipe, write(tmp_path, "learning_rate: 1"), {})
    assert isinstance(config.learning_rate, float)


def test_a_merge_key_takes_what_it_does_not_give_anew(tmp_path: Path) -> None:
    file = write(tmp_path, "trainer: &a {a: 1, b: 2}\n<<: {rank: 3, model: m}\nmodel: large\n")
    config, _ = load_config(Recipe, file, {})
    assert (config.rank, config.model, config.trainer) == (3, "large", {"a": 1, "b": 2})
    chained = parse_yaml("c: {<<: &b {<<: &a {x: 1, z: 0}, x: 2}}\nd: *b\ne: {<<: [*a, *b], y: 3}")
    assert chained == {"c": {"x": 2, "z": 0}, "d": {"x": 2, "z": 0}, "e": {"x": 1, "y": 3, "z": 0}}


def test_null_switches_an_optional_field_off_by_file_and_by_flag(tmp_path: Path) -> None:
    assert load_config(Recipe, write(tmp_path, "candidates: null"), {})[0].candidates is None
    assert load_config(Recipe, None, {"candidates": "null"})[0].candidates is None


def test_a_mapping_flag_is_yaml_and_adds_to_the_file_s(tmp_path: Path) -> None:
    file = write(tmp_path, "trainer: {a: 1, b: 2}")
    config, sources = load_config(Recipe, file, {"trainer": ["b=true", "c=x=y", "d=[1, 2]"]})
    assert config.trainer == {"a": 1, "b": True, "c": "x=y", "d": [1, 2]}
    assert sources["trainer"] == "flag"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_config(Recipe, tmp_path / "nowhere.yaml", {})


def test_the_run_yaml_of_a_run_is_a_config_file_and_so_is_its_folder(tmp_path: Path) -> None:
    document = {"command": "cook", "config": asdict(Recipe(rank=3)), "versions": {"python": "3"}}
    (tmp_path / "run.yaml").write_text(dump_yaml(document), encoding="utf-8")
    for file in (tmp_path / "run.yaml", tmp_path):
        assert load_config(Recipe, file, {}, command="cook")[0] == Recipe(rank=3)
    with pytest.raises(InputError, match=r"is for `graftlm cook`, not for `graftlm bake`"):
        load_config(Recipe, tmp_path / "run.yaml", {}, command="bake")


def test_a_recipes_name_is_the_recipe_whatever_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dapo").mkdir()
    document = {"command": "reinforce", "config": {**asdict(ReinforceConfig()), "max_steps": 2}}
    (tmp_path / "dapo" / "run.yaml").write_text(dump_yaml(document), encoding="utf-8")
    for file, steps in ((Path("dapo"), None), (Path("dapo/run.yaml"), 2)):
        assert load_config(ReinforceConfig, file, {}, command="reinforce")[0].max_steps == steps


@pytest.mark.parametrize("config", [TuneConfig(heads="cold", trainer={"a": "1e-3"}), DistillConfig(seed=3)])
def test_every_config_survives_the_way_through_yaml(config: Any, tmp_path: Path) -> None:
    file = write(tmp_path, dump_yaml(asdict(config)))
    assert load_config(type(config), file, {})[0] == config


def test_a_config_s_own_check_reaches_the_user() -> None:
    with pytest.raises(InputError, match="--lora-rank is 0, but it must be at least 1"):
        load_config(TuneConfig, None, {"lora_rank": "0", "heads": "cold"})


def test_words_that_look_like_numbers_survive_yaml() -> None:
    value = {"a": "1e-3", "b": "1.5", "c": "no", "d": 1e-5, "e": None, "f": "ä: ‖"}
    assert parse_yaml(dump_yaml(value)) == value
    with pytest.raises(YAMLError):
        parse_yaml("{")


def cook(arguments: list[str]) -> tuple[Any, Any]:
    """What the function that runs a command got, and typer's result."""
    got: list[Any] = []
    app = typer.Typer(rich_markup_mode=None)

    def show(config: Recipe, result: None) -> None:
        """Cook it."""

    app.command()(with_flags("cook", Recipe, lambda config, run: got.append((config, run)), show))
    result = CliRunner().invoke(app, arguments)
    return (got[0][0] if got else None), result


def test_the_command_has_a_flag_for_every_field_with_help_and_real_default() -> None:
    _, result = cook(["--help"])
    shown = " ".join(result.output.split())
    assert "Cook it." in shown
    for entry in fields(Recipe):
        assert f"--{entry.name.replace('_', '-')}" in shown or entry.name == "foods"
        assert entry.metadata["help"] in shown
    assert re.search(r"--learning-rate NUMBER Heat\. \[default: 0\.001\]", shown)
    assert "--pack / --no-pack Pack rows. [default: false]" in shown
    assert "--method lora|full" in shown
    assert "--candidates INTEGER|null" in shown


def test_only_given_flags_override(tmp_path: Path) -> None:
    file = write(tmp_path, "pack: true\nrank: 4")
    config, _ = cook([str(file), "--learning-rate", "2e-3", "--trainer", "a=1", "--food", "rice", "--food", "beans"])
    assert config == Recipe(pack=True, rank=4, learning_rate=2e-3, trainer={"a": 1}, foods=["rice", "beans"])
    config, _ = cook(["--config", str(file), "--no-pack", "--shares", "0.5, 1"])
    assert config == Recipe(rank=4, shares=[0.5, 1.0])


def test_a_dry_run_tells_the_source_of_each_value(tmp_path: Path) -> None:
    _, result = cook([str(write(tmp_path, "pack: true")), "--trainer", "a=1", "--dry-run"])
    assert "pack: true  # config file" in result.output and "heads: null  # default" in result.output
    assert "trainer:\n  a: 1  # flag" in result.output and "secret" not in result.output


def test_two_config_files_are_refused(tmp_path: Path) -> None:
    file = str(write(tmp_path, "rank: 4"))
    _, result = cook([file, "--config", file])
    assert isinstance(result.exception, InputError)


@dataclass(frozen=True, kw_only=True)
class Serving:
    kitchen: str = option("small", "Kitchen.")


@dataclass(frozen=True, kw_only=True)
class Course(Serving):
    dish: str = option(REQUIRED, "Dish.", argument="DISH")
    sides: list[str] = option([], "Sides.", argument="[SIDE]...")
    guests: int = option(REQUIRED, "Guests.", at_least=1)
    plates: str | None = option(None, "Plates.", formerly="china")


def course(arguments: list[str]) -> tuple[Any, Any]:
    got: list[Any] = []
    app = typer.Typer(rich_markup_mode=None)
    app.command()(with_flags("course", Course, lambda config, run: config, lambda config, result: got.append(config)))
    result = CliRunner().invoke(app, arguments)
    return (got[0] if got else None), result


def test_arguments_come_by_position_or_from_the_file(tmp_path: Path) -> None:
    config, _ = course(["stew", "rice", "beans", "--guests", "2"])
    assert config == Course(dish="stew", sides=["rice", "beans"], guests=2)
    file = write(tmp_path, "dish: stew\nsides: rice\nguests: 3\n")
    assert course(["--config", str(file)])[0] == Course(dish="stew", sides=["rice"], guests=3)
    assert course(["soup", "--config", str(file), "--guests", "1"])[0] == Course(dish="soup", sides=["rice"], guests=1)
    shown = " ".join(course(["--help"])[1].output.split())
    assert "[SIDE]..." in shown and "--guests INTEGER Guests. [required; at least 1]" in shown
    assert shown.index("--guests") < shown.index("--kitchen") and "--china" not in shown


@pytest.mark.parametrize(("arguments", "message"), [
    (["--guests", "2"], "DISH is not given; see --help"),
    (["stew"], "--guests is not given; see --help"),
])  # fmt: skip
def test_a_value_that_is_needed_is_named(arguments: list[str], message: str) -> None:
    assert str(course(arguments)[1].exception) == message


def test_an_earlier_name_is_taken_and_told(tmp_path: Path) -> None:
    config, result = course(["stew", "--guests", "2", "--china", "white"])
    assert config.plates == "white"
    assert result.stderr == "graftlm: china is now plates; the old name goes in the next release\n"
    with pytest.warns(FutureWarning, match="china is now plates"):
        assert load_config(Course, write(tmp_path, "dish: a\nguests: 1\nchina: blue"), {})[0].plates == "blue"
    with pytest.raises(InputError, match="china and plates are one setting"):
        load_config(Course, None, {"plates": "a", "china": "b"})
    with pytest.raises(InputError, match="china and plates are one setting"):
        load_config(Course, None, {"china": "b", "plates": "a"})
