"""The command line: parse, call one function of a part, print. Nothing heavy is imported before a verb runs.

Exit status: 0 done, 1 a failure at run time, 2 the input is at fault, 130 interrupted. Results go to stdout,
everything else to stderr.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graftlm import __version__
from graftlm.console import environment_table, evaluation_table, prefixed, print_table, reported_progress, say
from graftlm.errors import InputError
from graftlm.files import dump_json, write_text
from graftlm.flags import config_command
from graftlm.multitoken.config import DistillConfig, TuneConfig
from graftlm.runs import Run, check_folder
from graftlm.serve.settings import ServeSettings
from graftlm.study.config import StudyConfig, split_names
from graftlm.yaml_text import dump_yaml


class VerbGroup(TyperGroup):
    """Says that a verb was interrupted, and how to go on where it knows; the status is 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            say(f"graftlm: interrupted; {interrupt}" if str(interrupt) else "graftlm: interrupted")
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Expert = Annotated[str | None, typer.Option(help="Small tuned model or adapter that steers the model (proxy-tuning).")]
Antiexpert = Annotated[
    str | None, typer.Option(help="That small model untuned. [default: the base model of an expert that is an adapter]")
]
Alpha = Annotated[float, typer.Option(help="How strongly it steers: 0 not at all, 1 as in the paper.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; an error is one line, or a traceback too with --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    given = sorted(given, key=lambda argument: argument != "--debug")
    try:
        app(args=given, prog_name="graftlm")
    except Exception as error:
        if "--debug" in given:
            traceback.print_exception(error)
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


@app.command()
@config_command(DistillConfig, "distill")
def distill(
    config: DistillConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Grow heads on a model by self-distillation.

    The model writes text; the heads learn what it says further on.
    """
    if dry_run:
        check_folder(Path(config.output), "distill", config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
        return
    from graftlm.multitoken.distill import distill as distill_heads

    with (
        opened_run(config, "distill", sources, resume=resume, overwrite=overwrite) as run,
        reported_progress() as progress,
    ):
        distill_heads(config, run, progress)


@app.command()
@config_command(TuneConfig, "tune")
def tune(
    config: TuneConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model, multi-token or next-token."""
    if dry_run:
        check_folder(Path(config.output), "tune", config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
    from graftlm.multitoken.tune import tune as tune_model

    if dry_run:
        with (
            tempfile.TemporaryDirectory() as scratch,
            Run.create(Path(scratch) / "run", "tune", config, sources) as run,
        ):
            tune_model(config, run, dry_run=True)
        return
    with opened_run(config, "tune", sources, resume=resume, overwrite=overwrite) as run:
        tune_model(config, run)


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Hub ids, folders, adapters.")],
    task: Annotated[list[str] | None, typer.Option(help="Built-in task; repeatable. [default: all]")] = None,
    limit: Annotated[int | None, typer.Option(help="Test examples of each task. [default: all]")] = None,
    shots: Annotated[int, typer.Option(help="Solved examples before each prompt.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of what a task draws.")] = 0,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = 1.0,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="File for the same as JSON, with every example's output.")] = None,
) -> None:
    """Measure models on tasks, in one table.

    Beside the models stands the floor: what a trivial answer reaches. With --expert, each model is measured steered.
    """
    if len(set(models)) < len(models):
        raise InputError("a model is given twice; give each one once")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"--output {output} cannot be a file; give a file name in a folder that exists")
    from graftlm.tasks import TASKS, get_task

    tasks = [get_task(name) for name in task or TASKS]
    from graftlm.evaluation import evaluate as evaluate_model
    from graftlm.proxy.model import steered

    settings: dict[str, Any] = {"limit": limit, "shots": shots, "batch_size": batch_size, "seed": seed}
    if expert is not None:
        settings |= {"expert": expert, "antiexpert": antiexpert, "alpha": alpha}
    results = {}
    for name in models:
        model, tokenizer = steered(name, expert, antiexpert, alpha)
        with reported_progress() as progress:
            results[name] = evaluate_model(
                model,
                tokenizer,
                tasks,
                limit=limit,
                shots=shots,
                batch_size=batch_size,
                seed=seed,
                progress=prefixed(progress, name),
            )
        del model
    if output is not None:
        write_text(output, dump_json(results_document(results, settings, examples=True), indent=2) + "\n")
    if as_json:
        print(dump_json(results_document(results, settings), indent=2))
    else:
        print_table(evaluation_table(results))


@app.command()
def audit(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the others were tuned from.")],
    tuned: Annotated[list[str] | None, typer.Argument(metavar="[TUNED]...", help="Folders, adapters, hub ids.")] = None,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = 1.0,
    task: Annotated[list[str] | None, typer.Option(help="What they were tuned for; repeatable.")] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="What they should still know: a built-in task, a file of prompts, or lm-eval:NAME; repeatable. "
            "[default: capitals, elements, glosses, general-text, code]"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Test examples of each.", min=2)] = 100,
    layer_groups: Annotated[int, typer.Option(help="Groups of layers, each restored by itself.", min=1)] = 6,
    output_format: Annotated[
        list[str] | None,
        typer.Option("--format", help="Output format to count, as NAME=REGEX; repeatable.", metavar="NAME=REGEX"),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 if this holds, such as 'retention<0.9'; repeatable.", metavar="CONDITION"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for audit.json and report.html.")] = Path("audit"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Hold tuned models against their base model.

    What was gained, what was forgotten, and in which layers: a table, and one HTML page. With --expert, the base model
    steered by it is one of the models.
    """
    check_audit_folder(output, overwrite)
    formats = dict(parse_format(text) for text in output_format) if output_format else None
    from graftlm.auditing.audit import DEFAULT_PROBES
    from graftlm.auditing.audit import audit as audit_models
    from graftlm.auditing.condition import check_conditions, failures, parse_condition
    from graftlm.proxy.model import steering
    from graftlm.tasks import get_task

    probes = [get_task(name) for name in probe or DEFAULT_PROBES if name not in (task or [])]
    tasks = [get_task(name) for name in task or []]
    conditions = [parse_condition(text) for text in fail_if or []]
    check_conditions(conditions, [each.name for each in tasks], [each.name for each in probes])
    with reported_progress() as progress:
        result = audit_models(
            base,
            tuned or [],
            steered=steering(base, expert, antiexpert, alpha),
            tasks=tasks,
            probes=probes,
            limit=limit,
            layer_groups=layer_groups,
            formats=formats,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    from graftlm.auditing.summary import audit_table
    from graftlm.report import audit_verdict, write_audit_report

    document = dump_json(asdict(result), indent=2)
    write_text(output / "audit.json", document + "\n")
    write_audit_report(output / "report.html", result, title=f"Audit of models tuned from {base}")
    if as_json:
        print(document)
    else:
        print_table(audit_table(result))
        print()
        for line in audit_verdict(result):
            print(line)
    say(f"report: {output / 'report.html'}")
    if failed := failures(conditions, result):
        for line in failed:
            say(f"graftlm: failed: {line}")
        raise typer.Exit(1)


@app.command()
def restore(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Hub id, folder or adapter folder.")],
    layers: Annotated[str, typer.Option(help="Layers, such as 0-14 or 0-4,9.")],
    output: Annotated[Path, typer.Option(help="Folder for the model.")],
    scale: Annotated[float, typer.Option(help="Share of the tuning's change that is left there.")] = 0.0,
    base: Annotated[
        str | None, typer.Option(help="The model that a whole TUNED was tuned from; an adapter knows its own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
) -> None:
    """Undo part of a tuning in some layers.

    Saves an ordinary model. Which layers are worth it, `graftlm audit` shows.
    """
    from graftlm.auditing.restore import restore as restore_layers

    changed = restore_layers(tuned, output, layers=layers, scale=scale, base=base, overwrite=overwrite)
    say(f"{changed} weights scaled; model: {output}")


@app.command()
@config_command(StudyConfig, "study")
def study(
    config: StudyConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train the ladder of objectives, and show which ingredient matters.

    Each arm with the same rows and seeds; a study that was stopped goes on with --resume.
    """
    if dry_run:
        check_folder(Path(config.output), "study", config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
        return
    from graftlm.provenance import versions
    from graftlm.report import write_study_report
    from graftlm.study.rows import study_table, study_verdict
    from graftlm.study.study import study as train_ladder

    with (
        opened_run(config, "study", sources, resume=resume, overwrite=overwrite) as run,
        reported_progress() as progress,
    ):
        measured = train_ladder(config, run.folder, progress)
        document = [asdict(each) for each in measured]
        run.write_json("results.json", document)
        write_study_report(
            run.folder / "report.html",
            measured,
            title=f"Which ingredient of multi-token fine-tuning matters? {config.model} on {config.data}",
            tasks=split_names(config.tasks),
            probes=split_names(config.probes),
            facts={"settings": asdict(config), "versions": versions()},
        )
    if as_json:
        print(dump_json(document, indent=2))
        return
    print_table(study_table(measured))
    print()
    for line in study_verdict(measured):
        print(line)
    say(f"report: {run.folder / 'report.html'}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Hub id, folder or adapter folder.")] = "smollm2-135m",
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue or answer; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file with one prompt a line.", metavar="FILE")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. [default: if there is one]"),
    ] = None,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = 1.0,
) -> None:
    """Continue or answer prompts.

    The text goes to stdout as it is written.
    """
    prompts = [*(prompt or []), *(read_prompts(file) if file is not None else [])]
    if not prompts:
        raise InputError("there is no prompt; give --prompt TEXT or --file FILE")
    from transformers import set_seed

    from graftlm.generation import stream_completion
    from graftlm.proxy.model import steered

    loaded, tokenizer = steered(model, expert, antiexpert, alpha)
    set_seed(seed)
    for number, text in enumerate(prompts, start=1):
        if len(prompts) > 1:
            say(f"[{number}/{len(prompts)}] {text}")
        stream_completion(
            loaded,
            tokenizer,
            text,
            lambda piece: print(piece, end="", flush=True),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            chat=chat,
        )
        print()


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
    request_seconds: Annotated[float, typer.Option(help="Time for a request.")] = ServeSettings.request_seconds,
    grace_seconds: Annotated[
        float, typer.Option(help="Time for what runs when the server is told to stop.")
    ] = ServeSettings.grace_seconds,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = 1.0,
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
        request_seconds=request_seconds,
        grace_seconds=grace_seconds,
    )
    try:
        from graftlm.serve.server import serve as serve_model
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'graftlm[serve]'") from error
    from graftlm.proxy.model import steered

    serve_model(lambda: steered(model, expert, antiexpert, alpha), model, settings)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Show versions, machine, cache, optional parts."""
    from graftlm.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print(dump_json(facts, indent=2))
    else:
        print_table(environment_table(facts))


@contextmanager
def opened_run(
    config: DistillConfig | TuneConfig | StudyConfig,
    command: str,
    sources: Mapping[str, str],
    *,
    resume: bool,
    overwrite: bool,
) -> Iterator[Run]:
    """The run of a verb while it is open; an interrupt says how to continue it."""
    with Run.create(config.output, command, config, sources, resume, overwrite) as run:
        if resume and not run.resumed:
            say(f"graftlm: {run.folder} holds no run to resume; starting one")
        try:
            yield run
        except KeyboardInterrupt as interrupt:
            if str(interrupt):
                raise
            raise KeyboardInterrupt(f"continue with: {run.resume_command}") from interrupt


def print_config(config: Any, sources: Mapping[str, str]) -> None:
    """The resolved config as YAML that can be used again, the source of each value beside it."""
    for name, value in asdict(config).items():
        print(f"{dump_yaml({name: value}).rstrip()}  # {sources[name]}")


def check_audit_folder(folder: Path, overwrite: bool) -> None:
    """Before the long work: InputError if the folder holds an audit, or cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    if (folder / "audit.json").exists() and not overwrite:
        raise InputError(f"output folder {folder} holds an audit; give another --output, or --overwrite")


def parse_format(text: str) -> tuple[str, str]:
    """'json=^\\s*\\{' -> ('json', '^\\s*\\{')"""
    name, separator, pattern = text.partition("=")
    if not separator or not name or not pattern:
        raise InputError(f"--format is {text!r}, but NAME=REGEX is expected")
    return name, pattern


def read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file {file} cannot be read as text: {error}") from error
    return [line for line in lines if line.strip()]


def results_document(
    results: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], *, examples: bool = False
) -> dict[str, Any]:
    """{"settings": ..., "results": {model: {task: {metrics, floors, count, seconds}}}}, for JSON."""
    left_out = {"task"} if examples else {"task", "examples"}
    shown = {
        model: {
            task: {key: value for key, value in asdict(result).items() if key not in left_out}
            for task, result in tasks.items()
        }
        for model, tasks in results.items()
    }
    return {"settings": dict(settings), "results": shown}
