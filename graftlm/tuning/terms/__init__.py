"""The terms of the loss, one a file (graftlm/tuning/terms/base.py says what a term is)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from graftlm.errors import InputError
from graftlm.runs.config import describe_unknown

if TYPE_CHECKING:
    from graftlm.tuning.terms.base import Term
    from graftlm.tuning.terms.settings import TermSettings

TERMS = {
    "multi_token": "MultiToken",
    "kl_anchor": "KLAnchor",
    "l2_to_base": "L2ToBase",
}
"""Name of a term, which is its file's too -> its class. (The next-token loss is always there.)"""


def term_class(name: str) -> type[Term]:
    """The class of a term. Raises InputError for a name that there is not."""
    if name not in TERMS:
        raise InputError(f"unknown term {describe_unknown(name, TERMS)}")
    found: type[Term] = getattr(import_module(f"{__name__}.{name}"), TERMS[name])
    return found


def make_terms(settings: Mapping[str, TermSettings]) -> list[Term]:
    """The terms of these names with these settings."""
    return [term_class(name)(each) for name, each in settings.items()]
