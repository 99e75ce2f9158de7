"""Verbs that use a model: generate, serve, export; and env."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.options import (
    Alpha,
    Antiexpert,
    AsJson,
    Draft,
    Expert,
    Overwrite,
    number_option,
    opened_folder,
    seed_option,
)
from graftlm.errors import InputError
from graftlm.runs.console import environment_table, print_table, printable, say
from graftlm.runs.files import dump_json
from graftlm.serve.settings import ServeSettings

if TYPE_CHECKING:
    from graftlm.decoding.generation import Written


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Hub id, folder or adapter folder.")] = "smollm2-135m",
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue or answer; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file with one prompt a line.", metavar="FILE")] = None,
    max_new_tokens: Annotated[int, number_option("Most tokens to write.", at_least=1)] = 128,
    temperature: Annotated[float, number_option("0 takes the likeliest token each time.", at_least=0)] = 0.0,
    seed: Annotated[int, seed_option("Seed of the sampling.")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. [default: if there is one]"),
    ] = None,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = None,
    draft: Draft = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --draft: write it again without, and say how much faster it is.")
    ] = False,
) -> None:
    """Continue or answer prompts.

    The text goes to stdout as it is written.
    """
    prompts = [*(prompt or []), *(read_prompts(file) if file is not None else [])]
    if not prompts:
        raise InputError("there is no prompt; give --prompt TEXT or --file FILE")
    import torch
    from transformers import set_seed

    from graftlm.decoding.generation import stream_completion
    from graftlm.proxy.model import steered

    check_draft(draft, expert)
    if compare and draft is None:
        raise InputError("--compare needs --draft FOLDER: there is nothing to compare")
    loaded, tokenizer = steered(model, expert, antiexpert, alpha)
    writer = loaded if draft is None else drafted(loaded, draft)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "chat": chat}
    if compare:  # what is measured once in a process, and first calls of kernels, count for neither
        for each in (writer, loaded):
            stream_completion(each, tokenizer, prompts[0], lambda piece: None, **{**options, "max_new_tokens": 2})

    def show(piece: str) -> None:
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)

    set_seed(seed)
    for number, text in enumerate(prompts, start=1):
        if len(prompts) > 1:
            say(f"[{number}/{len(prompts)}] {text}")
        written = stream_completion(writer, tokenizer, text, show, **options)
        print()
        if compare:
            with torch.random.fork_rng():  # the next prompt's text does not depend on this
                plain = stream_completion(loaded, tokenizer, text, lambda piece: None, **options)
            say(compared(written, plain))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Hub id, folder or adapter folder.")] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen at; one that others reach needs --api-key.")] = (
        ServeSettings.host
    ),
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = ServeSettings.port,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="What clients must send. The variable keeps it out of the list of processes.",
            envvar="GRAFTLM_API_KEY",
            show_default=False,
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Sequences written at once.")] = ServeSettings.max_batch_size,
    max_queue: Annotated[
        int, typer.Option(help="Sequences that wait, and the most that one request may ask for.")
    ] = ServeSettings.max_queue,
    max_tokens_limit: Annotated[
        int, typer.Option(help="The most that a request's max_tokens may be; a chat's default.")
    ] = ServeSettings.max_tokens_limit,
    max_body_bytes: Annotated[int, typer.Option(help="Size of a request.")] = ServeSettings.max_body_bytes,
    max_connections: Annotated[int, typer.Option(help="Connections at once.")] = ServeSettings.max_connections,
    request_seconds: Annotated[float, typer.Option(help="Time for a request.")] = ServeSettings.request_seconds,
    arrival_seconds: Annotated[
        float, typer.Option(help="Time for a request's head and body to arrive, and for a client to read on.")
    ] = ServeSettings.arrival_seconds,
    grace_seconds: Annotated[
        float, typer.Option(help="Time for what runs when the server is told to stop.")
    ] = ServeSettings.grace_seconds,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = None,
    draft: Draft = None,
) -> None:
    """Answer over HTTP, as OpenAI's API does.

    Requests that come together are written together. SIGTERM or Ctrl-C finishes what runs.
    """
    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        max_tokens_limit=max_tokens_limit,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        request_seconds=request_seconds,
        arrival_seconds=arrival_seconds,
        grace_seconds=grace_seconds,
    )
    try:
        from graftlm.serve.server import serve as serve_model
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'graftlm[serve]'") from error
    check_draft(draft, expert)
    from graftlm.proxy.model import steered

    def load() -> tuple[Any, Any]:
        loaded, tokenizer = steered(model, expert, antiexpert, alpha)
        return (loaded if draft is None else drafted(loaded, draft)), tokenizer

    serve_model(load, model, settings)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Hub id, folder or adapter folder that the heads belong to.")],
    *,
    heads: Annotated[str, typer.Option(metavar="FOLDER", help="Heads of `graftlm distill`.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for config.json and model.safetensors.")],
    verifier: Annotated[
        str | None, typer.Option(help="Where the engine finds the model. [default: MODEL]", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
    ] = False,
) -> None:
    """Write the first head as an EAGLE-3 speculator, for vLLM.

    The format is EAGLE-3 as the library speculators has it; it covers one head, so an engine drafts one token. An
    adapter is to be merged first: engines draft for whole models.
    """
    from graftlm.heads.export import check_replaceable, export_eagle3
    from graftlm.heads.heads import MultiTokenHeads
    from graftlm.models.adapters import merged
    from graftlm.models.load import load_model

    if overwrite:
        check_replaceable(output)
    with opened_folder(output, "config.json", overwrite=overwrite):
        loaded, _ = load_model(model, trust_remote_code=trust_remote_code)
        if hasattr(loaded, "merge_and_unload") and verifier is None:
            raise InputError(
                f"{model} is an adapter, which engines do not draft for: merge it, and give the result as --verifier"
            )
        loaded = merged(loaded)
        export_eagle3(loaded, MultiTokenHeads.from_pretrained(heads, loaded), output, verifier or model)
    say(f"speculator: {output}, one token a draft, for {verifier or model}")


@app.command()
def env(as_json: AsJson = False) -> None:
    """Show versions, machine, cache, optional parts."""
    from graftlm.cli.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print(dump_json(facts, indent=2))
    else:
        print_table(environment_table(facts))


def check_draft(draft: str | None, expert: str | None) -> None:
    if draft is not None and expert is not None:
        raise InputError("--draft and --expert exclude each other: the heads know the model without its expert")


def drafted(model: Any, folder: str) -> Any:
    """The model with the heads in `folder`, which write what it writes."""
    from graftlm.decoding.heads_decoding import HeadsDecoding
    from graftlm.proxy.model import ProxyTunedModel

    if isinstance(model, ProxyTunedModel):
        raise InputError("--draft: heads know one model, and this is a base model with its expert")
    return HeadsDecoding.load(model, folder)


def compared(drafted: Written, plain: Written) -> str:
    """How the same prompt went with drafts and without."""
    output, tokens = drafted.output, len(drafted.ids)
    kept = f"{output.accepted} of {output.drafted} drafted tokens kept" if output.drafted else "nothing drafted"
    speeds = [len(each.ids) / each.seconds for each in (drafted, plain)]
    same = ", the same tokens" if drafted.ids == plain.ids else ""
    return (
        f"{tokens} tokens in {output.rounds + 1} passes ({kept}): {speeds[0]:.1f} tokens/s, {speeds[0] / speeds[1]:.2f}"
        f" times the {speeds[1]:.1f} without drafts{same}"
    )


def read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file {file} cannot be read as text: {error}") from error
    return [line for line in lines if line.strip()]
