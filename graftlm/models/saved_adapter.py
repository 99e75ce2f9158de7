"""A PEFT adapter in a folder: which base model it needs, what it does to that for good, and putting it on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors import safe_open

from graftlm.errors import InputError
from graftlm.models.adapters import start_alteration
from graftlm.models.bundled import NAMED_MODELS
from graftlm.models.checkpoint_values import ADAPTER_CONFIG
from graftlm.models.checkpoints import check_adapter_folder, check_all_loaded, explained_errors

PREFIX = "base_model.model."
VOCABULARY_AXES = {"weight": 0, "modules_to_save.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
"""The axis of the tokens in each tensor that an adapter saves for an embedding."""


class SavedAdapter:
    """The adapter in `folder`. `base_name`: the model that it was trained on, by its short name where it has one, since
    the folder of such a model differs from user to user.

    Raises InputError where the folder is no adapter's, is damaged, or names no base model.
    """

    def __init__(self, folder: Path) -> None:
        check_adapter_folder(folder)
        with explained_errors(str(folder)):
            self.config: Any = PeftConfig.from_pretrained(str(folder))
        self.folder = folder
        name = self.config.base_model_name_or_path
        if not name:
            raise InputError(f"{folder / ADAPTER_CONFIG} names no base model; set base_model_name_or_path in it")
        path = Path(name)
        self.base_name: str = path.name if path.name in NAMED_MODELS and not path.exists() else name

    def put_on(self, base: Any, rows: int, alteration: str | None) -> PeftModel:
        """The adapter on `base`, which it changes in place; its parameters are frozen.

        `rows`, `alteration`: results of `embedding_rows` and `alteration`.
        """
        with explained_errors(str(self.folder)), warnings.catch_warnings():
            # PEFT only warns, and leaves such parameters random.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            # No concern of the user: PEFT reads a property that transformers has renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            if rows != base.get_input_embeddings().num_embeddings:
                base.resize_token_embeddings(rows)
            model: Any = PeftModel.from_pretrained(base, str(self.folder), is_trainable=False)
        model.base_alteration = alteration or ""
        check_all_loaded(model, self.folder)
        return model.eval()

    def embedding_rows(self, base: Any, tokens: int) -> int:
        """Rows that the embedding of `base` needs for this adapter, whose tokenizer has this number of `tokens`.

        The adapter's file says so where it has an embedding, whole or in part. InputError where it needs rows that
        neither the base model nor the file has.
        """
        rows: int = base.get_input_embeddings().num_embeddings
        modules: dict[int, str] = {id(module): name for name, module in base.named_modules()}
        embeddings = [modules.get(id(each)) for each in (base.get_input_embeddings(), base.get_output_embeddings())]
        saved_rows: set[int] = set()
        whole = False
        for name, saved in self._tensors():
            for embedding in filter(None, embeddings):
                part = name.removeprefix(f"{embedding}.")
                if part != name and part in VOCABULARY_AXES:
                    saved_rows.add(saved.get_shape()[VOCABULARY_AXES[part]])
                    whole = whole or "lora" not in part
        trained = self._trained_tokens()
        if not saved_rows:
            return max(rows, tokens, *(index + 1 for index in trained))
        wanted = max(saved_rows)
        if wanted > rows and not whole and not trained >= set(range(rows, wanted)):
            raise InputError(
                f"adapter {self.folder} was trained with {wanted} rows of embedding, its base model has {rows}, and "
                "the rows between are not saved with it: save it with save_embedding_layers=True"
            )
        return wanted

    def alteration(self, base: Any, rows: int) -> str | None:
        """The change of `base`, with `rows` rows of embedding, that switching this adapter off does not undo; None
        without one."""
        if (known := start_alteration(self.config)) is not None:
            return known
        if rows != base.get_input_embeddings().num_embeddings:
            return "another size of vocabulary"
        own = dict(base.named_parameters(remove_duplicate=False))
        copies = getattr(self.config, "modules_to_save", None) or ()  # in whose place the base's own are put back
        for name, saved in self._tensors():
            if name not in own or any(f"{module}." in name for module in copies):
                continue
            if not torch.equal(saved[:].to(own[name]), own[name]):
                return f"a {name} of its own"
        return None

    def _trained_tokens(self) -> set[int]:
        """Tokens whose row of the embedding the adapter trains."""
        config = self.config
        given = config.token_indices if config.peft_type == PeftType.TRAINABLE_TOKENS else None
        given = given or getattr(config, "trainable_token_indices", None) or []
        return {index for each in (given.values() if isinstance(given, dict) else [given]) for index in each}

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors in the adapter's file, not read yet; those of the base model by their names there."""
        with safe_open(self.folder / "adapter_model.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no dictionary
                name = key.removeprefix(PREFIX).replace(".token_adapter.", ".").replace(".base_layer.", ".")
                yield name, file.get_slice(key)
