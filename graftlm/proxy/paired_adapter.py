"""One forward pass of a small model in which some rows have a LoRA adapter and the others have none.

PEFT does this too (`adapter_names`), with a dozen small operations a layer that cost more than the layer where one
token is decoded. Here the rows with the adapter come first, so that they are a view, and two products a layer remain:

    y[:rows] += scaling · (x[:rows] Aᵀ) Bᵀ

The unembedding U has no adapter, so the offset of the logits needs it once: U h⁺ - U h⁻ = U (h⁺ - h⁻).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.models.few_rows import use_fast_cpu_products

LINEAR = 0.01  # of the largest difference: rounding stays below it, another scale does not


class PairedAdapter:
    """A small model that has its adapter in some rows only.

    `model`: a second tree of modules without the adapter, whose weights are those of the model given; that one is left
    as it is.
    """

    def __init__(self, adapted: PeftModel) -> None:
        """ValueError unless `fits(adapted)`."""
        if not self.fits(adapted):
            raise ValueError("the adapter is no plain LoRA on linear layers")
        plain: Any = adapted.get_base_model()
        self._rows, self._of = 0, 1
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())}
        layers = [module for module in plain.modules() if isinstance(module, LoraLinear)]
        for layer in layers:
            # Of what the memo names, deepcopy takes what it finds there: the modules are new, the weights are not.
            shared[id(layer)] = copy.deepcopy(layer.get_base_layer(), shared)
            self._hook(shared[id(layer)], layer, adapted.active_adapter)
        self.model: Any = copy.deepcopy(plain, shared)
        use_fast_cpu_products(self.model)

    @contextmanager
    def adapted(self, rows: int, of: int) -> Iterator[None]:
        """While it is open, the first `rows` rows of the `of` that `model` reads have the adapter."""
        self._rows, self._of = rows, of
        try:
            yield
        finally:
            self._rows = 0

    def hidden_states(self, **inputs: Any) -> Tensor:
        """[batch, time, hidden], what the unembedding reads."""
        found: Tensor = self.model.base_model(**inputs).last_hidden_state
        return found

    def unembed(self, hidden_states: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden_states)
        return logits

    @cached_property
    @torch.no_grad()
    def is_linear(self) -> bool:
        """Whether the offset of the logits is the unembedding of the hidden states' difference, proved on four tokens;
        not where logits are capped or scaled, or where the unembedding has an adapter or a bias."""
        device = self.model.get_output_embeddings().weight.device
        ids = torch.arange(4, device=device).expand(2, -1)
        with self.adapted(1, of=2):
            logits, hidden = self.model(input_ids=ids).logits, self.hidden_states(input_ids=ids)
        expected, found = logits[0] - logits[1], self.unembed(hidden[0] - hidden[1])
        return bool((found - expected).abs().max() < LINEAR * expected.abs().max())

    @staticmethod
    def fits(adapted: PeftModel) -> bool:
        layers = [
            module
            for module in adapted.get_base_model().modules()
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        ]
        return isinstance(adapted.active_adapter, str) and all(
            _is_plain(each, adapted.active_adapter) for each in layers
        )

    def _hook(self, linear: nn.Module, layer: Any, adapter: str) -> None:
        """Let `linear` add the adapter of `layer`."""
        if adapter not in layer.lora_A:
            return
        first, second, scaling = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._rows:
                return None
            # Some layers are given all tokens of a batch one after another.
            count = len(args[0]) * self._rows // self._of
            low = F.linear(args[0][:count].to(first.weight.dtype), first.weight)
            change = F.linear(low, second.weight).to(output.dtype)
            output[:count].add_(change, alpha=scaling)
            return output

        linear.register_forward_hook(add)


def uses_dora(adapted: PeftModel) -> bool:
    return any(
        isinstance(layer, BaseTunerLayer) and any(getattr(layer, "use_dora", {}).values())
        for layer in adapted.get_base_model().modules()
    )


def _is_plain(layer: Any, adapter: str) -> bool:
    """Whether the layer's adapter does nothing but add scaling · B A x."""
    if not isinstance(layer, LoraLinear) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    biased = adapter in layer.lora_B and layer.lora_B[adapter].bias is not None
    return not (layer.merged or layer.fan_in_fan_out or adapter in layer.lora_variant or biased)
