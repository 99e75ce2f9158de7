"""glosses: a probe of vocabulary, from WordNet (see data/README.md)."""

from __future__ import annotations

from typing import ClassVar

from graftlm.tasks.facts import FactProbe


class Glosses(FactProbe):
    """Dictionary definition -> noun."""

    name: ClassVar[str] = "glosses"
    description: ClassVar[str] = "knowledge probe: the noun that a dictionary defines so"
    template: ClassVar[str] = "There is a word for {}: the word"
