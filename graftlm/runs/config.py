"""Run configs: one frozen dataclass field is the YAML key, the command-line flag, its help and its default.

`load_config` merges defaults, a file and flags into one checked instance (graftlm/cli/flags.py makes the flags).
It takes any frozen dataclass whose fields are str, int, float, bool, a Literal of words, one of these or None,
list[str], list[float], list[int], dict[str, Any], or dict[str, str]. `option` declares a field. A static method
`from_words` makes fields of other words that a file or a caller may use.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import os
import reprlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from graftlm.errors import InputError
from graftlm.recipes import is_recipe, read_recipe
from graftlm.runs.ranges import Range
from graftlm.runs.yaml_text import YAMLError, parse_yaml

Config = TypeVar("Config")
REQUIRED = MISSING
RUN_FILE = "run.yaml"
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 120
LARGEST_WHOLE = 2**63 - 1  # of torch's and Arrow's integers
EXPECTED = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def option(
    default: Any,
    help: str,
    *,
    argument: str | None = None,
    flag: str | None = None,
    formerly: str | None = None,
    variable: str | None = None,
    secret: bool = False,
    resumable: bool = True,
    files: tuple[str, ...] = (),
    **bounds: float,
) -> Any:
    """A config field.

    Args:
        default: REQUIRED where there is none.
        help: the line that `--help` and the documentation show.
        argument: the name under which the command line takes the field by position, such as "MODEL" or "[TUNED]...",
            instead of a flag.
        flag: another flag than the field's own name, such as "--task" for the field `tasks`, which is repeated.
        formerly: an earlier name of the field, still taken with a FutureWarning.
        variable: the environment variable that gives the flag's value.
        secret: the value is not printed.
        resumable, files: of the field `output`: whether its command takes --resume, and the endings that make it one
            file instead of a folder.
        bounds: above=, at_least=, below= and at_most= of its Range, which `check_ranges` holds it to.
    """
    metadata = {
        "help": help, "argument": argument, "flag": flag, "formerly": formerly, "variable": variable,
        "resumable": resumable, "files": files, "range": Range(**bounds) if bounds else None,
    }  # fmt: skip
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata, repr=not secret)


def declared(settings: type, name: str, *, formerly: str | None = None, **changes: Any) -> Any:
    """A config field that is declared as the field `name` of `settings`: default, help and range stand there alone.

    formerly: as in `option`. changes: another `default`.
    """
    [original] = [each for each in fields(settings) if each.name == name]
    return field(**{"default": original.default, "metadata": {**original.metadata, "formerly": formerly}, **changes})


def require(condition: bool, flag: str, value: Any, rule: str) -> None:
    """Raise InputError that names the flag, the value and the rule that it breaks."""
    if not condition:
        shown = "not given" if value is None else describe(value)
        raise InputError(f"--{flag.replace('_', '-')} is {shown}, but {rule}")


def load_config(
    cls: type[Config],
    file: Path | None,
    given: Mapping[str, Any],
    *,
    command: str | None = None,
    source: str = "flag",
) -> tuple[Config, dict[str, str]]:
    """The config that defaults, `file` and `given` make, the later overriding the earlier.

    Args:
        file: YAML of `cls`'s fields, the name of a recipe, or the run.yaml (or folder) of an earlier run, whose
            config is repeated.
        given: field name -> value or a flag's text.
        command: the command that runs; a run.yaml of another one is refused.
        source: what `given` comes from.

    Returns:
        The instance, and for each field where its value came from: "default", "config file" or `source`.

    Raises:
        InputError: unknown key (the nearest is named), wrong type, a value that is missing, unreadable file, or
            `cls`'s own checks.
    """
    known = {field.name: (field, annotation) for field, annotation in typed_fields(cls)}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")
    written = read_config_file(file, command) if file is not None else {}
    if from_words := getattr(cls, "from_words", None):
        written, given = from_words(written), from_words(given)
    for name, value in current_names(written, known, f"{file}: unknown key").items():
        values[name] = coerce(value, known[name][1], f"{file}: {name}")
        sources[name] = "config file"
    for name, value in current_names(given, known, "unknown option").items():
        field, annotation = known[name]
        new = coerce_flag(value, annotation, flag_name(field))
        values[name] = {**values.get(name, {}), **new} if isinstance(new, dict) else new
        sources[name] = source
    for name, (field, _) in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{flag_name(field)} is not given; see --help")
    return cls(**values), sources


def current_names(
    given: Mapping[str, Any], known: Mapping[str, tuple[Field[Any], Any]], problem: str
) -> dict[str, Any]:
    """`given` under its fields' names of today, with a FutureWarning for an earlier one; InputError for a name that is
    none, or that is there as both."""
    renamed = {field.metadata.get("formerly"): name for name, (field, _) in known.items()}
    current: dict[str, Any] = {}
    for name, value in given.items():
        new = name if name in known else renamed.get(name)
        if new is None:
            raise InputError(f"{problem} {describe_unknown(name, known)}")
        if new != name:
            take_earlier_name(name, new, given)
        current[new] = value
    return current


def flag_name(field: Field[Any]) -> str:
    """The field's name on the command line: --field-name, or MODEL where it is taken by position."""
    if argument := field.metadata.get("argument"):
        return str(argument).strip("[].")
    return field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"


def typed_fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """Each field of the dataclass with its resolved type."""
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in fields(cls)]


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
        if not isinstance(value, dict):
            raise InputError(f"{culprit} is {describe(value)}, but a mapping (key: value) is expected")
        words = get_args(inner)[1] is str
        return {str(key): coerce(item, str, f"{culprit} {key}") if words else item for key, item in value.items()}
    if get_origin(inner) is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [coerce(item, get_args(inner)[0], culprit) for item in items]
    if inner is str and isinstance(value, os.PathLike):
        return os.fspath(value)
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
    if get_origin(inner) is list and get_args(inner)[0] is not str and isinstance(value, str):
        return [coerce_flag(part.strip(), get_args(inner)[0], flag) for part in value.split(",")]
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


def takes_earlier_names(cls: type[Config]) -> type[Config]:
    """Class decorator of a config: its fields' earlier names (`formerly`) are taken by the constructor and can be read
    and set, each with a FutureWarning."""
    renamed = {each.metadata["formerly"]: each.name for each in fields(cls) if each.metadata.get("formerly")}  # type: ignore[arg-type]
    build = cls.__init__

    @functools.wraps(build)
    def take(self: Any, *values: Any, **named: Any) -> None:
        for earlier in renamed.keys() & named.keys():
            take_earlier_name(earlier, renamed[earlier], named)
            named[renamed[earlier]] = named.pop(earlier)
        build(self, *values, **named)

    def attribute(earlier: str, name: str) -> property:
        def read(self: Any) -> Any:
            warn_of_earlier_name(earlier, name)
            return getattr(self, name)

        def write(self: Any, value: Any) -> None:
            warn_of_earlier_name(earlier, name)
            setattr(self, name, value)

        return property(read, write)

    cls.__init__ = take  # type: ignore[method-assign]
    for earlier, name in renamed.items():
        setattr(cls, earlier, attribute(earlier, name))
    return cls


def take_earlier_name(earlier: str, name: str, given: Collection[str]) -> None:
    """Warn of an earlier name; InputError where today's is given too."""
    if name in given:
        raise InputError(f"{earlier} and {name} are one setting, which was renamed; give {name} alone")
    warn_of_earlier_name(earlier, name, stacklevel=4)


def warn_of_earlier_name(earlier: str, name: str, *, stacklevel: int = 3) -> None:
    message = f"{earlier} is now {name}; the old name goes in the next release"
    warnings.warn(message, FutureWarning, stacklevel=stacklevel)
