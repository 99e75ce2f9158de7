"""Verbs of proxy-tuning: sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftlm.cli.training import show_results
from graftlm.cli.verb import verb

if TYPE_CHECKING:
    from graftlm.experiments.config import SweepConfig


@verb("graftlm.experiments.config:SweepConfig", "graftlm.experiments.sweep:sweep", name="proxy sweep")
def sweep(config: SweepConfig, result: Any, *, as_json: bool) -> None:
    """Measure a model steered at several strengths (proxy-tuning).

    Shows the gain on the task against what is left of the base model's knowledge, beside the expert alone and models
    tuned directly, as a table and an HTML page with the frontier.
    """
    show_results(config.output, result, as_json=as_json)
