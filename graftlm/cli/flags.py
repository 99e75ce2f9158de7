"""Typer commands out of config dataclasses: every field becomes a flag, said nowhere twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from graftlm.errors import InputError
from graftlm.runs.config import field_types, flag_name, load_config, split_optional, typed_fields
from graftlm.runs.ranges import range_of

Config = TypeVar("Config")
METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def config_command(cls: type[Config], command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: make `function(config, sources, **own)` a Typer command with a flag for each field of `cls`.

    The command takes [CONFIG] or --config FILE, the function's own keyword parameters, and the fields. A flag
    is None unless it is given, so that only given ones override the file; help shows the real default.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            flags = {name: values.pop(name) for name in field_types(cls)}
            positional, option = values.pop("config_file"), values.pop("config_option")
            if positional is not None and option is not None:
                raise InputError(f"two config files are given, {positional} and --config {option}; give one")
            config, sources = load_config(cls, positional or option, flags, command=command)
            function(config, sources, **values)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[2:]
        parameters = [*config_file_parameters(), *own, *(flag_parameter(f, t) for f, t in typed_fields(cls))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        return run

    return decorate


def config_file_parameters() -> list[inspect.Parameter]:
    """[CONFIG] and --config."""
    what = "YAML file of the options below, or the run.yaml of an earlier run, which is then repeated."
    positional = typer.Argument(help=what, metavar="CONFIG", show_default=False)
    option = typer.Option("--config", help="The same, as a flag.", metavar="FILE", show_default=False)
    return [
        keyword("config_file", Annotated[Path | None, positional]),
        keyword("config_option", Annotated[Path | None, option]),
    ]


def flag_parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    """The flag of one field; `load_config` checks its text, so that file and flags obey the same rules."""
    flag, default = flag_name(field.name), default_of(field)
    settings: dict[str, Any] = {"help": help_text(field, default), "show_default": False}
    if annotation is bool:
        names = f"{flag}/--no-{flag.removeprefix('--')}"
        return keyword(field.name, Annotated[bool | None, typer.Option(names, **settings)])
    if get_origin(annotation) is dict:
        settings["metavar"] = "KEY=VALUE"
        return keyword(field.name, Annotated[list[str] | None, typer.Option(flag, **settings)])
    settings["metavar"] = metavar(annotation, default)
    return keyword(field.name, Annotated[str | None, typer.Option(flag, **settings)])


def keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def metavar(annotation: Any, default: Any) -> str:
    """What help shows for a value: its type or its choices; `null` where it can be switched off."""
    inner, optional = split_optional(annotation)
    word = "|".join(get_args(inner)) if get_origin(inner) is Literal else METAVARS[inner]
    return f"{word}|null" if optional and default is not None else word


def help_text(field: Field[Any], default: Any) -> str:
    """The field's help with its default and its range."""
    notes = []
    if default is not None and default != {}:
        notes.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
    if (allowed := range_of(field)) is not None:
        notes.append(allowed.rule)
    text = str(field.metadata.get("help", ""))
    return f"{text} [{'; '.join(notes)}]" if notes else text


def default_of(field: Field[Any]) -> Any:
    """The field's default value; None where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default
