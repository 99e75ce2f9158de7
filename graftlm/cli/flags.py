"""The flags and arguments of a command, made of the fields of its config: nothing is said twice."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from graftlm.runs.config import REQUIRED, flag_name, split_optional, typed_fields
from graftlm.runs.ranges import range_of

METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: ""}


def config_parameters(cls: type) -> list[inspect.Parameter]:
    """Arguments first, then the flags: the class's own before those that it inherits, earlier names (hidden) last.

    A value is None unless it is given, so that only given ones override a file; help shows the real default.
    """
    inherited = {field.name for base in cls.__mro__[1:-1] for field, _ in typed_fields(base)}
    typed = sorted(typed_fields(cls), key=lambda each: each[0].name in inherited)
    arguments = [argument_parameter(*each) for each in typed if is_argument(each[0])]
    flags = [flag_parameter(*each) for each in typed if not is_argument(each[0])]
    earlier = [flag_parameter(*each, earlier=True) for each in typed if each[0].metadata.get("formerly")]
    return [*arguments, *flags, *earlier]


def is_argument(field: Field[Any]) -> bool:
    """Whether the command line takes the field by position."""
    return bool(field.metadata.get("argument"))


def argument_parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    """One value, or for a list all that follow."""
    help = help_text(field, default_of(field))
    argument = typer.Argument(metavar=flag_name(field), help=help, show_default=False)
    several = get_origin(split_optional(annotation)[0]) is list
    return keyword(field.name, Annotated[list[str] | None if several else str | None, argument])


def flag_parameter(field: Field[Any], annotation: Any, *, earlier: bool = False) -> inspect.Parameter:
    """The flag of one field; `load_config` checks its text, so that file and flags obey the same rules."""
    inner, default = split_optional(annotation)[0], default_of(field)
    name, flags = field.name, [flag_name(field)]
    if earlier:
        name = field.metadata["formerly"]
        flags = [f"--{name.replace('_', '-')}"]
    elif field.metadata.get("flag"):
        flags.append(f"--{name.replace('_', '-')}")  # as in a file
    settings: dict[str, Any] = {
        "help": help_text(field, default), "show_default": False, "envvar": field.metadata.get("variable"),
        "show_envvar": False, "hidden": earlier,
    }  # fmt: skip
    if inner is bool:
        return keyword(name, Annotated[bool | None, typer.Option(f"{flags[0]}/--no-{flags[0][2:]}", **settings)])
    settings["metavar"] = metavar(annotation, default)
    repeated = get_origin(inner) is dict or inner == list[str]
    return keyword(name, Annotated[list[str] | None if repeated else str | None, typer.Option(*flags, **settings)])


def keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def metavar(annotation: Any, default: Any) -> str:
    """The value as help shows it: its type or its choices; `null` where it can be switched off."""
    inner, optional = split_optional(annotation)
    if get_origin(inner) is dict:
        return "NAME=REGEX" if inner == dict[str, str] else "KEY=VALUE"
    if get_origin(inner) is list:
        word = METAVARS[get_args(inner)[0]]
        return word if inner == list[str] else f"{word},..."
    word = "|".join(get_args(inner)) if get_origin(inner) is Literal else METAVARS[inner]
    return f"{word}|null" if optional and default is not None else word


def help_text(field: Field[Any], default: Any) -> str:
    """The field's help with its default and its range, and whether it is needed or can be repeated."""
    notes = ["required"] if default is REQUIRED and not is_argument(field) else []
    if default not in (None, REQUIRED, {}, []):
        shown = ",".join(f"{each}" for each in default) if isinstance(default, list) else default
        notes.append(f"default: {str(shown).lower() if isinstance(default, bool) else shown}")
    if (allowed := range_of(field)) is not None:
        notes.append(allowed.rule)
    text = str(field.metadata.get("help", ""))
    return f"{text} [{'; '.join(notes)}]" if notes else text


def default_of(field: Field[Any]) -> Any:
    """The field's default value; REQUIRED where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def common_parameters(names: Collection[str]) -> list[inspect.Parameter]:
    """Those of the options that all commands share which a command has."""
    return [keyword(name, COMMON[name], None if "config" in name else False) for name in COMMON if name in names]


CONFIG_HELP = "YAML file of these options, a recipe's name, or the run.yaml of an earlier run, which is then repeated."
COMMON: dict[str, Any] = {
    "config_argument": Annotated[Path | None, typer.Argument(help=CONFIG_HELP, metavar="CONFIG", show_default=False)],
    "config_option": Annotated[
        Path | None, typer.Option("--config", help=CONFIG_HELP, metavar="FILE", show_default=False)
    ],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")],
    "resume": Annotated[bool, typer.Option("--resume", help="Go on with the run that --output holds.")],
    "overwrite": Annotated[bool, typer.Option("--overwrite", help="Replace the run that --output holds.")],
    "as_json": Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")],
}
