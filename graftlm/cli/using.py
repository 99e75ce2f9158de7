"""Verbs that use a model: generate, serve, export; and env."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.verb import verb
from graftlm.errors import InputError
from graftlm.runs.console import environment_table, print_table, say
from graftlm.runs.files import dump_json

if TYPE_CHECKING:
    from graftlm.decoding.config import GenerateConfig
    from graftlm.heads.config import ExportConfig
    from graftlm.runs.run import Run
    from graftlm.serve.settings import ServeConfig


def generate_steered(config: GenerateConfig, run: Run) -> Any:
    from graftlm.decoding.generate import run_generate
    from graftlm.proxy.steering import load_steered

    return run_generate(config, run, load=lambda name: load_steered(name, config))


@verb("graftlm.decoding.config:GenerateConfig", generate_steered)
def generate(config: GenerateConfig, result: Any) -> None:
    """Continue or answer prompts.

    Each text is printed while it is written.
    """


def serve_model(config: ServeConfig, run: Run) -> None:
    try:
        from graftlm.serve.server import run_serve
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'graftlm[serve]'") from error
    run_serve(config, run)


@verb("graftlm.serve.settings:ServeConfig", serve_model)
def serve(config: ServeConfig, result: None) -> None:
    """Answer over HTTP, as OpenAI's API does.

    Requests that arrive together are decoded in one batch. SIGTERM or Ctrl-C stops the server once the running requests
    are finished.
    """


@verb("graftlm.heads.config:ExportConfig", "graftlm.heads.export:run_export")
def export(config: ExportConfig, verifier: str) -> None:
    """Write the first head as an EAGLE-3 speculator, for vLLM.

    The format is EAGLE-3 as the library speculators has it; it covers one head, so an engine drafts one token.
    Merge an adapter first: engines draft for whole models.
    """
    say(f"speculator: {config.output}, one token a draft, for {verifier}")


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show versions, machine, cache, optional parts."""
    from graftlm.cli.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print(dump_json(facts, indent=2))
    else:
        print_table(environment_table(facts))
