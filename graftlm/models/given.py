"""A model as a caller gives it: by name, or loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

from graftlm.errors import InputError
from graftlm.models.checkpoints import explained_errors
from graftlm.models.load import load_model, set_pad_token

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Given: TypeAlias = "str | os.PathLike[str] | PreTrainedModel | PeftModel"
GivenPair: TypeAlias = "tuple[Given, PreTrainedTokenizerBase | None]"


def given_model(
    model: Given, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, loaded with the `options` of `load_model` where it is a name, and its tokenizer.

    Without a tokenizer it is the one that is saved where the loaded model came from; InputError where there is none.
    """
    if isinstance(model, (str, os.PathLike)):
        loaded, own = load_model(model, **options)
        return loaded, tokenizer or own
    if tokenizer is None:
        from transformers import AutoTokenizer

        if not (name := name_of(model)):
            raise InputError("the model was not loaded by name: pass its tokenizer along, as tokenizer=")
        with explained_errors(name):
            tokenizer = AutoTokenizer.from_pretrained(name)
        set_pad_token(model, tokenizer)
    return model, tokenizer


def name_of(model: Given) -> str:
    """The name under which a model is given or was loaded; "" where it has none."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else str(model.name_or_path or "")
