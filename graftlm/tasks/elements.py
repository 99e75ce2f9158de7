"""elements: a probe of knowledge next to a chemical domain (see data/README.md)."""

from __future__ import annotations

from typing import ClassVar

from graftlm.tasks.facts import FactProbe


class Elements(FactProbe):
    """Symbol -> name; the actinides and those after them serve as few-shot examples."""

    name: ClassVar[str] = "elements"
    description: ClassVar[str] = "knowledge probe: the chemical element that a symbol stands for"
    template: ClassVar[str] = "The chemical element with the symbol {} is"
