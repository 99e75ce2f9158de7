"""A model and its heads as one module, whose forward pass is the multi-token loss.

Everything that reads a parameter happens inside `forward`, so that DDP, FSDP and DeepSpeed wrap it like any module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import IGNORE, document_ids, rows_loss, self_weights, shifted_targets
from graftlm.models.decoder import Decoder
from graftlm.models.linear_cross_entropy import LinearCrossEntropy
from graftlm.tuning.anchor import AnchorBatch, anchor_divergence
from graftlm.tuning.auxiliary_loss import auxiliary_loss
from graftlm.tuning.config import Weighting


@dataclass
class MultiTokenOutput:
    """`loss` = Σ_k coefficients[k] · loss_sums[k] / normaliser carries the gradient; the rest is for the log."""

    loss: Tensor  # scalar
    loss_sums: Tensor  # [K + 1] NLL in nats, summed over each head's targets, unweighted
    target_counts: Tensor  # [K + 1] int64
    entropy_sum: Tensor  # scalar: of the model's own predictions at the supervised positions, nats
    correct_count: Tensor  # scalar int64: where its most likely token is the target
    anchor_divergence: Tensor | None = None  # scalar: mean KL(base ‖ tuned) per position, nats
    router_loss: Tensor | None = None  # scalar with gradient: the routers' balancing loss of a mixture of experts


class MultiTokenModel(nn.Module):
    """`model` (a causal LM or a PEFT model of one) with its `heads` beside it; attributes fall through to `model`.

    sharded: the parameters are divided over devices (FSDP, ZeRO).
    routers: the balancing loss of a mixture of experts' routers is wanted besides.
    own_forward: the loss is taken from the logits of `model`'s own forward pass, in whose parts it cannot be found
        (prompt tuning, say); there are no heads then.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: MultiTokenHeads | None,
        *,
        weights: Weighting = "uniform",
        forking_fraction: float = 0.2,
        sharded: bool = False,
        routers: bool = False,
        own_forward: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        self.weights: Weighting = weights
        self.forking_fraction = forking_fraction
        self.sharded = sharded
        self.routers = routers
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
        normaliser: Tensor | float = 1.0,
        coefficients: Sequence[float] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_weights: Tensor | None = None,
        anchor: AnchorBatch | None = None,
        anchor_weight: float = 0.0,
        **inputs: Any,
    ) -> Any:
        """The multi-token loss of one batch (MultiTokenOutput); without coefficients, what `model` itself returns.

        Args:
            input_ids, labels: [batch, time] int64; labels −100 where not supervised.
            normaliser: N, the supervised tokens of the whole optimizer step.
            coefficients: K + 1 weights of the heads' losses, the model's own first. Frozen auxiliary heads whose
                weights are all 0 are not run.
            attention_mask: [batch, time], 0 at padding, or None.
            position_ids: [batch, time] of packed rows, or None.
            token_weights: [batch, time] weights of the tokens in the auxiliary losses (`weights` "importance").
            anchor: general text on which anchor_weight · KL(base ‖ tuned) is added.
            inputs: passed on to the model's backbone.
        """
        if not coefficients:
            inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
            return self.model(labels=labels, **{k: v for k, v in inputs.items() if v is not None})
        assert input_ids is not None and labels is not None
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.own_forward:
            return self._own_loss(labels, normaliser, inputs)
        decoder = Decoder(self.model)
        heads = self.heads if any(coefficients[1:]) or self._trains_heads() else None
        tap, router_loss = heads.tap if heads is not None else -1, None
        if self.routers:
            final, call, router_loss = decoder.run_with_routers(self.model, tap, **inputs)
        else:
            final, call = decoder.run(tap, **inputs)
        documents = document_ids(position_ids)
        target = shifted_targets(labels, 0, attention_mask, documents)
        kept = target != IGNORE
        rows = final[kept]
        precision = torch.promote_types(rows.dtype, torch.float32)
        weights = torch.full((len(rows),), coefficients[0], device=rows.device, dtype=precision) / normaliser
        own = rows_loss(decoder, rows, target[kept], weights, with_entropy=True)
        loss, sums, counts = own.loss, [own.nll.sum()], [len(rows)]
        if heads is not None:
            weight_of_token = self._token_weights(kept, own, token_weights)
            targets = [shifted_targets(labels, k, attention_mask, documents) for k in range(1, heads.num_heads + 1)]
            auxiliary = auxiliary_loss(
                heads,
                decoder,
                call,
                targets,
                [_ahead(weight_of_token, k) for k in range(1, heads.num_heads + 1)],
                coefficients[1:],
                sharded=self.sharded,
            )
            loss = loss + auxiliary.loss / normaliser
            sums += auxiliary.nll_sums
            counts += auxiliary.target_counts
        divergence = None
        if anchor is not None:
            divergence = anchor_divergence(decoder, anchor)
            loss = loss + anchor_weight * divergence
            divergence = divergence.detach()
        return MultiTokenOutput(
            loss=loss,
            loss_sums=torch.stack(sums).detach(),
            target_counts=torch.tensor(counts, device=loss.device),
            entropy_sum=own.entropy.sum(),
            correct_count=own.correct.sum(),
            anchor_divergence=divergence,
            router_loss=router_loss,
        )

    def _own_loss(self, labels: Tensor, normaliser: Tensor | float, inputs: dict[str, Any]) -> MultiTokenOutput:
        """The next-token loss of the logits that `model` gives. They may have more columns than `labels`: virtual
        tokens before the others."""
        routers = {"output_router_logits": True} if self.routers else {}
        outputs = self.model(**inputs, **routers, use_cache=False)
        labels = nn.functional.pad(labels, (outputs.logits.shape[1] - labels.shape[1], 0), value=IGNORE)
        target = shifted_targets(labels, 0, document_ids=document_ids(inputs.get("position_ids")))
        kept = target != IGNORE
        rows = outputs.logits[kept]
        log_probabilities = torch.log_softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
        loss_sum = nn.functional.nll_loss(log_probabilities, target[kept], reduction="sum")
        with torch.no_grad():
            entropy_sum = -(log_probabilities.exp() * log_probabilities).sum()
            correct = (log_probabilities.argmax(-1) == target[kept]).sum()
        return MultiTokenOutput(
            loss=loss_sum / normaliser,
            loss_sums=loss_sum.detach()[None],
            target_counts=kept.sum()[None],
            entropy_sum=entropy_sum,
            correct_count=correct,
            router_loss=outputs.aux_loss if self.routers else None,
        )

    def _trains_heads(self) -> bool:
        """Whether the heads need a gradient, be it zero: DDP waits for one of every trained parameter."""
        if self.heads is None or not torch.is_grad_enabled():
            return False
        return any(parameter.requires_grad for parameter in self.heads.parameters())

    def _token_weights(self, predicted: Tensor, own: LinearCrossEntropy, given: Tensor | None) -> Tensor:
        """Weight [batch, time] of each token as an auxiliary target; the rows of `own` lie at `predicted`."""
        if self.weights == "importance" and given is not None:
            return given
        if self.weights in ("uniform", "importance"):
            return torch.ones_like(predicted, dtype=own.nll.dtype)
        weights = torch.zeros_like(predicted, dtype=own.nll.dtype)
        weights[predicted] = self_weights(self.weights, own, self.forking_fraction)
        # A position's row predicts the token after it.
        return torch.nn.functional.pad(weights[:, :-1], (1, 0))


def _ahead(weights: Tensor, head: int) -> Tensor:
    """`weights` [batch, time] of tokens, seen from the position k + 1 before each."""
    shift = head + 1
    return torch.nn.functional.pad(weights[:, shift:], (0, min(shift, weights.shape[1])))
