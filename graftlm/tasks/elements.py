"""elements: a probe of knowledge next to a chemical domain (see data/README.md)."""

from __future__ import annotations

from typing import ClassVar

from graftlm.tasks.facts import FactProbe


class Elements(FactProbe):
    """Chemical element -> symbol; the transactinides serve as few-shot examples."""

    name: ClassVar[str] = "elements"
    description: ClassVar[str] = "knowledge probe: symbols of the chemical elements up to lawrencium"
    template: ClassVar[str] = "The chemical symbol of {} is"
    keep_case: ClassVar[bool] = True  # "as", "in", "no", "at" and "he" are words, not arsenic, indium, ...
