"""The next-token loss: the negative log-likelihood of the supervised tokens, as in any supervised fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftlm.heads.loss import IGNORE, document_ids, shifted_targets
from graftlm.tuning.terms.base import Pass, Term, TermOutput

NEXT_TOKEN_LOSS = "next_token_loss"


class NextToken(Term):
    """Σ NLL of the supervised tokens, with TRL's `mean_token_accuracy` and `entropy` in the log."""

    name = "next_token"
    per = "token"
    needs_labels = True
    needs_decoder = False
    when_evaluating = True

    def forward(self, given: Pass) -> TermOutput:
        if given.logits is not None:
            return loss_of_logits(given, given.logits)
        own = given.next_token
        return with_log(own.loss, len(own.nll), own.nll.sum(), own.correct.sum(), own.entropy.sum())


def with_log(loss: Tensor, count: int, nll: Tensor, correct: Tensor, entropy: Tensor) -> TermOutput:
    log = {NEXT_TOKEN_LOSS: (nll, count), "mean_token_accuracy": (correct, count), "entropy": (entropy, count)}
    return TermOutput(loss, count, log)


def loss_of_logits(given: Pass, logits: Tensor) -> TermOutput:
    """The next-token loss of the logits of the model's own forward pass. They may have more columns than the labels:
    virtual tokens before the others."""
    assert given.labels is not None
    labels = nn.functional.pad(given.labels, (logits.shape[1] - given.labels.shape[1], 0), value=IGNORE)
    target = shifted_targets(labels, 0, document_ids=document_ids(given.position_ids))
    predicted = target != IGNORE
    rows = logits[predicted]
    log_probabilities = torch.log_softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
    loss = nn.functional.nll_loss(log_probabilities, target[predicted], reduction="sum")
    with torch.no_grad():
        entropy = -(log_probabilities.exp() * log_probabilities).sum()
        correct = (log_probabilities.argmax(-1) == target[predicted]).sum()
    return with_log(loss, len(rows), loss.detach(), correct, entropy)


class Routers(Term):
    """The balancing loss of a mixture of experts' routers, as TRL adds it."""

    name = "routers"
    needs_decoder = False
    when_evaluating = True

    def forward(self, given: Pass) -> TermOutput:
        loss: Any = given.router_loss
        return TermOutput(loss, 1, {"aux_loss": (loss.detach(), 1)})
