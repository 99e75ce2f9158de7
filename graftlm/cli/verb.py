"""A command out of three things: a config, the function that runs it, and the function that prints its result."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from importlib import import_module
from typing import Any

from graftlm.cli.app import app, verbs
from graftlm.cli.flags import common_parameters, config_parameters, is_argument
from graftlm.errors import InputError
from graftlm.runs.config import load_config
from graftlm.runs.console import reported_progress, say
from graftlm.runs.output import Output
from graftlm.runs.run import Run
from graftlm.runs.yaml_text import dump_yaml

Imported = str | Callable[..., Any]
"""A function or class, or "module:name", which is imported only when its command runs."""


def verb(
    config: Imported, runner: Imported, *, name: str | None = None, plans: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that makes the command `graftlm NAME` of `show(config, result)`, whose docstring is its help.

    The command reads `config`, a dataclass, from its flags and from --config, opens the run in `config.output` (a run
    that leaves nothing where there is none), calls `runner(config, run)`, and then `show`. One that takes --json has a
    keyword `as_json` in `show`.

    Args:
        runner: where it has a keyword `progress` it gets a function that reports progress.
        name: two words are possible; by default the name of `show`.
        plans: `runner` takes `dry_run=True`, with which it prints its plan; of others, --dry-run prints the config.
    """

    def decorate(show: Callable[..., None]) -> Callable[..., None]:
        command = name or show.__name__

        def listed() -> None:
            pass

        listed.__doc__ = show.__doc__
        app.command(command)(listed)
        verbs[command] = lambda: with_flags(command, imported(config), runner, show, plans=plans)
        return show

    return decorate


def with_flags(
    command: str, cls: type, runner: Imported, show: Callable[..., None], *, plans: bool = False
) -> Callable[..., None]:
    """The function that Typer makes a command of; see `verb`."""
    names = {field.name: field for field in fields(cls)}
    has = {
        "config_argument": not any(map(is_argument, names.values())), "config_option": True, "dry_run": True,
        "resume": "output" in names and names["output"].metadata.get("resumable", True),
        "overwrite": "output" in names, "as_json": "as_json" in signature_of(show),
    }  # fmt: skip
    common = common_parameters({name for name, there in has.items() if there})

    def call(**values: Any) -> None:
        chosen = {parameter.name: values.pop(parameter.name) for parameter in common}
        config, sources = read_config(cls, command, values, chosen)
        how = {key: chosen.get(key, False) for key in ("resume", "overwrite")}
        if chosen["dry_run"]:
            dry_run(config, command, sources, runner if plans else None, **how)
            return
        result = execute(config, command, sources, runner, **how)
        show(config, result, **({"as_json": chosen["as_json"]} if "as_json" in chosen else {}))

    every = [*config_parameters(cls), *common]
    call.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    call.__name__, call.__doc__ = show.__name__, show.__doc__
    return call


def signature_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def read_config(cls: type, command: str, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> Any:
    """The config and its sources; a line on stderr for each setting that is given by an earlier name."""
    argument, option = chosen.get("config_argument"), chosen["config_option"]
    if argument is not None and option is not None:
        raise InputError(f"two config files are given, {argument} and --config {option}; give one")
    given = {name: value for name, value in values.items() if value not in (None, [])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        loaded: Any = load_config(cls, argument or option, given, command=command)
    for each in caught:
        say(f"graftlm: {each.message}")
    return loaded


def execute(
    config: Any, command: str, sources: Mapping[str, str], runner: Imported, *, resume: bool, overwrite: bool
) -> Any:
    """Call `runner` with its run open, and return what it returns; an interrupt says how to continue."""
    with Run.create(getattr(config, "output", None), command, config, sources, resume, overwrite) as run:
        if resume and not run.resumed:
            say(f"graftlm: {config.output} holds no run to resume; starting one")
        function = imported(runner)
        takes_progress = "progress" in signature_of(function)
        with telling_how_to_continue(run), reported_progress() if takes_progress else nullcontext() as progress:
            return function(config, run, **({"progress": progress} if takes_progress else {}))


def imported(given: Imported) -> Any:
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def telling_how_to_continue(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if str(interrupt) or run.resume_command is None:
            raise
        raise KeyboardInterrupt(f"continue with: {run.resume_command}") from interrupt


def dry_run(
    config: Any, command: str, sources: Mapping[str, str], runner: Imported | None, *, resume: bool, overwrite: bool
) -> None:
    """Print the config as YAML that can be used again, the source of each value beside it, then the runner's plan."""
    if output := getattr(config, "output", None):
        Output(output, config).check(command, config, resume=resume, overwrite=overwrite)
    for field in fields(config):
        if field.repr:  # a key is not shown
            print(f"{dump_yaml({field.name: getattr(config, field.name)}).rstrip()}  # {sources[field.name]}")
    if runner is not None:
        with tempfile.TemporaryDirectory() as scratch, Run.create(f"{scratch}/run", command, config, sources) as run:
            imported(runner)(config, run, dry_run=True)
