"""The faster product for few rows is the product of nn.Linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.models import few_rows
from graftlm.models.few_rows import FewRowsLinear, quicken, suits, transposed_is_faster


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is."""
    monkeypatch.setattr(few_rows, "transposed_is_faster", lambda: True)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product_for_every_number_of_rows(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(shape[1], shape[0], bias=bias)
    quick = nn.Linear(shape[1], shape[0], bias=bias)
    quick.load_state_dict(plain.state_dict())
    quicken(quick)
    used = 0
    with torch.no_grad():
        for rows in range(70):
            given = torch.randn(rows, shape[1])
            torch.testing.assert_close(quick(given), plain(given))
            used += suits(rows, plain.weight)
        torch.testing.assert_close(quick(torch.randn(0, 3, shape[1])), torch.zeros(0, 3, shape[0]))
        batch = torch.randn(shape[1], 2, 2).permute(1, 2, 0)  # strided
        torch.testing.assert_close(quick(batch), plain(batch))
        assert quick(batch).is_contiguous() and quick(batch[:1, :1]).is_contiguous()
    assert used == (12 if shape[0] > shape[1] else 8)


def test_gradients_and_other_dtypes_go_the_ordinary_way() -> None:
    layer = nn.Linear(4, 8)
    weight = layer.weight
    quicken(layer)
    assert isinstance(layer, FewRowsLinear) and layer.weight is weight
    layer(torch.ones(2, 4)).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((8, 4), 2.0))
    double = nn.Linear(4, 8, dtype=torch.float64)
    quicken(double)
    assert type(double) is nn.Linear
    layer.double()  # after it was quickened
    with torch.no_grad():
        assert layer(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_the_machine_is_measured_once() -> None:
    assert transposed_is_faster() is transposed_is_faster() and transposed_is_faster.cache_info().misses == 1
