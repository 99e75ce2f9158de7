"""Verbs that use a model: generate, serve, export; and env."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftlm.cli.app import app
from graftlm.cli.options import AsJson
from graftlm.cli.verb import verb
from graftlm.decoding.config import GenerateConfig
from graftlm.errors import InputError
from graftlm.heads.config import ExportConfig
from graftlm.runs.console import environment_table, print_table, say
from graftlm.runs.files import dump_json
from graftlm.serve.settings import ServeConfig

if TYPE_CHECKING:
    from graftlm.runs.run import Run


def generate_steered(config: GenerateConfig, run: Run) -> Any:
    from graftlm.decoding.generate import run_generate
    from graftlm.proxy.steering import load_steered

    return run_generate(config, run, load=lambda name: load_steered(name, config))


@verb(GenerateConfig, generate_steered)
def generate(config: GenerateConfig, result: Any) -> None:
    """Continue or answer prompts.

    The text goes to stdout as it is written.
    """


def serve_model(config: ServeConfig, run: Run) -> None:
    try:
        from graftlm.serve.server import run_serve
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'graftlm[serve]'") from error
    run_serve(config, run)


@verb(ServeConfig, serve_model)
def serve(config: ServeConfig, result: None) -> None:
    """Answer over HTTP, as OpenAI's API does.

    Requests that come together are written together. SIGTERM or Ctrl-C finishes what runs.
    """


@verb(ExportConfig, "graftlm.heads.export:run_export")
def export(config: ExportConfig, verifier: str) -> None:
    """Write the first head as an EAGLE-3 speculator, for vLLM.

    The format is EAGLE-3 as the library speculators has it; it covers one head, so an engine drafts one token. An
    adapter is to be merged first: engines draft for whole models.
    """
    say(f"speculator: {config.output}, one token a draft, for {verifier}")


@app.command()
def env(as_json: AsJson = False) -> None:
    """Show versions, machine, cache, optional parts."""
    from graftlm.cli.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print(dump_json(facts, indent=2))
    else:
        print_table(environment_table(facts))
