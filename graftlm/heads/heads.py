"""Auxiliary heads for multi-token prediction, as siblings of the model's last decoder layer.

    logits_k(t) = U(norm(layer_k(h(t))))        predicts token t+1+k,   k = 1..K

h is what the model's own last layer is given; layer_k starts as a copy of that layer; norm and the unembedding U
are the model's own, shared and not trained by the heads. Source: CAFT (arXiv 2506.07833), section 3.

Where this differs from the authors' code:
1. A head copies the *last* layer, of whatever class it is, and sits beside it. Theirs copies the one before last and
   feeds it the last layer's input when distilling, but the model's final output when tuning.
2. A head is called with exactly the arguments that the model's layer was called with (mask, positions, rotary
   embeddings), captured by a hook. Theirs passes no mask, so that eager attention sees the future.
3. Every Hugging Face decoder architecture works, not only Llama.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graftlm.errors import InputError
from graftlm.models.checkpoint_values import read_object
from graftlm.models.decoder import Decoder, LayerCall
from graftlm.models.finite import not_finite
from graftlm.runs.config import describe
from graftlm.runs.files import written_together
from graftlm.runs.typed_values import fits

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Content of `heads/config.json`: the heads' shape, and the model that they belong to."""

    num_heads: int
    depth: int
    copy_layer: int
    base_model: str
    base_revision: str | None
    vocabulary_size: int
    hidden_size: int
    layer_class: str
    unembedding_hash: str

    def misfit(self, decoder: Decoder) -> str | None:
        """The difference between the heads' shape and the model's, in words; None where they fit."""
        for what, theirs, ours in (
            ("vocabulary size", self.vocabulary_size, decoder.unembedding.weight.shape[0]),
            ("hidden size", self.hidden_size, decoder.unembedding.weight.shape[1]),
            ("layer class", self.layer_class, type(decoder.layers[-1]).__name__),
        ):
            if theirs != ours:
                return f"their {what} is {theirs}, this model's is {ours}"
        return None


class MultiTokenHeads(nn.Module):
    """K auxiliary heads; head k (1..K) predicts the token k further than the model itself does.

    Build them with `from_model` or `from_pretrained`. They hold decoder layers only: the model lends its final norm
    and unembedding in each call.
    """

    def __init__(self, config: HeadsConfig, layers: list[nn.ModuleList]) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(layers)

    @classmethod
    def from_model(
        cls, model: nn.Module, num_heads: int = 4, *, depth: int = 1, copy_layer: int | None = None
    ) -> MultiTokenHeads:
        """Grow `num_heads` heads of `depth` layers, copied from `model`'s layers from `copy_layer` on.

        By default those are the last ones, and a fresh head reproduces the model's own logits exactly. Adapters on a
        PEFT model are not copied. Raises InputError for an architecture or a layer that cannot be copied.
        """
        decoder = Decoder(model)
        decoder.verify()
        count = len(decoder.layers)
        if not 1 <= depth <= count:
            raise InputError(f"heads of depth {depth} cannot be copied from a model of {count} layers")
        first = count - depth if copy_layer is None else copy_layer
        if not 0 <= first <= count - depth:
            raise InputError(f"copy_layer {first} with depth {depth} lies outside the model's layers 0 to {count - 1}")
        if num_heads < 1:
            raise InputError(f"num_heads is {num_heads}, but at least one head is needed")
        config = HeadsConfig(
            num_heads=num_heads,
            depth=depth,
            copy_layer=first,
            base_model=str(decoder.model.name_or_path),
            base_revision=getattr(decoder.model.config, "_commit_hash", None),
            vocabulary_size=decoder.unembedding.weight.shape[0],
            hidden_size=decoder.unembedding.weight.shape[1],
            layer_class=type(decoder.layers[first]).__name__,
            unembedding_hash=_unembedding_hash(decoder.unembedding.weight),
        )
        sources = [decoder.layers[first + i] for i in range(depth)]
        return cls(config, [nn.ModuleList(_copy_layer(layer) for layer in sources) for _ in range(num_heads)])

    def belong_to(self, model: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Note in the config that the heads fit `model`, whose unembedding may have been trained since.

        state_dict: its weights in one piece, where its own are divided over devices. Without the unembedding in there
            the heads keep what they say of it.
        """
        decoder = Decoder(model)
        unembedding: Any = decoder.unembedding.weight
        if state_dict is not None:
            names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is unembedding]
            unembedding = next((state_dict[name] for name in names if name in state_dict), None)
        self.config = replace(
            self.config,
            base_model=str(decoder.model.name_or_path),
            base_revision=getattr(decoder.model.config, "_commit_hash", None),
            unembedding_hash=self.config.unembedding_hash if unembedding is None else _unembedding_hash(unembedding),
        )

    @property
    def num_heads(self) -> int:
        return len(self.layers)

    @property
    def tap(self) -> int:
        """The model's layer whose input the heads read, counted from the end."""
        return -self.config.depth

    def hidden_states(self, head: int, call: LayerCall) -> Tensor:
        """Output [batch, time, hidden] of head `head` (1..K), before the model's final norm."""
        return call.through(self.layers[head - 1], call.hidden_states)  # type: ignore[arg-type]

    def rows(self, head: int, call: LayerCall, final_norm: nn.Module, positions: Tensor) -> Tensor:
        """Normed outputs [rows, hidden] of head `head` where `positions` [batch, time] (bool) is true.

        What lies between is recomputed in the backward pass, so that memory does not grow with the number of heads.
        """

        def normed_rows(hidden_states: Tensor) -> Tensor:
            return final_norm(call.through(self.layers[head - 1], hidden_states)[positions])  # type: ignore[arg-type]

        if torch.is_grad_enabled():
            return checkpoint(normed_rows, call.hidden_states, use_reentrant=False)
        return normed_rows(call.hidden_states)

    def forward(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """All heads' logits [K, batch, time, vocabulary]: for inspection; training never builds them."""
        decoder = Decoder(model)
        _, call = decoder.run(self.tap, input_ids=input_ids, attention_mask=attention_mask)
        return torch.stack([decoder.logits(self.hidden_states(k + 1, call)) for k in range(self.num_heads)])

    def save_pretrained(self, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, each replaced atomically."""
        weights = self.state_dict() if state_dict is None else state_dict
        with written_together(Path(folder), (WEIGHTS_FILE, CONFIG_FILE)) as scratch:
            save_file(
                {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
                scratch / WEIGHTS_FILE,
                metadata={"format": "pt"},
            )
            (scratch / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], model: nn.Module, *, of_relative: bool = False
    ) -> MultiTokenHeads:
        """Load heads that were grown on `model` (dtype and device follow it), or, `of_relative`, on one of its shape,
        such as the model that it was tuned from.

        Raises InputError for a missing, truncated or pickled file and for heads of another model.
        """
        config = read_heads_config(folder)
        weights_file, config_file = Path(folder) / WEIGHTS_FILE, Path(folder) / CONFIG_FILE
        decoder = Decoder(model)
        misfit, own_hash = config.misfit(decoder), _unembedding_hash(decoder.unembedding.weight)
        if misfit is None and not of_relative and own_hash != config.unembedding_hash:
            misfit = f"their unembedding's hash is {config.unembedding_hash}, this model's is {own_hash}"
        if misfit is not None:
            raise InputError(
                f"the heads in {folder} belong to another model ({config.base_model}): {misfit}; run `graftlm distill` "
                "on this model"
            )
        try:
            weights = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            reason = f"is truncated or not a safetensors file ({error}); copy it again or rerun `graftlm distill`"
            raise InputError(f"{weights_file} {reason}") from error
        if config.num_heads * config.depth > len(weights):  # before so many are made
            raise InputError(f"{config_file} tells of more heads than {WEIGHTS_FILE} holds")
        try:
            heads = cls.from_model(model, config.num_heads, depth=config.depth, copy_layer=config.copy_layer)
        except InputError as error:
            raise InputError(f"{config_file}: {error}") from error
        heads.config = config
        try:
            heads.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise InputError(f"the weights in {folder} do not fit heads of {config.layer_class}: {reason}") from error
        if (odd := not_finite(weights.items())) is not None:
            raise InputError(f"the heads in {folder} have a NaN or an infinity in {odd}; rerun `graftlm distill`")
        return heads


def read_heads_config(folder: str | os.PathLike[str]) -> HeadsConfig:
    """`config.json` of a heads folder. Raises InputError where there is none, or only a pickle."""
    path = Path(folder)
    if not (path / CONFIG_FILE).is_file() or not (path / WEIGHTS_FILE).is_file():
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl"))
        if pickles:
            raise InputError(
                f"{path / pickles[0]} is a pickle, which can run code when loaded; heads are read from "
                f"{WEIGHTS_FILE} only: convert it with safetensors or rerun `graftlm distill`"
            )
        raise InputError(f"{path} holds no heads ({WEIGHTS_FILE} and {CONFIG_FILE}); run `graftlm distill` first")
    content, types = read_object(path / CONFIG_FILE), get_type_hints(HeadsConfig)
    if set(content) != set(types):
        named = ", ".join(sorted(set(content) ^ set(types)))
        raise InputError(f"{path / CONFIG_FILE} is not a heads config (see {named}); rerun `graftlm distill`")
    for name, value in content.items():
        if not fits(value, types[name]) or (name in ("num_heads", "depth") and value < 1):
            raise InputError(f"{path / CONFIG_FILE}: {name} is {describe(value)}; rerun `graftlm distill`")
    return HeadsConfig(**content)


def _copy_layer(layer: nn.Module) -> nn.Module:
    """A deep copy without adapters or gradients."""
    duplicate: Any = copy.deepcopy(layer)
    for name, module in list(duplicate.named_modules()):
        if isinstance(module, BaseTunerLayer):
            duplicate.set_submodule(name, module.get_base_layer())
    if hasattr(duplicate, "gradient_checkpointing"):
        duplicate.gradient_checkpointing = False
    return duplicate.requires_grad_(True)


@torch.no_grad()
def _unembedding_hash(unembedding: Any) -> str:
    """sha256 over every 997th row of the unembedding: tells models of one shape apart, at no cost.

    Rounded to bfloat16, so that a model hashes alike in float32 and bfloat16.
    """
    rows = unembedding[::997].detach().to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(rows.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
