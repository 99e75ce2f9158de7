"""Docstrings say what a thing does or is: none begins in the middle of a sentence."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "graftlm"


def test_no_docstring_begins_with_of_or_what() -> None:
    begun = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node) or ""
                if docstring.startswith(("Of ", "What ")):
                    begun.append(f"{path.name}: {docstring.splitlines()[0]}")
    assert begun == []
