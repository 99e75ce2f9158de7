"""The tiny random models of the tasks' tests."""

from __future__ import annotations

from tests.tasks.conftest import make_model, make_successor_model, make_tokenizer

__all__ = ["make_model", "make_successor_model", "make_tokenizer"]
