"""The rooms of graftlm and the arrows between them: each may import itself and those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "graftlm"
ROOMS = [
    "cli",
    "experiments",
    "auditing",
    "serve",
    "proxy",
    "reinforce",
    "pruning",
    "tuning",
    "tasks",
    "decoding",
    "heads",
    "report",
    "data",
    "models",
    "runs",
    "recipes",
    "lazy",
    "errors",
]
DEPRECATED = {"multitoken", "datasets", "adapters"}


def room(module: str) -> str:
    return module.split(".")[1]


def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) of all imports in the package, those in functions too."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found |= {(module, name) for name in names if name.startswith("graftlm.")}
    return {(one, other) for one, other in found if "." in one and room(one) not in DEPRECATED | {"__main__"}}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_itself_and_rooms_below_it(name: str) -> None:
    below = set(ROOMS[ROOMS.index(name) :])
    up = {(one, other) for one, other in arrows() if room(one) == name and room(other) not in below}
    assert up == set()


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py") and not path.name.startswith("_")}
    assert rooms - {"py"} - DEPRECATED == set(ROOMS)
