"""The KL anchor: general text on which the tuned model is held to what the base model said.

    kl_anchor = mean_t KL(base(· | x_<t) ‖ tuned(· | x_<t))

The base model's final hidden states are computed once, before training (adapters off, where there are any), so no
second copy of the model and no second forward pass is needed; only where the unembedding itself is trained is that one
matrix copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftlm.data.encoding import encode_text
from graftlm.data.load import general_text, load_rows
from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import linear_kl_divergence
from graftlm.models.modes import at_rest
from graftlm.tuning.terms.base import Pass, Term, TermOutput
from graftlm.tuning.terms.settings import KLAnchorSettings


@dataclass
class AnchorBatch:
    """input_ids, attention_mask: [batch, time]; base_rows: [rows, hidden], the base model's final hidden states at
    the positions that are not padding."""

    input_ids: Tensor
    attention_mask: Tensor
    base_rows: Tensor


class KLAnchor(Term):
    """Mean KL(base ‖ tuned) in nats per position of a batch of general text; the batches go round.

    texts: the text, where it is at hand; else `settings.data` says where it is from.
    """

    name = "kl_anchor"
    Settings = KLAnchorSettings
    settings: KLAnchorSettings

    def __init__(
        self,
        settings: KLAnchorSettings | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 4,
        max_length: int = 128,
    ) -> None:
        super().__init__(settings)
        self.texts = anchor_texts(self.settings.data) if texts is None else texts
        self.batch_size = batch_size
        self.max_length = max_length

    def prepare(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises InputError where there is no text, or where the base model cannot be had from an adapted one."""
        encoded = [encode_text(tokenizer, text)[: self.max_length] for text in self.texts]
        encoded = sorted((ids for ids in encoded if ids), key=len)
        if not encoded:
            raise InputError("the anchor's text is empty: --anchor-data needs at least one row of text")
        decoder = Decoder(model)
        self.base_weight, self.base_bias = (unchanging(each) for each in unembedding_of(decoder))
        with base_model(model):
            self.batches = [
                anchor_batch(decoder, encoded[start : start + self.batch_size])
                for start in range(0, len(encoded), self.batch_size)
            ]

    def batch(self, index: int) -> AnchorBatch:
        return self.batches[index % len(self.batches)]

    def forward(self, given: Pass) -> TermOutput:
        batch, decoder = self.batch(given.step.index), given.decoder
        final, _ = decoder.run(-1, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        rows = final[batch.attention_mask.bool()]
        weight, bias = unembedding_of(decoder)
        assert weight is not None and self.base_weight is not None
        divergence = linear_kl_divergence(
            batch.base_rows, self.base_weight, rows, weight, bias=bias, reference_bias=self.base_bias,
            logit_scale=decoder.logit_scale, logit_softcap=decoder.logit_softcap,
        )  # fmt: skip
        return TermOutput(divergence, len(rows), {"anchor_divergence": (divergence.detach() / len(rows), 1)})


def anchor_texts(data: str | None) -> Sequence[str]:
    """The `text` rows of `data`, or the bundled general text."""
    if data is None:
        return general_text()
    rows = load_rows(data)
    if "text" not in rows.column_names:
        raise InputError(f"--anchor-data {data} has no text rows (it has {', '.join(rows.column_names)})")
    return list(rows["text"])


def unembedding_of(decoder: Decoder) -> tuple[Tensor | None, Tensor | None]:
    """Weight [vocabulary, hidden] and bias [vocabulary], if there is one."""
    return decoder.unembedding.weight, getattr(decoder.unembedding, "bias", None)


def unchanging(parameter: Tensor | None) -> Tensor | None:
    """`parameter` itself if it is frozen, else a copy."""
    if parameter is None:
        return None
    return parameter.detach().clone() if parameter.requires_grad else parameter.detach()


def anchor_batch(decoder: Decoder, encoded: Sequence[list[int]]) -> AnchorBatch:
    width, device = max(map(len, encoded)), decoder.unembedding.weight.device
    ids = torch.tensor([row + [0] * (width - len(row)) for row in encoded], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded], device=device)
    final, _ = decoder.run(-1, input_ids=ids, attention_mask=mask)
    return AnchorBatch(ids, mask, final[mask.bool()])


@contextmanager
def base_model(model: Any) -> Iterator[None]:
    """Within, `model` is the base model in evaluation mode, without gradients: its adapter is off.

    Raises InputError for an adapter that leaves something of itself when it is switched off.
    """
    if isinstance(model, PeftModel) and (altered := lasting_alteration(model)) is not None:
        raise InputError(
            f"the adapter has {altered}, which switching it off does not undo: the anchor does not know the base "
            "model; leave out the anchor, or merge the adapter first"
        )
    # Switched on again, PEFT makes every parameter of the adapter trainable; `at_rest` puts that back.
    with at_rest(model), torch.no_grad(), model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield
