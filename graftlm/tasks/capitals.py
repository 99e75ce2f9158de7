"""capitals: a probe of general knowledge that tuning on another domain should leave alone (see data/README.md)."""

from __future__ import annotations

from typing import ClassVar

from graftlm.tasks.facts import FactProbe


class Capitals(FactProbe):
    """Country -> capital."""

    name: ClassVar[str] = "capitals"
    description: ClassVar[str] = "knowledge probe: capitals of the countries of more than 3 million people"
    template: ClassVar[str] = "The capital of {} is"
