from __future__ import annotations

import ast
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from graftlm.cli import app
from graftlm.experiments.config import StudyConfig
from graftlm.heads.config import DistillConfig
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.config import load_config, typed_fields
from graftlm.tasks import get_task
from graftlm.tuning.config import TuneConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS: dict[str, type] = {
    "distill": DistillConfig,
    "tune": TuneConfig,
    "reinforce": ReinforceConfig,
    "study": StudyConfig,
}


def blocks(language: str) -> list[Any]:
    """Every fenced block of `language` in the README and the docs."""
    found = []
    for page in PAGES:
        pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
        for number, match in enumerate(pattern.finditer(page.read_text("utf-8")), start=1):
            found.append(pytest.param(match[1], id=f"{page.stem}-{number}"))
    return found


def command_lines() -> list[Any]:
    lines = [line.strip() for block in blocks("bash") for line in block.values[0].splitlines()]
    torchrun = re.compile(r"^torchrun .* -m (?=graftlm )")
    lines = [torchrun.sub("", line) for line in lines]
    return [pytest.param(line, id=line[:60]) for line in lines if line.startswith("graftlm ")]


def programs() -> list[Any]:
    examples = sorted((ROOT / "examples").glob("*.py"))
    return [*blocks("python"), *(pytest.param(path.read_text("utf-8"), id=path.name) for path in examples)]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_in_the_documentation_is_accepted(line: str) -> None:
    group: Any = typer.main.get_command(app)
    verb, command, arguments = group.resolve_command(group.context_class(group), shlex.split(line)[1:])
    given = command.make_context(verb, arguments).params
    for task in given.get("tasks") or []:
        assert get_task(task).name == task
    if verb not in CONFIGS:
        return
    config = CONFIGS[verb]
    names = {field.name for field, _ in typed_fields(config)}
    # Typer makes lists of click's tuples, and None of empty ones, when it calls the function.
    flags = {n: list(v) if isinstance(v, tuple) else v for n, v in given.items() if n in names and v not in (None, ())}
    file = given.get("config_argument") or given["config_option"]
    if file is None or (ROOT / file).exists():
        load_config(config, file and ROOT / file, flags, command=verb)


@pytest.mark.parametrize("source", programs())
def test_every_program_in_the_documentation_compiles_and_imports_names_that_exist(source: str) -> None:
    tree = ast.parse(source)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                import_module(alias.name)
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for alias in node.names:
                imported[alias.asname or alias.name] = getattr(import_module(node.module), alias.name)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in imported:
            assert_takes(imported[call.func.id], [keyword.arg for keyword in call.keywords if keyword.arg])


def assert_takes(function: Any, keywords: list[str]) -> None:
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert set(keywords) <= set(parameters)


def test_the_recipe_is_valid_and_shows_the_defaults() -> None:
    config, sources = load_config(TuneConfig, ROOT / "examples" / "tune.yaml", {})
    for name in ("mtp_coefficient", "mtp_decay", "mtp_schedule", "learning_rate", "lora_rank", "lora_alpha"):
        assert sources[name] == "config file"
        assert getattr(config, name) == TuneConfig.__dataclass_fields__[name].default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    files = [link for link in links if "://" not in link and not link.endswith(".png")]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_the_tables_are_drawn_from_the_committed_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    documents = import_module("documents")
    names = []
    for page in PAGES:
        text = page.read_text("utf-8")
        names += [match["name"] for match in documents.DRAWN.finditer(text)]
        assert documents.drawn(text, ROOT / "bench" / "results") == text, f"run bench/documents.py for {page.name}"
    assert sorted(names) == sorted(documents.TABLES)
