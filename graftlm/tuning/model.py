"""A model and the terms of its loss as one module, whose forward pass is the loss.

Everything that reads a parameter happens inside `forward`, so that DDP, FSDP and DeepSpeed wrap it like any module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.heads.heads import MultiTokenHeads
from graftlm.tuning.terms.base import Pass, Step, Term, TermOutput, weighted
from graftlm.tuning.terms.multi_token import MultiToken
from graftlm.tuning.terms.next_token import NextToken, Routers
from graftlm.tuning.terms.settings import FORKING_FRACTION, MultiTokenSettings, Weighting


@dataclass
class TermsOutput:
    """`loss` (scalar) carries the gradient; `log` has a sum and its count ([2] float64) for each name in the log."""

    loss: Tensor
    log: dict[str, Tensor]


class TermsModel(nn.Module):
    """`model` (a causal LM or a PEFT model of one) with the terms of its loss; attributes fall through to `model`.

    sharded: the parameters are divided over devices (FSDP, ZeRO).
    own_forward: the loss is taken from the logits of `model`'s own forward pass, in whose parts it cannot be found
        (prompt tuning, say); no term may need the decoder then.
    """

    def __init__(
        self, model: nn.Module, terms: Sequence[Term], *, sharded: bool = False, own_forward: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = next((term.heads for term in terms if isinstance(term, MultiToken)), None)
        self.terms = list(terms)
        self.sharded = sharded
        self.own_forward = own_forward

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,  # the order of the others differs between models
        labels: Tensor | None = None,
        step: Step | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_weights: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """The loss of one batch (TermsOutput); without a step, what `model` itself returns.

        In evaluation mode only the terms are computed that are logged then.

        Args:
            input_ids, labels: [batch, time] int64; labels −100 where not supervised.
            step: the optimizer step that the batch is part of. In training, terms whose weight is 0 are not computed.
            attention_mask: [batch, time], 0 at padding, or None.
            position_ids: [batch, time] of packed rows, or None.
            token_weights: [batch, time] weights of the tokens in the auxiliary losses (`token_weights` "importance").
            inputs: passed on to the model's backbone.
        """
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if step is None:
            return self.model(labels=labels, **{k: v for k, v in inputs.items() if v is not None})
        terms = [term for term in self.terms if self._is_computed(term, step)]
        given = Pass(self.model, step, labels, attention_mask, position_ids, token_weights, sharded=self.sharded)
        self._run(given, terms, inputs)
        outputs = [term.forward(given) for term in terms]
        loss = torch.stack([weighted(term, each, step) for term, each in zip(terms, outputs, strict=True)]).sum()
        return TermsOutput(loss, log_of(outputs))

    def _is_computed(self, term: Term, step: Step) -> bool:
        if not self.training:
            return term.when_evaluating
        trained = term.has_trained_weights and torch.is_grad_enabled()
        return trained or term.settings.weight_at(step.number, step.total) > 0

    def _run(self, given: Pass, terms: Sequence[Term], inputs: Mapping[str, Any]) -> None:
        """Run the model on `inputs`, and note in `given` what it gave."""
        tap = min(term.tap for term in terms)
        routers = any(isinstance(term, Routers) for term in terms)
        if self.own_forward:
            wanted = {"output_router_logits": True} if routers else {}
            outputs = self.model(**inputs, **wanted, use_cache=False)
            given.logits = outputs.logits
            given.router_loss = outputs.aux_loss if routers else None
        elif routers:
            given.final_states, given.call, given.router_loss = given.decoder.run_with_routers(
                self.model, tap, **inputs
            )
        else:
            given.final_states, given.call = given.decoder.run(tap, **inputs)


def log_of(outputs: Sequence[TermOutput]) -> dict[str, Tensor]:
    """Name in the log -> a sum and its count, [2] float64 without gradient."""
    entries = {name: entry for output in outputs for name, entry in output.log.items()}
    sums = torch.stack([total.detach().double() for total, _ in entries.values()])
    counts = torch.tensor([count for _, count in entries.values()], dtype=torch.float64, device=sums.device)
    return dict(zip(entries, torch.stack([sums, counts], dim=1), strict=True))


class MultiTokenModel(TermsModel):
    """`TermsModel` of the next-token loss and, where there are `heads`, of theirs."""

    def __init__(
        self,
        model: nn.Module,
        heads: MultiTokenHeads | None,
        *,
        weights: Weighting = "uniform",
        forking_fraction: float = FORKING_FRACTION,
        **options: Any,
    ) -> None:
        settings = MultiTokenSettings(token_weights=weights, forking_fraction=forking_fraction)
        super().__init__(model, [NextToken(), *([MultiToken(settings, heads)] if heads else [])], **options)
