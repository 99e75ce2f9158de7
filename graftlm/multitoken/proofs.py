"""What a trainer takes for granted of a model, proved on a few tokens before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.multitoken.decoder import Decoder, plain_model
from graftlm.multitoken.loss import IGNORE
from graftlm.multitoken.model import MultiTokenModel

TOKENS = 8


def why_not_by_parts(plain: nn.Module, *, sharded: bool = False) -> str | None:
    """Why the loss of `plain`, a causal LM or a PEFT model of one, cannot be taken from its decoder's parts; None where
    it can.

    Proved by the loss, and the gradients of an adapter, which must be those of the model's own forward pass: some
    adapters act in `PeftModel.forward` alone. Weights that will be divided over devices (`sharded`) are not run.

    Raises InputError for an adapter that cannot be trained on rows alone.
    """
    if isinstance(plain, PeftModel) and plain.active_peft_config.peft_type == PeftType.CPT:
        raise InputError(f"{describe(plain)} cannot be trained here: CPT's loss is its own; use another kind of prompt")
    reason = why_no_decoder(plain)
    if sharded:
        return reason
    trained = [p for p in plain.parameters() if p.requires_grad] if isinstance(plain, PeftModel) else []
    model = MultiTokenModel(plain, None)
    found: list[list[Tensor]] = []
    try:
        with evaluating(plain):
            tokens = some_tokens(plain)[None]
            labels = tokens.clone()
            labels[:, 0] = IGNORE  # only a virtual token predicts it
            for model.own_forward in (False, True) if reason is None else (True,):
                with torch.set_grad_enabled(bool(trained)):
                    loss = model(tokens, labels, coefficients=[1.0]).loss
                gradients = [torch.zeros_like(parameter) for parameter in trained]
                if loss.requires_grad:
                    gradients = list(torch.autograd.grad(loss, trained, materialize_grads=True))
                found.append([loss.detach(), *gradients])
    except (TypeError, ValueError) as error:
        raise InputError(f"{describe(plain)} cannot be trained: {' '.join(str(error).split())}") from error
    if reason is None and not all(close(one, other) for one, other in zip(*found, strict=True)):
        reason = f"{describe(plain)} computes more than its decoder's layers do"
    return reason


def why_no_decoder(plain: nn.Module) -> str | None:
    try:
        Decoder(plain)
    except InputError as error:
        return str(error)
    return None


def describe(plain: nn.Module) -> str:
    """The model's class and its adapter's type."""
    kind = f" with {plain.active_peft_config.peft_type.value}" if isinstance(plain, PeftModel) else ""
    return type(plain_model(plain)).__name__ + kind


def some_tokens(plain: nn.Module) -> Tensor:
    """[time] int64, on the model's device; with those that an activated LoRA waits for."""
    model = plain_model(plain)
    device = model.get_input_embeddings().weight.device
    awaited = getattr(getattr(plain, "active_peft_config", None), "alora_invocation_tokens", None) or []
    tokens = torch.arange(TOKENS, device=device) % int(model.config.get_text_config().vocab_size)
    return torch.cat([tokens[:2], tokens.new_tensor(awaited), tokens[2:]])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` is in evaluation mode within."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding. What is not a number is left to training, which stops."""
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 0.05
    one, other = one.double(), other.double()
    return not (one - other).norm() > tolerance * torch.maximum(one.norm(), other.norm())
