"""The KL anchor: general text on which the tuned model is held to what the base model said.

    anchor = mean_t KL(base(· | x_<t) ‖ tuned(· | x_<t))

The base model's final hidden states are computed once, before training (adapters off, where there are any), so no
second copy of the model and no second forward pass is needed; only where the unembedding itself is trained is that one
matrix copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftlm.data.encoding import encode_text
from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import linear_kl_divergence


@dataclass
class AnchorBatch:
    """input_ids, attention_mask: [batch, time]; base_rows: [rows, hidden], the base model's final hidden states at
    the positions that are not padding; base_weight, base_bias: its unembedding [vocabulary, hidden], [vocabulary]."""

    input_ids: Tensor
    attention_mask: Tensor
    base_rows: Tensor
    base_weight: Tensor
    base_bias: Tensor | None = None


class Anchor:
    """Batches of general text with what the base model made of them; `batch(i)` goes round."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        batch_size: int = 4,
        max_length: int = 128,
    ) -> None:
        if not texts:
            raise InputError("the anchor's text is empty: --anchor-data needs at least one row of text")
        if isinstance(model, PeftModel) and (altered := lasting_alteration(model)) is not None:
            raise InputError(
                f"the adapter has {altered}, which switching it off does not undo: the anchor does not know the base "
                "model; leave out the anchor, or merge the adapter first"
            )
        decoder = Decoder(model)
        weight: Tensor = decoder.unembedding.weight
        bias: Tensor | None = getattr(decoder.unembedding, "bias", None)
        base_weight, base_bias = _as_of_now(weight), None if bias is None else _as_of_now(bias)
        adapters_off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
        encoded = [encode_text(tokenizer, text)[:max_length] for text in texts]
        encoded = sorted((ids for ids in encoded if ids), key=len)
        if not encoded:
            raise InputError("the anchor's text is empty: none of the rows of --anchor-data has a token")
        self.batches: list[AnchorBatch] = []
        was_training = model.training
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.eval()
        with torch.no_grad(), adapters_off:
            for start in range(0, len(encoded), batch_size):
                group = encoded[start : start + batch_size]
                width = max(map(len, group))
                ids = torch.tensor([row + [0] * (width - len(row)) for row in group], device=weight.device)
                mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in group], device=weight.device)
                final, _ = decoder.run(-1, input_ids=ids, attention_mask=mask)
                self.batches.append(AnchorBatch(ids, mask, final[mask.bool()], base_weight, base_bias))
        model.train(was_training)
        # PEFT makes every parameter of an adapter trainable when it switches the adapter on again.
        model.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)

    def batch(self, index: int) -> AnchorBatch:
        return self.batches[index % len(self.batches)]


def _as_of_now(parameter: Tensor) -> Tensor:
    """`parameter` itself if it is frozen, else a copy."""
    return parameter.detach().clone() if parameter.requires_grad else parameter.detach()


def anchor_divergence(decoder: Decoder, anchor: AnchorBatch) -> Tensor:
    """Mean KL(base ‖ tuned) in nats per position of `anchor`; scalar with gradient."""
    final, _ = decoder.run(-1, input_ids=anchor.input_ids, attention_mask=anchor.attention_mask)
    rows = final[anchor.attention_mask.bool()]
    weight: Tensor = decoder.unembedding.weight
    divergence = linear_kl_divergence(
        anchor.base_rows,
        anchor.base_weight,
        rows,
        weight,
        bias=getattr(decoder.unembedding, "bias", None),
        reference_bias=anchor.base_bias,
        logit_scale=decoder.logit_scale,
        logit_softcap=decoder.logit_softcap,
    )
    return divergence / len(rows)
