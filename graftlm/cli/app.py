"""The application, and how it ends: an error is one line, an interrupt says how to go on."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graftlm import __version__
from graftlm.errors import InputError, check_whole
from graftlm.runs.console import printable, say

SETTINGS: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
verbs: dict[str, Callable[[], Callable[..., None]]] = {}
"""Name -> a function that makes the command with all its flags, which is called only for the verb that runs."""


class VerbGroup(TyperGroup):
    """Says that a verb was interrupted, and how to go on where it knows; the status is 130.

    A verb may have two words, beside one whose name is the first ("prune" and "prune fit").
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if " ".join(args[:2]) in self.commands:
            args = [" ".join(args[:2]), *args[2:]]
        name, command, rest = super().resolve_command(ctx, args)
        if name in verbs:
            alone = typer.Typer(add_completion=False, context_settings=CONTEXT, **SETTINGS)
            alone.command(name)(verbs[name]())
            command = typer.main.get_command(alone)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            say(f"graftlm: interrupted; {interrupt}" if str(interrupt) else "graftlm: interrupted")
            raise typer.Exit(130) from interrupt


app = typer.Typer(cls=VerbGroup, no_args_is_help=True, context_settings=CONTEXT, **SETTINGS)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; an error is one line, or a traceback too with --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper) and "utf" not in sys.stdout.encoding.lower():
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")  # a sign that a terminal lacks is no reason to fail
        else:
            sys.stdout.reconfigure(encoding="utf-8")
    given = sorted(given, key=lambda argument: argument != "--debug")
    try:
        for argument in given:
            check_whole(argument, f"the argument {argument!r}")
        app(args=given, prog_name="graftlm")
    except Exception as error:
        if "--debug" in given:
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr)
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Say on one line what went wrong; returns the exit status."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError):
        say(f"graftlm: {message}")
        return 2
    say(f"graftlm: {type(error).__name__}: {message} (--debug shows where)")
    return 1


def print_version(asked: bool) -> None:
    if asked:
        print(f"graftlm {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tune a language model for a domain without cutting its roots."""
