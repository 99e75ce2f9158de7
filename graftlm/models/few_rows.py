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
from contextlib import ExitStack
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_ROWS = 64
CLEARLY = 0.8  # of the plain product's time, so that noise does not decide


class FewRowsLinear(nn.Linear):
    """A second module of the weight, bias and hooks of `linear` that takes the faster of both products.

    Only for float32 on a CPU without gradients; else it does what `linear` does.
    """

    linear: nn.Linear

    def __init__(self, linear: nn.Linear) -> None:
        # Not by nn.Module's own ways, so that `linear` is no submodule: names of parameters stay as they are. Its
        # dictionaries of parameters and hooks are shared: what is later put into one module is in the other as well.
        self.__dict__.update(linear.__dict__, linear=linear)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // max(input.shape[-1], 1)
        if torch.is_grad_enabled() or not suits(rows, self.weight):
            return super().forward(input)
        product = transposed_product(input.reshape(rows, -1), self.weight)
        if self.bias is not None:
            product += self.bias
        return product.view(*input.shape[:-1], -1)


def use_fast_cpu_products(model: nn.Module) -> ExitStack:
    """Replace the linear layers in `model` that are in float32 on a CPU by ones that decode few tokens faster.

        with use_fast_cpu_products(model):
            model.generate(...)

    Parameters, their names and the output (up to rounding) stay the same. The layers are put back at the end of the
    `with` block or by `close()` of the result; until then they stay. Nothing is replaced where the plain product is as
    fast on this machine.
    """
    undo = ExitStack()
    replaced = {}
    for name, module in list(model.named_modules()):
        if name and type(module) is nn.Linear and suits(1, module.weight) and transposed_is_faster():
            fast = FewRowsLinear(module)
            replaced[fast] = module
            model.set_submodule(name, fast)

    def put_back() -> None:
        for name, module in list(model.named_modules()):  # an adapter may have moved it
            if module in replaced:
                model.set_submodule(name, replaced[module].train(module.training))

    undo.callback(put_back)
    return undo


def suits(rows: int, weight: Tensor) -> bool:
    """Whether the table has this number of rows: up to 4, up to 8 where the weight is as high as wide or higher, and
    whole sixteens."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not 0 < rows <= MOST_ROWS:
        return False
    return rows <= (8 if weight.shape[0] >= weight.shape[1] else 4) or rows % 16 == 0


def transposed_product(rows: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ [rows, out] of x [rows, in] and W [out, in], as (W xᵀ)ᵀ."""
    single = len(rows) == 1
    given = rows.expand(2, -1).contiguous() if single else rows
    product = torch.mm(weight, given.t()).t()
    return (product[:1] if single else product).contiguous()


@cache
def transposed_is_faster() -> bool:
    """Measure this machine, with two rows and weights that together are larger than its caches, as a model's are."""
    given, weights = torch.ones(2, 576), [torch.ones(1536, 576) for _ in range(20)]

    def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        begun = time.perf_counter()
        for weight in weights:
            product(given, weight)
        return time.perf_counter() - begun

    plain, transposed = (min(seconds(product) for _ in range(3)) for product in (F.linear, transposed_product))
    return transposed < CLEARLY * plain
