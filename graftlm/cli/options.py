"""Options and checks that several verbs share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from graftlm.errors import InputError
from graftlm.runs.files import claimed
from graftlm.runs.ranges import LARGEST_SEED, Range


def number_option(help: str, **bounds: float) -> Any:
    """A flag of a number that lies within the bounds of a Range, which --help shows."""
    allowed = Range(**bounds)

    def checked(parameter: typer.CallbackParam, value: Any) -> Any:
        allowed.check(parameter.opts[0], value)
        return value

    return typer.Option(help=f"{help} [{allowed.rule}]", callback=checked)


def seed_option(help: str) -> Any:
    return number_option(help, at_least=0, at_most=LARGEST_SEED)


Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Expert = Annotated[str | None, typer.Option(help="Small tuned model or adapter that steers the model (proxy-tuning).")]
Antiexpert = Annotated[
    str | None, typer.Option(help="That small model untuned. [default: the base model of an expert that is an adapter]")
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="How strongly it steers: 0 not at all, 1 as in the paper. [default: 1, or as it was saved]",
        show_default=False,
    ),
]
Probe = Annotated[
    list[str] | None,
    typer.Option(
        help="What they should still know: a built-in task, a file of prompts, or lm-eval:NAME; repeatable. "
        "[default: capitals, elements, glosses, general-text, code]"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def opened_folder(folder: Path, document: str, *, overwrite: bool) -> Iterator[None]:
    """While `document` is made that goes into `folder`; before the long work InputError if it is there already, if the
    folder cannot be written, or if another process makes it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    if (folder / document).exists() and not overwrite:
        raise InputError(f"output folder {folder} holds {document}; give another --output, or --overwrite")
    with claimed(folder, lock=folder / f".{document}.lock"):
        yield


def parse_numbers(flag: str, text: str) -> list[float]:
    """ "0, 0.5" -> [0.0, 0.5]; InputError that names what is no number."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError as error:
            raise InputError(f"{flag} holds {part.strip()!r}, but numbers with commas are expected") from error
    return found
