"""Run configs: one frozen dataclass field is the YAML key, the command-line flag, its help and its default.

`load_config` merges defaults, a file and flags into one checked instance (graftlm/cli/flags.py makes the flags).
It takes any frozen dataclass whose fields are str, int, float, bool, a Literal of words, one of these or
None, dict[str, Any], or dict[str, str]; a field's help is `metadata["help"]`, its range `metadata["range"]`.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from graftlm.errors import InputError
from graftlm.recipes import is_recipe, read_recipe
from graftlm.runs.ranges import Range
from graftlm.runs.yaml_text import YAMLError, parse_yaml

Config = TypeVar("Config")
RUN_FILE = "run.yaml"
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 120
LARGEST_WHOLE = 2**63 - 1  # of torch's and Arrow's integers
EXPECTED = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def option(default: Any, help: str, **bounds: float) -> Any:
    """A config field: its default, the line that `--help` and the documentation show, and the bounds of its Range
    (above=, at_least=, below=, at_most=), which `check_ranges` holds it to."""
    metadata = {"help": help, "range": Range(**bounds) if bounds else None}
    if isinstance(default, (dict, list)):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: bool, flag: str, value: Any, rule: str) -> None:
    """Raise InputError that names the flag, the value and the rule that it breaks."""
    if not condition:
        shown = "not given" if value is None else describe(value)
        raise InputError(f"--{flag.replace('_', '-')} is {shown}, but {rule}")


def load_config(
    cls: type[Config], file: Path | None, flags: Mapping[str, Any], *, command: str | None = None
) -> tuple[Config, dict[str, str]]:
    """The config that defaults, `file` and `flags` make, the later overriding the earlier.

    Args:
        file: YAML of `cls`'s fields, the name of a recipe, or the run.yaml (or folder) of an earlier run, whose
            config is repeated.
        flags: field name -> value or its text; None means not given.
        command: the command that runs; a run.yaml of another one is refused.

    Returns:
        The instance, and for each field where its value came from: "default", "config file" or "flag".

    Raises:
        InputError: unknown key (the nearest is named), wrong type, unreadable file, or `cls`'s own checks.
    """
    types = field_types(cls)
    written = read_config_file(file, command) if file is not None else {}
    unknown = [key for key in written if key not in types]
    if unknown:
        raise InputError(f"{file}: unknown key {describe_unknown(unknown[0], types)}")
    values: dict[str, Any] = {}
    sources = dict.fromkeys(types, "default")
    for name, value in written.items():
        values[name] = coerce(value, types[name], f"{file}: {name}")
        sources[name] = "config file"
    for name, value in flags.items():
        if value is None:
            continue
        if name not in types:
            raise InputError(f"unknown option {describe_unknown(name, types)}")
        given = coerce_flag(value, types[name], flag_name(name))
        values[name] = {**values.get(name, {}), **given} if isinstance(given, dict) else given
        sources[name] = "flag"
    return cls(**values), sources


def flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def typed_fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """Each field of the dataclass with its resolved type."""
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in fields(cls)]


def field_types(cls: type) -> dict[str, Any]:
    return {field.name: annotation for field, annotation in typed_fields(cls)}


def read_config_file(file: Path, command: str | None) -> dict[str, Any]:
    """The keys of a config file, of the recipe of that name, or the `config` of a run.yaml."""
    recipe = is_recipe(file)
    file = file / RUN_FILE if file.is_dir() and not recipe else file
    try:
        text = read_recipe(file.name) if recipe else file.read_text(encoding="utf-8")
        content = parse_yaml(text)
    except OSError as error:
        raise InputError(f"config file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config file {file} is not UTF-8 text") from error
    except YAMLError as error:
        raise InputError(f"config file {file} is not valid YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"config file {file} must hold `key: value` lines, but holds {describe(content)}")
    if isinstance(content.get("config"), dict) and "command" in content:
        if command is not None and content["command"] != command:
            raise InputError(f"{file} is for `graftlm {content['command']}`, not for `graftlm {command}`")
        content = content["config"]
    return {str(key): value for key, value in content.items()}


def describe_unknown(name: str, known: Iterable[str]) -> str:
    """'lora_rnk'; did you mean 'lora_rank'?"""
    nearest = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f"{name!r}; did you mean {nearest[0]!r}?" if nearest else f"{name!r}; see --help"


def coerce(value: Any, annotation: Any, culprit: str) -> Any:
    """`value` as the type `annotation`; InputError names the culprit, the value and what was expected."""
    inner, optional = split_optional(annotation)
    if value is None and optional:
        return None
    if get_origin(inner) is Literal:
        if value in (choices := get_args(inner)):
            return value
        raise InputError(f"{culprit} is {describe(value)}, but one of {', '.join(choices)} is expected")
    if get_origin(inner) is dict:
        if isinstance(value, dict):
            return {str(key): item for key, item in value.items()}
        raise InputError(f"{culprit} is {describe(value)}, but a mapping (key: value) is expected")
    if inner is float and type(value) is int:
        value = float(value) if abs(value) <= LARGEST_WHOLE else math.inf
    if type(value) is inner and not (inner is float and not math.isfinite(value)):
        if inner is int and abs(value) > LARGEST_WHOLE:
            raise InputError(f"{culprit} is {describe(value)}, but whole numbers go to {LARGEST_WHOLE}")
        return value
    hint = " (quote it to make it text)" if inner is str and value is not None else ""
    raise InputError(f"{culprit} is {describe(value)}, but {EXPECTED[inner]} is expected{hint}")


def coerce_flag(value: Any, annotation: Any, flag: str) -> Any:
    """A flag's text as the type `annotation`; a value that is no text is only checked."""
    inner, optional = split_optional(annotation)
    if get_origin(inner) is dict and isinstance(value, list):
        plain = get_args(inner)[1] is str
        return dict(parse_assignment(text, flag, plain=plain) for text in value)
    if isinstance(value, str):
        if optional and value == "null":
            return None
        if inner in (int, float):
            try:
                value = inner(value)
            except ValueError:
                raise InputError(f"{flag} is {describe(value)}, but {EXPECTED[inner]} is expected") from None
    return coerce(value, annotation, flag)


def parse_assignment(text: str, flag: str, *, plain: bool = False) -> tuple[str, Any]:
    """'weight_decay=0.1' -> ('weight_decay', 0.1); the value is read as YAML, or is the text as it stands."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InputError(f"{flag} is {describe(text)}, but key=value is expected")
    if plain:
        return key.strip(), value
    try:
        return key.strip(), parse_yaml(value)
    except YAMLError as error:
        raise InputError(f"{flag} {key.strip()} is {describe(value)}, which is not valid YAML") from error


def split_optional(annotation: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True), `X` -> (X, False)."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    inner = [member for member in get_args(annotation) if member is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a config field may be a type or that type or None, not {annotation}")
    return inner[0], True


def describe(value: Any) -> str:
    """A value as an error line shows it: of a long one the beginning, of a deep one the outermost."""
    return "null" if value is None else SHORT.repr(value)
