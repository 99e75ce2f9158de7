"""Arms: ways to make a model, as data.

    anchored:  {from: next-token-lora, tune: {anchor: kl, anchor_weight: 1.0}}
    restored:  {from: next-token-lora, after: {restore: {layers: 0-14}}, strengths: {scale: [0, 0.5, 1]}}

A block names a verb with its settings; `from` is another arm, whose block this one changes; `after` repairs what the
verb has made; `strengths` are the values of one setting, for each of which the arm is made once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, replace
from typing import Any
from urllib.parse import quote

from graftlm.decoding.config import Steering
from graftlm.errors import InputError
from graftlm.models.restore_config import RestoreConfig
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.config import REQUIRED, coerce, current_names, describe, describe_unknown, option, typed_fields
from graftlm.tuning.config import TuneConfig

KEYS = ("from", "after", "strengths")
UNTRAINED = "untrained"
RESERVED = (UNTRAINED, "heads", "model")
"""Names of other folders of an experiment."""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel(Steering):
    """A model that is measured as it is, or steered by an expert."""

    model: str = option(REQUIRED, "Model to measure: hub id, folder, adapter.")


VERBS: dict[str, type] = {"tune": TuneConfig, "reinforce": ReinforceConfig, "evaluate": MeasuredModel}
OWNED = ("output", "seed", "tuned", "base")
"""Settings that the experiment gives each verb itself."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A verb with its settings. `restore`: settings of the repair after it, {} for none. `strengths`: {} or
    {setting: values}. `parent`: the arm that this one is `from`; `root`: the first of that line."""

    name: str
    verb: str
    settings: Mapping[str, Any]
    restore: Mapping[str, Any] = field(default_factory=dict)
    strengths: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    parent: str | None = None
    root: str = ""

    def points(self, seed: int) -> list[Point]:
        """The arm with this seed, once for each of its strengths."""
        every = [{name: value} for name, values in self.strengths.items() for value in values] or [{}]
        return [Point(arm=self, strength=strength, seed=seed) for strength in every]


@dataclass(frozen=True, kw_only=True)
class Point:
    """An arm at one strength with one seed: what is made and measured."""

    arm: Arm
    strength: Mapping[str, Any]
    seed: int

    @property
    def label(self) -> str:
        return label(self.arm.name, self.strength)

    @property
    def folder(self) -> str:
        """Its place in the experiment's folder."""
        parts = [
            self.arm.name,
            *(f"{name}-{short(value)}" for name, value in self.strength.items()),
            f"seed-{self.seed}",
        ]
        return "/".join(quote(part, safe=" ,=") for part in parts)

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.arm.settings, **({} if self._repairs else self.strength)}

    @property
    def restore(self) -> dict[str, Any]:
        return {**self.arm.restore, **(self.strength if self._repairs else {})}

    @property
    def _repairs(self) -> bool:
        return bool(self.arm.restore) and self.strength.keys() <= settings_of(RestoreConfig).keys()

    def check(self) -> None:
        """Raise InputError, which names the arm, for settings that its verb refuses."""
        try:
            VERBS[self.arm.verb](**self.settings)
            if self.arm.restore:
                RestoreConfig(tuned="", output="", **self.restore)
        except InputError as error:
            raise InputError(f"arm {self.label}: {error}") from error


def label(arm: str, strength: Mapping[str, Any]) -> str:
    """ "restored, scale 0.5" """
    return ", ".join([arm, *(f"{name} {short(value)}" for name, value in strength.items())])


def short(value: Any) -> str:
    """A value as labels and folders show it: 1 for 1.0."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def read_arm(name: str, blocks: Mapping[str, Any], children: tuple[str, ...] = ()) -> Arm:
    """The arm `name` of `blocks` (name -> block), with what it has from others.

    Raises InputError, which names the arm and the nearest of what there is, for anything unknown in its block.
    """
    culprit = f"arm {name}"
    if name in children:
        raise InputError(f"{culprit} is from itself: {' from '.join([*children, name])}")
    if name in RESERVED or name.startswith("."):
        raise InputError(f"{culprit} cannot have this name; give it another")
    block = mapping(blocks[name], culprit, (*KEYS, *VERBS))
    parent = None
    if (above := block.get("from")) is not None:
        if above not in blocks:
            raise InputError(f"{culprit} is from an unknown arm {describe_unknown(str(above), blocks)}")
        parent = read_arm(above, blocks, (*children, name))
    [verb, *others] = [verb for verb in VERBS if verb in block] or [parent.verb if parent else ""]
    if not verb or others or (parent and parent.verb != verb):
        wanted = f"the verb {parent.verb}" if parent else f"one verb of {', '.join(VERBS)}, or `from` another arm"
        raise InputError(f"{culprit} needs {wanted}")
    arm = parent or Arm(name=name, verb=verb, settings={})
    after = mapping(block.get("after"), f"{culprit}: after", ["restore"])
    arm = replace(
        arm,
        name=name,
        settings={**arm.settings, **typed(block.get(verb), f"{culprit}: {verb}", VERBS[verb])},
        restore={**arm.restore, **typed(after.get("restore"), f"{culprit}: restore", RestoreConfig)},
        parent=parent.name if parent else None,
        root=parent.root if parent else name,
    )
    return replace(arm, strengths=strengths_of(arm, block["strengths"], culprit)) if "strengths" in block else arm


def strengths_of(arm: Arm, block: Any, culprit: str) -> dict[str, Sequence[Any]]:
    """{setting: values}, of one setting of the arm's verb or repair."""
    known = settings_of(VERBS[arm.verb]) | (settings_of(RestoreConfig) if arm.restore else {})
    given = current_names(mapping(block, f"{culprit}: strengths"), known, f"{culprit}: strengths: unknown setting")
    if len(given) != 1:
        raise InputError(f"{culprit}: strengths needs one setting and its values, such as {{learning_rate: [1e-4]}}")
    [(name, values)] = given.items()
    if not isinstance(values, list) or not values:
        raise InputError(f"{culprit}: {name} is {describe(values)}, but a list of values is expected")
    values = [coerce(value, known[name][1], f"{culprit}: {name}") for value in values]
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{culprit}: {name} {value} is given twice; give each one once")
    return {name: values}


def typed(block: Any, culprit: str, config: type) -> dict[str, Any]:
    """The settings of `config` that a block gives, under their names of today."""
    known = settings_of(config)
    given = current_names(mapping(block, culprit), known, f"{culprit}: unknown setting")
    return {name: coerce(value, known[name][1], f"{culprit}: {name}") for name, value in given.items()}


def settings_of(config: type) -> dict[str, tuple[Field[Any], Any]]:
    """Name -> field and type, of the settings that an arm may give."""
    return {field.name: (field, kind) for field, kind in typed_fields(config) if field.name not in OWNED}


def mapping(value: Any, culprit: str, known: Collection[str] | None = None) -> dict[str, Any]:
    """`value` as a mapping, {} for null; InputError for anything else, and for keys that are not `known`."""
    if not isinstance(value, Mapping | None):
        raise InputError(f"{culprit} is {describe(value)}, but a mapping such as {{key: value}} is expected")
    for key in value or {}:
        if known is not None and key not in known:
            raise InputError(f"{culprit}: unknown setting {describe_unknown(str(key), known)}")
    return dict(value or {})
