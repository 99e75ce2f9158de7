"""The command line: parse, call one function of a part, print. Nothing heavy is imported before a verb runs.

Exit status: 0 done, 1 a failure at run time, 2 the input is at fault, 130 interrupted. Results go to stdout,
everything else to stderr.
"""

from __future__ import annotations

from graftlm.cli import training, pruning, measuring, proxy, using  # isort: skip  # the order of the verbs in --help
from graftlm.cli.app import app, main

__all__ = ["app", "main", "measuring", "proxy", "pruning", "training", "using"]
