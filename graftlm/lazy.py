"""Names of a package that are imported when first used (PEP 562), so that importing it costs nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: each name is looked up in the module that `modules` gives it; "module:other" is
    the attribute `other` there, and "module:" the module itself."""

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module_name, colon, attribute = modules[name].partition(":")
        value: Any = import_module(module_name)
        if attribute or not colon:
            value = getattr(value, attribute or name)
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


def callable_package(package: str, function: str) -> None:
    """Let `package(...)` call a function ("module:function"), for a command that has the name of its package."""

    class CallablePackage(ModuleType):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            module, _, name = function.partition(":")
            return getattr(import_module(module), name)(*arguments, **named)

    sys.modules[package].__class__ = CallablePackage
