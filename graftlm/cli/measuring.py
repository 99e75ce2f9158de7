"""Verbs that measure, and the repair that an audit points at: evaluate, audit, restore."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from graftlm.cli.verb import verb
from graftlm.errors import InputError
from graftlm.runs.console import Report, print_findings, print_table, say
from graftlm.runs.files import dump_json
from graftlm.runs.run import Run

if TYPE_CHECKING:
    from graftlm.auditing.config import AuditConfig
    from graftlm.models.restore_config import RestoreConfig
    from graftlm.tasks.config import EvaluateConfig


def evaluate_steered(config: EvaluateConfig, run: Run, progress: Report) -> Any:
    from graftlm.proxy.steering import is_composition, load_steered
    from graftlm.tasks.evaluation import run_evaluate

    plain = [name for name in config.models if not is_composition(name)]
    if config.alpha is not None and config.expert is None and plain:
        raise InputError(f"--alpha is given without --expert, and {plain[0]} is no saved composition")
    return run_evaluate(config, run, load=lambda name: load_steered(name, config), progress=progress)


@verb("graftlm.tasks.config:EvaluateConfig", evaluate_steered)
def evaluate(config: EvaluateConfig, results: Any, *, as_json: bool) -> None:
    """Measure models on tasks, in one table.

    The column `floor` is what a trivial answer reaches. With --expert, the expert steers each model.
    """
    if as_json:
        from graftlm.tasks.evaluation import results_document

        print(dump_json(results_document(results, config), indent=2))
    else:
        from graftlm.tasks.evaluation import evaluation_table

        print_table(evaluation_table(results))


@verb("graftlm.auditing.config:AuditConfig", "graftlm.auditing.audit:run")
def audit(config: AuditConfig, result: Any, *, as_json: bool) -> None:
    """Compare tuned models with the model they were tuned from.

    Shows what was gained, what was forgotten and in which layers, as a table and an HTML page. With --expert, the base
    model steered by the expert is compared as well.
    """
    from graftlm.auditing.condition import failures, parse_condition
    from graftlm.auditing.summary import audit_table
    from graftlm.auditing.verdict import audit_verdict

    if as_json:
        print(dump_json(asdict(result), indent=2))
    else:
        print_findings(audit_table(result), audit_verdict(result))
    say(f"report: {config.output}/report.html")
    if failed := failures([parse_condition(text) for text in config.fail_if], result):
        for line in failed:
            say(f"graftlm: failed: {line}")
        raise typer.Exit(1)


@verb("graftlm.models.restore_config:RestoreConfig", "graftlm.models.restore:run")
def restore(config: RestoreConfig, changed: int) -> None:
    """Undo part of a tuning in some layers.

    Saves an ordinary model. `graftlm audit` shows in which layers it helps.
    """
    say(f"{changed} weights scaled; model: {config.output}")
