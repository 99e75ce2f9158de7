"""Linear layers that read their weight at the memory's speed where few tokens are decoded at once on a CPU.

A decoding step multiplies a few rows x [rows, in] by each weight W [out, in]. As x Wᵀ, which `nn.Linear` asks for, this
reaches a third of the memory's bandwidth or less in some BLAS libraries; as (W xᵀ)ᵀ, and a single row as two, it comes
near it. Measured with MKL 2024.2 on an AMD EPYC, W 49,152 x 576: 2.9 instead of 9.3 ms for 1 row, 4.7 instead of 16.6
for 4, 14.7 instead of 19.9 for 16; from 9 to 15 rows it is no faster. So where this holds is a table here, and whether
it holds on this machine is measured once in a process. The result is the same up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_ROWS = 64
CLEARLY = 0.8  # of the plain product's time, so that noise does not decide


class FewRowsLinear(nn.Linear):
    """`nn.Linear` that takes the faster of both products, for float32 on a CPU without gradients."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // max(input.shape[-1], 1)
        if torch.is_grad_enabled() or not suits(rows, self.weight) or not transposed_is_faster():
            return super().forward(input)
        product = transposed_product(input.reshape(rows, -1), self.weight)
        if self.bias is not None:
            product += self.bias
        return product.view(*input.shape[:-1], -1)


def quicken(model: nn.Module) -> None:
    """Let the linear layers of `model` that lie in float32 on a CPU be `FewRowsLinear`, in place and by reference."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = FewRowsLinear


def suits(rows: int, weight: Tensor) -> bool:
    """The table: up to 4 rows, up to 8 where the weight is as high as wide or higher, and whole sixteens."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not 0 < rows <= MOST_ROWS:
        return False
    return rows <= (8 if weight.shape[0] >= weight.shape[1] else 4) or rows % 16 == 0


def transposed_product(rows: Tensor, weight: Tensor) -> Tensor:
    """[rows, in], [out, in] -> [rows, out]"""
    single = len(rows) == 1
    given = rows.expand(2, -1).contiguous() if single else rows
    product = torch.mm(weight, given.t()).t()
    return (product[:1] if single else product).contiguous()


@cache
def transposed_is_faster() -> bool:
    """On this machine, for two rows and weights that together are larger than its caches, as a model's are."""
    given, weights = torch.ones(2, 576), [torch.ones(1536, 576) for _ in range(20)]

    def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        begun = time.perf_counter()
        for weight in weights:
            product(given, weight)
        return time.perf_counter() - begun

    plain, transposed = (min(seconds(product) for _ in range(3)) for product in (F.linear, transposed_product))
    return transposed < CLEARLY * plain
