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
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key given twice and half a character."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)

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
    return yaml.load(text, Loader)


def dump_yaml(value: Any) -> str:
    """`value` (plain mappings, lists, numbers, words) as YAML, keys in their order."""
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))
