"""One forward pass of a small model in which some rows have a LoRA adapter and the others have none.

PEFT does this too (`adapter_names`), with a dozen small operations a layer that cost more than the layer where one
token is decoded. Here the rows with the adapter come first, so that they are a view, and two products a layer remain:

    y[:rows] += scaling · (x[:rows] Aᵀ) Bᵀ
"""

from __future__ import annotations

import copy
from typing import Any

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F


class PairedAdapter:
    """`model`: the small model without its adapter, by reference: no weight is copied.

    `rows`: how many rows, from the first, have the adapter in the next forward pass.
    """

    def __init__(self, adapted: PeftModel) -> None:
        """ValueError unless `fits(adapted)`."""
        if not self.fits(adapted):
            raise ValueError("the adapter is no plain LoRA on linear layers")
        plain: Any = adapted.get_base_model()
        self.rows = 0
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())}
        for module in plain.modules():
            if isinstance(module, LoraLinear):
                self._hook(module, adapted.active_adapter)
                shared[id(module)] = module.get_base_layer()
        # Of what the memo names, deepcopy takes what it finds there: the tree is new, the weights are not.
        self.model: Any = copy.deepcopy(plain, shared)

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

    def _hook(self, layer: Any, adapter: str) -> None:
        if adapter not in layer.lora_A:
            return
        first, second, scaling = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.rows:
                return None
            low = F.linear(args[0][: self.rows].to(first.weight.dtype), first.weight)
            change = F.linear(low, second.weight).to(output.dtype)
            output[: self.rows].add_(change, alpha=scaling)
            return output

        layer.get_base_layer().register_forward_hook(add)


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
