"""Expert and anti-expert: two models, or one small model with and without an adapter in one batched forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn
from transformers import Cache

from graftlm.decoding.batches import has_virtual_tokens
from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.proxy.cache import ProxyCache
from graftlm.proxy.paired_adapter import PairedAdapter, uses_dora

Caches = list[Cache] | None
Kept = int | Tensor
"""Positions whose logits are computed, as `logits_to_keep` of any model: the last ones (0: all), or their indices."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input of one model: new tokens [rows, time], the mask of all so far [rows, past + time] or None, and the
    positions of the new ones [rows, time] or None."""

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None

    def to(self, device: torch.device) -> Inputs:
        moved: Any = {name: None if tensor is None else tensor.to(device) for name, tensor in vars(self).items()}
        return Inputs(**moved)


class Experts(nn.Module, ABC):
    """Both models of the offset.

    `shared`: one model is both, and reads for both in one pass.
    """

    shared: ClassVar[bool]
    expert_model: Any
    antiexpert_model: Any

    @abstractmethod
    def logits(self, expert: Inputs, antiexpert: Inputs, caches: Caches, kept: Kept) -> tuple[Tensor, Tensor]:
        """Logits [rows, kept, vocabulary] of expert and anti-expert, each on its own device."""

    def offset(self, expert: Inputs, antiexpert: Inputs, caches: Caches, kept: Kept) -> Tensor:
        """s_M+ - s_M- [rows, kept, vocabulary], on the expert's device, in float32 or better."""
        plus, minus = self.logits(expert, antiexpert, caches, kept)
        width, dtype = min(plus.shape[-1], minus.shape[-1]), torch.promote_types(plus.dtype, torch.float32)
        return plus[..., :width].to(dtype) - minus[..., :width].to(plus.device, dtype)

    def models(self) -> list[Any]:
        """Those that read, each with a cache of its own: one, or expert and anti-expert."""
        return [self.expert_model] if self.shared else [self.expert_model, self.antiexpert_model]


class SeparateExperts(Experts):
    """Two models, each on its own device and in its own dtype."""

    shared = False

    def __init__(self, expert: Any, antiexpert: Any) -> None:
        super().__init__()
        if any(map(has_virtual_tokens, (expert, antiexpert))):
            raise InputError("prompt and prefix tuning have tokens of their own before the prompt: give another expert")
        self.expert_model, self.antiexpert_model = expert, antiexpert

    def logits(self, expert: Inputs, antiexpert: Inputs, caches: Caches, kept: Kept) -> tuple[Tensor, Tensor]:
        first, second = caches or (None, None)
        return (
            run(self.expert_model, expert, first, kept).logits,
            run(self.antiexpert_model, antiexpert, second, kept).logits,
        )


class SharedExperts(Experts):
    """A small model with a LoRA adapter: the expert has it on, the anti-expert off, in the same forward pass."""

    shared = True

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        if (kind := not_switchable(model)) is not None:
            raise InputError(f"an adapter with {kind} cannot be switched off row by row: merge it, and give expert and "
                             "anti-expert as two models")  # fmt: skip
        self.expert_model = self.antiexpert_model = model
        self.paired = PairedAdapter(model) if PairedAdapter.fits(model) else None
        """The faster way; other kinds of adapters go through PEFT's own."""
        if self.paired is None:
            ids = torch.zeros(2, 1, dtype=torch.long)
            try:
                self._run(Inputs(input_ids=ids, attention_mask=None, position_ids=None), None, 1, rows=1)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"an adapter that cannot be switched off row by row: {' '.join(str(error).split())}"
                ) from error

    def logits(self, expert: Inputs, antiexpert: Inputs, caches: Caches, kept: Kept) -> tuple[Tensor, Tensor]:
        rows = expert.input_ids.shape[0]
        both = self._run(stacked(expert, antiexpert), caches[0] if caches else None, kept, rows)
        return both[:rows], both[rows:]

    def offset(self, expert: Inputs, antiexpert: Inputs, caches: Caches, kept: Kept) -> Tensor:
        """With one unembedding for both where that is the same."""
        if self.paired is None or not self.paired.is_linear:
            return super().offset(expert, antiexpert, caches, kept)
        rows = expert.input_ids.shape[0]
        inputs = stacked(expert, antiexpert).to(self.expert_model.device)
        with self.paired.adapted(rows, len(inputs.input_ids)):
            hidden = self.paired.hidden_states(
                **vars(inputs), past_key_values=caches[0] if caches else None, use_cache=caches is not None
            )
        hidden = hidden[:, slice(-kept, None) if isinstance(kept, int) else kept]
        return self.paired.unembed(hidden[:rows] - hidden[rows:])

    def _run(self, inputs: Inputs, cache: Cache | None, kept: Kept, rows: int) -> Tensor:
        """The first `rows` rows with the adapter."""
        if self.paired is None:
            names = [self.expert_model.active_adapter] * rows + ["__base__"] * (inputs.input_ids.shape[0] - rows)
            output = run(self.expert_model, inputs, cache, kept, adapter_names=names)
        else:
            with self.paired.adapted(rows, len(inputs.input_ids)):
                output = run(self.paired.model, inputs, cache, kept)
        logits: Tensor = output.logits
        return logits


def not_switchable(model: PeftModel) -> str | None:
    """The part of an adapter that PEFT would leave on in rows that are to be without it; None without one."""
    config = model.active_peft_config
    if has_virtual_tokens(model):
        return "tokens before the prompt"
    if config.peft_type != PeftType.LORA:
        return f"other weights than LoRA's ({config.peft_type.value})"
    return "DoRA" if uses_dora(model) else lasting_alteration(model)


def run(model: Any, inputs: Inputs, cache: Cache | None, kept: Kept, **options: Any) -> Any:
    """The output of `model`, with logits [rows, kept, vocabulary]."""
    return model(
        **vars(inputs.to(model.device)),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=kept,
        return_dict=True,
        **options,
    )


def stacked(first: Inputs, second: Inputs) -> Inputs:
    """The rows of both; the shorter ones are padded on the left, which the mask hides."""

    def joined(*parts: Tensor | None) -> Tensor | None:
        given = [part for part in parts if part is not None]
        if len(given) < len(parts):
            return None
        width = max(part.shape[1] for part in given)
        return torch.cat([nn.functional.pad(part, (width - part.shape[1], 0)) for part in given])

    both: Any = {name: joined(part, getattr(second, name)) for name, part in vars(first).items()}
    return Inputs(**both)


def with_own_prompt(inputs: Inputs, cache: ProxyCache, ids: Tensor, mask: Tensor | None) -> tuple[Inputs, Inputs]:
    """The inputs of expert and anti-expert in a pass, where the expert has a prompt `ids` of its own, which it reads in
    the first one. `cache` has begun the pass."""
    rows, time = inputs.input_ids.shape
    past = cache.get_seq_length()
    generated = past + time - cache.prompt_length
    own_mask = torch.ones_like(ids) if mask is None else mask
    own_mask = torch.cat([own_mask, own_mask.new_ones(rows, generated)], dim=-1)
    shared_mask = inputs.attention_mask
    if shared_mask is None:
        shared_mask = inputs.input_ids.new_ones(rows, past + time)
    return _placed(inputs.input_ids if past else ids, own_mask), _placed(inputs.input_ids, shared_mask)


def _placed(ids: Tensor, mask: Tensor) -> Inputs:
    """Positions count the tokens that are no padding."""
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return Inputs(input_ids=ids, attention_mask=mask, position_ids=positions)
