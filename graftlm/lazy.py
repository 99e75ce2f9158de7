"""Names of a package that are imported when first used (PEP 562), so that importing it costs nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: each name is looked up in the module that `modules` gives it."""

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def moved_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """As `lazy_attributes`, for names that have moved: each use gives a DeprecationWarning with the new place."""

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        message = f"{package}.{name} is now {modules[name]}.{name}; the old name goes in the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(modules[name]), name)

    return load
