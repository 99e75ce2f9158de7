"""The run: what ran, with what, and what came out, to be repeated and resumed.

    run.yaml        command, resolved config with each value's source, versions, git commit, facts
    metrics.jsonl   one JSON object a line, as logged

They lie in the output folder; of a run that makes one file, NAME.run.yaml lies beside it (graftlm/runs/output.py).
Under torchrun only rank 0 checks, locks and writes; on the other ranks the writing methods do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from graftlm.errors import InputError
from graftlm.runs.config import load_config
from graftlm.runs.files import append_line, drop_partial_line, dump_json, plain, read_json_lines, write_text
from graftlm.runs.output import Output, read_document
from graftlm.runs.provenance import command_line, git_commit, now, versions
from graftlm.runs.yaml_text import dump_yaml

METRICS_FILE = "metrics.jsonl"
SUMMARY = "train_loss"
"""In the line that transformers logs when a training ends."""
Result = TypeVar("Result")


class Run:
    """An open run; made by `Run.create`, best used in a `with` statement.

    Left by InputError before anything was logged or kept, it undoes itself: what --overwrite replaced is back.

    Attributes:
        folder: the folder that it writes to.
        file: the name of the file that it makes there; None where it fills the folder.
        is_main: whether this process writes; False on every rank but the first, and for a run without an output.
        resumed: whether an earlier run is continued here.
    """

    def __init__(self, output: Output | None, document: dict[str, Any], *, is_main: bool, resumed: bool) -> None:
        self.folder = Path() if output is None else output.folder
        self.file = output.path.name if output is not None and output.is_file else None
        self.is_main = is_main
        self.resumed = resumed
        self._output = output
        self._document = document
        self._kept = False

    @classmethod
    def create(
        cls,
        output: str | Path | None,
        command: str,
        config: Any,
        sources: Mapping[str, str],
        resume: bool = False,
        overwrite: bool = False,
    ) -> Run:
        """Open `output` for `command` with the dataclass `config` and write run.yaml; None: a run that leaves nothing.

        Raises:
            InputError: `output` holds a run and neither `resume` nor `overwrite` is given, it holds other things, is in
                use by another process, or (`resume`) holds a run of another command or config.
        """
        document = new_document(command, config, sources)
        if output is None:
            return cls(None, document, is_main=False, resumed=False)
        place = Output(output, config)
        if not is_main_process():
            return cls(place, document, is_main=False, resumed=resume)
        place.check_kind()
        place.acquire()
        try:
            place.put_back()
            place.check(command, config, resume=resume, overwrite=overwrite)
            resumed = resume and place.document.is_file()
            if resumed:
                document = read_document(place.document)
                again = {"at": now(), "command_line": command_line(), "versions": versions()}
                document["resumed"] = [*document.get("resumed", []), again]
                document.pop("finished", None)
                drop_partial_line(place.folder / METRICS_FILE)
            elif overwrite:
                place.set_aside()
            run = cls(place, document, is_main=True, resumed=resumed)
            run._write_document()
        except BaseException:
            place.release()
            raise
        return run

    @property
    def resume_command(self) -> str | None:
        """The command that continues this run; None where there is nothing to continue."""
        if self._output is None or not self._output.resumable or not self._output.document.is_file():
            return None
        return f"graftlm {self._document['command']} --config {self._output.document} --resume"

    def record(self, **facts: Any) -> None:
        """Add facts found while running (data fingerprint, number of parameters...) to run.yaml."""
        self._document["facts"] = {**self._document.get("facts", {}), **plain(facts)}
        self._write_document()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite is written as null."""
        if not self.is_main:
            return
        self.keep()
        append_line(self.folder / METRICS_FILE, dump_json(metrics))

    def keep(self) -> None:
        """From here on there is something that took work: no error undoes this run any more."""
        if self.is_main and not self._kept:
            assert self._output is not None
            self._output.remove_previous()
            self._kept = True
            self._write_document()

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines; one that a kill cut short is left out."""
        return read_json_lines(self.folder / METRICS_FILE)

    def rewind(self, step: int) -> None:
        """Drop what a run that resumes from its checkpoint logs again: the lines past `step`, and the summary of a
        training that was interrupted there."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step and SUMMARY not in line]
        self.write_text(METRICS_FILE, "".join(f"{dump_json(line)}\n" for line in kept))

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON to `name` in the folder, in one step."""
        self.write_text(name, dump_json(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write `text` to `name` in the folder, in one step; OSError where the disk is full."""
        if self.is_main:
            write_text(self.folder / name, text)

    def finish(self) -> None:
        """Mark the run as finished and close it."""
        if self.is_main:
            self.keep()
            self._document["finished"] = now()
            self._write_document()
        self.close()

    def close(self) -> None:
        """Let another process use the output; closing twice does no harm."""
        if self.is_main and self._output is not None:
            self._output.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        if isinstance(error, InputError) and self.is_main and not self.resumed and not self._kept:
            assert self._output is not None
            self._output.undo()
        self.close()

    def _write_document(self) -> None:
        """Write run.yaml; beside a file not before something was kept, so that a refused run leaves nothing."""
        if self.is_main and self._output is not None and (not self._output.is_file or self._kept or self.resumed):
            write_text(self._output.document, dump_yaml(self._document))


def call_verb(
    command: str,
    config_class: type,
    run: Callable[..., Result],
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    **given: Any,
) -> Result:
    """Run a command from Python: make its config of `settings`, open its run, and call `run(config, run, **given)`.

    Raises InputError as the command does.
    """
    config: Any
    config, sources = load_config(config_class, None, settings, source="argument")
    output = getattr(config, "output", None)
    with Run.create(output, command, config, sources, resume, overwrite) as opened:
        return run(config, opened, **given)


def new_document(command: str, config: Any, sources: Mapping[str, str]) -> dict[str, Any]:
    """The first content of run.yaml."""
    return {
        "command": command,
        "command_line": command_line(),
        "started": now(),
        "seed": getattr(config, "seed", None),
        "config": plain(asdict(config)),
        "sources": dict(sources),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def is_main_process() -> bool:
    """True but for the further processes that torchrun or accelerate start."""
    return os.environ.get("RANK", "0") == "0"
