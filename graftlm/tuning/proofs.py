"""Proofs, on a few tokens before training, that a model does what the trainer relies on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.heads.loss import IGNORE
from graftlm.models.decoder import Decoder, plain_model
from graftlm.models.modes import at_rest
from graftlm.tuning.model import TermsModel
from graftlm.tuning.terms.base import Step
from graftlm.tuning.terms.next_token import NextToken

TOKENS = 8
CACHED = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)
"""Adapters that act through the cache, which there is none of under gradient checkpointing."""


def why_not_by_parts(plain: nn.Module, *, sharded: bool = False, checkpointing: bool = False) -> str | None:
    """Say why the loss of a causal LM, or a PEFT model of one, cannot be taken from its decoder's parts.

    None where it can: then the loss, and an adapter's gradients, are those of the model's own forward pass. Some
    adapters act in `PeftModel.forward` alone. Weights that will be divided over devices (`sharded`) are not run.

    Raises InputError for an adapter that cannot be trained on rows alone.
    """
    if isinstance(plain, PeftModel) and plain.active_peft_config.peft_type == PeftType.CPT:
        raise InputError(f"{describe(plain)} cannot be trained here: CPT's loss is its own; use another kind of prompt")
    if isinstance(plain, PeftModel) and plain.active_peft_config.peft_type in CACHED and checkpointing:
        raise InputError(f"{describe(plain)} puts its tokens into the cache: set gradient_checkpointing to False")
    reason = why_no_decoder(plain)
    if sharded:
        return reason
    trained = [p for p in plain.parameters() if p.requires_grad] if isinstance(plain, PeftModel) else []
    model = TermsModel(plain, [NextToken()])
    both: list[list[Tensor]] = []  # loss and gradients, from the parts and from the own forward pass
    try:
        with at_rest(plain):
            tokens = some_tokens(plain)[None]
            labels = tokens.clone()
            labels[:, 0] = IGNORE  # only a virtual token predicts it
            for model.own_forward in (False, True) if reason is None else (True,):
                with torch.set_grad_enabled(bool(trained)):
                    loss = model(tokens, labels=labels, step=Step()).loss
                gradients = [torch.zeros_like(parameter) for parameter in trained]
                if loss.requires_grad:
                    gradients = list(torch.autograd.grad(loss, trained, materialize_grads=True))
                both.append([loss.detach(), *gradients])
    except (TypeError, ValueError) as error:
        raise InputError(f"{describe(plain)} cannot be trained: {' '.join(str(error).split())}") from error
    if reason is None and not all(close(one, other) for one, other in zip(*both, strict=True)):
        reason = f"{describe(plain)} computes more than its decoder's layers do"
    return reason


def why_no_decoder(plain: nn.Module) -> str | None:
    try:
        Decoder(plain)
    except InputError as error:
        return str(error)
    return None


def describe(plain: nn.Module) -> str:
    """Name the model's class and its adapter's type."""
    kind = f" with {plain.active_peft_config.peft_type.value}" if isinstance(plain, PeftModel) else ""
    return type(plain_model(plain)).__name__ + kind


def some_tokens(plain: nn.Module) -> Tensor:
    """Make tokens [time] int64 on the model's device, among them those that an activated LoRA waits for."""
    model = plain_model(plain)
    device = model.get_input_embeddings().weight.device
    awaited = getattr(getattr(plain, "active_peft_config", None), "alora_invocation_tokens", None) or []
    tokens = torch.arange(TOKENS, device=device) % int(model.config.get_text_config().vocab_size)
    return torch.cat([tokens[:2], tokens.new_tensor(awaited), tokens[2:]])


@torch.no_grad()
def check_packing(model: nn.Module, plain: nn.Module, collate: Callable[[list[Any]], Any]) -> None:
    """Prove that rows which `collate` lays into one line do not change one another. Raises InputError where they do.

    model: `plain` in its wrappers.
    """
    tokens = some_tokens(plain)
    first, other, row = tokens.tolist(), tokens.flip(0).tolist(), tokens.roll(1).tolist()

    def logits(*rows: list[int]) -> Tensor:
        """Logits of the last row."""
        batch = collate([{"input_ids": each, "labels": each} for each in rows])
        inputs = {k: v.to(tokens.device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}
        return model(**inputs, use_cache=False).logits[0, -len(row) :]

    advice = "leave packing and padding_free off"
    try:
        with at_rest(model):
            alone = model(input_ids=tokens.roll(1)[None], use_cache=False).logits[0, -len(row) :]
            packed, after_other = logits(first, row), logits(other, row)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{describe(plain)} does not take rows in one line ({reason}): {advice}") from error
    # Packed twice, a row is computed in one way, so that rounding hides little in half precision.
    if not close(packed, alone) or not close(after_other, packed, 0.01):
        raise InputError(f"the rows in one line see each other in {describe(plain)}: {advice}")


def close(one: Tensor, other: Tensor, half_tolerance: float = 0.05) -> bool:
    """Tell whether two tensors are equal but for rounding. A NaN passes here: training stops at it."""
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else half_tolerance
    one, other = one.double(), other.double()
    return not (one - other).norm() > tolerance * torch.maximum(one.norm(), other.norm())
