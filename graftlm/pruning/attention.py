"""The attention weights of a pass, a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.decoding.batches import has_virtual_tokens
from graftlm.errors import InputError
from graftlm.models.decoder import backbone_of, decoder_layers, plain_model


@torch.no_grad()
def pass_with_attention(model: Any, ids: list[int], on_layer: Callable[[Tensor], Any]) -> Tensor:
    """Final hidden states [time, hidden] of a sequence; `on_layer` gets each layer's weights [heads, queries, keys],
    one layer's at a time.

    InputError where the model does not show them.
    """
    if has_virtual_tokens(model):
        raise InputError("pruning does not take prompt or prefix tuning: their tokens are in no text")
    plain = plain_model(model)
    shown = 0

    def read(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal shown
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.shape[-2:] == (len(ids), len(ids)):
            shown += 1
            on_layer(weights[0].float())

    with _eager_attention(plain):
        handles = [
            module.register_forward_hook(read)
            for layer in decoder_layers(plain)
            for module in layer.modules()
            if type(module).__name__.endswith("Attention")
        ]
        try:
            output = backbone_of(plain)(input_ids=torch.tensor([ids], device=plain.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    if not shown:
        raise InputError(f"{type(plain).__name__} does not show its attention: choose another mode")
    return output.last_hidden_state[0]


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Other implementations never have the weights."""
    before = model.config._attn_implementation  # transformers has a public setter only
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
