"""YAML as graftlm reads and writes it: `yaml.safe_load` without its traps.

PyYAML takes 1e-3 for a word, because YAML 1.1 wants a dot in a number, and says nothing of a key given twice; of a
character that JSON writes as two halves it makes two.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from graftlm.errors import HALF

YAMLError = yaml.YAMLError
MOST_VALUES = 1_000_000
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses half a character and a key given twice, if not by <<."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # of each node with all that its aliases stand for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is not None and id(node) not in self._sizes:
            inner = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
            size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
            if size > MOST_VALUES:
                raise yaml.composer.ComposerError(None, None, "its aliases make it too large", node.start_mark)
            self._sizes[id(node)] = size
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:  # before << is replaced by what it merges
            merges = key.tag == "tag:yaml.org,2002:merge"
            name = self.construct_object(key) if isinstance(key, yaml.ScalarNode) and not merges else key.value
            if isinstance(name, Hashable) and name in seen:
                problem = f"key {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            if isinstance(name, Hashable):
                seen.add(name)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        return super().construct_mapping(node, deep=True)  # which refuses a mapping that holds itself

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if not isinstance(value, str) or not HALF.search(value):
            return value
        try:  # JSON writes one character as two halves
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            problem = f"{value!r} has half a character (a lone surrogate)"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the word '1e-3', so that Loader reads a word back."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Python value of one YAML document; raises YAMLError."""
    try:
        return yaml.load(text, Loader)
    except YAMLError:
        raise
    except Exception as error:  # of PyYAML's constructors: a date, a number or a word that does not fit its tag
        raise YAMLError(f"a value cannot be read ({type(error).__name__}: {error})") from error


def dump_yaml(value: Any) -> str:
    """`value` (plain mappings, lists, numbers, words) as YAML, keys in their order."""
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))
