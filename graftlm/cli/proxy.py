"""Verbs of proxy-tuning: sweep."""

from __future__ import annotations

from typing import Any

from graftlm.cli.training import show_results
from graftlm.cli.verb import verb
from graftlm.experiments.config import SweepConfig


@verb(SweepConfig, "graftlm.experiments.sweep:sweep", name="proxy sweep")
def sweep(config: SweepConfig, result: Any, *, as_json: bool) -> None:
    """Measure a model steered at several strengths (proxy-tuning).

    Gain on the task against what is left of what the base model knew, beside the expert alone and models tuned
    directly: a table, and one HTML page with the frontier.
    """
    show_results(config.output, result, as_json=as_json)
