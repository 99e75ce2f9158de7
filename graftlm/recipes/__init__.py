"""Ready settings, one YAML file each; `graftlm VERB NAME` takes one by its name, further flags override it."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from graftlm.errors import InputError


def list_recipes() -> dict[str, str]:
    """Name -> the first line of its comment."""
    return {name: read_recipe(name).split("\n", 1)[0].removeprefix("# ") for name in names()}


def names() -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in files(__name__).iterdir() if file.name.endswith(".yaml"))


def is_recipe(path: Path) -> bool:
    """Whether `path` is a recipe's bare name, and no file's; a folder of that name is found as NAME/run.yaml."""
    return path.name == str(path) and path.name in names() and not path.is_file()


def read_recipe(name: str) -> str:
    """Its YAML; InputError, with the nearest name, where there is none."""
    if name not in names():
        nearest = get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(names())}"
        raise InputError(f"no recipe {name!r}: {hint}")
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
