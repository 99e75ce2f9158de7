"""The fused cross-entropy and KL divergence against plain autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.models import linear_cross_entropy as module
from graftlm.models.linear_cross_entropy import linear_cross_entropy, linear_kl_divergence
from tests.tuning.plain import LargestTensor

ROWS, HIDDEN, VOCABULARY = 23, 6, 31
EXACT = 1e-12


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 5)


def operands(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        "hidden": torch.randn(rows, HIDDEN, generator=generator),
        "weight": torch.randn(VOCABULARY, HIDDEN, generator=generator),
        "bias": torch.randn(VOCABULARY, generator=generator),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}


def plain_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


SHAPES = pytest.mark.parametrize(
    ("biased", "scale", "softcap"),
    [(False, 1.0, None), (True, 1.0, None), (True, 0.3, None), (False, 1.0, 2.0), (True, 2.5, 3.0)],
)


@SHAPES
@pytest.mark.parametrize("with_entropy", [False, True])
def test_loss_and_gradients_equal_plain_cross_entropy(
    biased: bool, scale: float, softcap: float | None, with_entropy: bool
) -> None:
    o = operands()
    bias = o["bias"] if biased else None
    targets = torch.arange(ROWS) % VOCABULARY
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    wanted = [o["hidden"], o["weight"], *([bias] if bias is not None else [])]

    logits = plain_logits(o["hidden"], o["weight"], bias, scale, softcap)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (weights * nll).sum()
    expected_gradients = torch.autograd.grad(3 * expected, wanted)

    found = linear_cross_entropy(
        o["hidden"],
        o["weight"],
        targets,
        weights,
        bias=bias,
        logit_scale=scale,
        logit_softcap=softcap,
        with_entropy=with_entropy,
    )
    torch.testing.assert_close(found.loss, expected, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(found.nll, nll.detach(), atol=EXACT, rtol=EXACT)
    assert found.correct.tolist() == (logits.argmax(1) == targets).tolist()
    if with_entropy:
        probabilities = logits.softmax(1)
        entropy = -(probabilities * probabilities.log()).sum(1)
        torch.testing.assert_close(found.entropy, entropy.detach(), atol=EXACT, rtol=EXACT)
    for gradient, plain in zip(torch.autograd.grad(3 * found.loss, wanted), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, atol=EXACT, rtol=EXACT)


def test_only_what_is_trained_gets_a_gradient() -> None:
    o = operands()
    targets, weights = torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS, dtype=torch.float64)
    linear_cross_entropy(o["hidden"], o["weight"].detach(), targets, weights).loss.backward()
    assert o["hidden"].grad is not None and o["weight"].grad is None
    with torch.no_grad():
        found = linear_cross_entropy(o["hidden"], o["weight"], targets, weights)
    assert not found.loss.requires_grad
    assert not found.nll.requires_grad


def test_no_rows_give_a_zero_that_still_has_a_gradient() -> None:
    o = operands(0)
    loss = linear_cross_entropy(o["hidden"], o["weight"], torch.zeros(0, dtype=torch.long), torch.zeros(0)).loss
    loss.backward()
    assert loss.item() == 0
    assert o["hidden"].grad is not None and o["hidden"].grad.shape == (0, HIDDEN)
    assert o["weight"].grad is not None and o["weight"].grad.abs().max() == 0


@pytest.mark.parametrize("size", [1e3, 1e-6])
def test_extreme_logits_stay_finite_in_single_precision(size: float) -> None:
    o = operands(dtype=torch.float32)
    hidden = (o["hidden"].detach() * size).requires_grad_()
    targets = torch.arange(ROWS) % VOCABULARY
    found = linear_cross_entropy(hidden, o["weight"], targets, torch.ones(ROWS), with_entropy=True)
    found.loss.backward()
    expected = torch.nn.functional.cross_entropy(hidden @ o["weight"].T, targets, reduction="none")
    torch.testing.assert_close(found.nll, expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.entropy.isfinite().all() and (found.entropy > -1e-3).all()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_half_precision_is_reduced_in_single() -> None:
    o = operands(dtype=torch.bfloat16)
    targets = torch.arange(ROWS) % VOCABULARY
    found = linear_cross_entropy(o["hidden"], o["weight"], targets, torch.full((ROWS,), 1 / ROWS))
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    exact = operands(dtype=torch.bfloat16)
    wide = {name: value.detach().float().requires_grad_() for name, value in exact.items()}
    expected = torch.nn.functional.cross_entropy(wide["hidden"] @ wide["weight"].T, targets)
    expected.backward()
    torch.testing.assert_close(found.loss, expected.detach(), rtol=2e-2, atol=0)
    assert o["hidden"].grad is not None and wide["hidden"].grad is not None
    torch.testing.assert_close(o["hidden"].grad.float(), wide["hidden"].grad, rtol=0.1, atol=3e-3)


@SHAPES
def test_kl_divergence_and_its_gradients_equal_plain_autograd(
    biased: bool, scale: float, softcap: float | None
) -> None:
    o = operands()
    bias = o["bias"] if biased else None
    reference = torch.randn(ROWS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    reference_weight = (o["weight"] * 0.9).detach()
    reference_bias = o["bias"].detach() * 1.1 if biased else None
    wanted = [o["hidden"], o["weight"], *([bias] if bias is not None else [])]

    with torch.no_grad():
        p = plain_logits(reference, reference_weight, reference_bias, scale, softcap).log_softmax(1)
    q = plain_logits(o["hidden"], o["weight"], bias, scale, softcap).log_softmax(1)
    expected = (p.exp() * (p - q)).sum()
    expected_gradients = torch.autograd.grad(expected, wanted)

    found = linear_kl_divergence(
        reference,
        reference_weight,
        o["hidden"],
        o["weight"],
        bias=bias,
        reference_bias=reference_bias,
        logit_scale=scale,
        logit_softcap=softcap,
    )
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
    for gradient, plain in zip(torch.autograd.grad(found, wanted), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, atol=EXACT, rtol=EXACT)


def test_kl_divergence_of_equal_rows_is_zero_with_zero_gradient() -> None:
    o = operands()
    found = linear_kl_divergence(o["hidden"].detach(), o["weight"].detach(), o["hidden"], o["weight"])
    found.backward()
    assert abs(found.item()) < EXACT
    assert o["hidden"].grad is not None and o["hidden"].grad.abs().max() < EXACT


def test_no_more_than_one_chunk_of_logits_exists() -> None:
    rows, vocabulary = 40, 1000
    hidden = torch.randn(rows, HIDDEN, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN)
    with LargestTensor() as largest:
        loss = linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.long), torch.ones(rows)).loss
        (loss + linear_kl_divergence(hidden.detach(), weight, hidden, weight)).backward()
    assert largest.elements <= max(5 * vocabulary, vocabulary * HIDDEN)


@pytest.mark.parametrize(("narrow", "largest"), [(torch.bfloat16, 1.0), (torch.float16, 1e-5)])
def test_under_autocast_every_product_is_narrow_and_what_is_summed_is_not(
    narrow: torch.dtype, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    o = operands(dtype=torch.float32)
    targets, weights = torch.arange(ROWS) % VOCABULARY, torch.linspace(-largest, largest, ROWS)
    wanted = [o["hidden"], o["weight"], o["bias"]]
    exact = linear_cross_entropy(o["hidden"], o["weight"], targets, weights, bias=o["bias"])
    expected = torch.autograd.grad(exact.loss, wanted)

    casts = []
    to = Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda self, *args, **kw: casts.append(self.data_ptr()) or to(self, *args, **kw))
    with torch.autocast("cpu", narrow):
        found = linear_cross_entropy(o["hidden"], o["weight"], targets, weights, bias=o["bias"])
    gradients = torch.autograd.grad(found.loss, wanted)

    assert casts.count(o["weight"].data_ptr()) == 1  # not once for each of the five chunks
    assert found.loss.dtype == found.nll.dtype == torch.float32
    assert [each.dtype for each in gradients] == [torch.float32] * 3
    torch.testing.assert_close(found.nll, exact.nll, rtol=2e-2, atol=5e-2)
    step = torch.finfo(narrow).eps
    for rounded, wide in zip(gradients, expected, strict=True):
        assert 1e-3 * step < float((rounded - wide).norm() / wide.norm()) < 2 * step


def test_autocast_leaves_float64_alone() -> None:
    o = operands()
    targets, weights = torch.arange(ROWS) % VOCABULARY, torch.ones(ROWS)
    expected = linear_cross_entropy(o["hidden"], o["weight"], targets, weights).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert float(linear_cross_entropy(o["hidden"], o["weight"], targets, weights).loss.detach()) == float(
            expected.detach()
        )
