"""A loss is a sum of terms.

    L = Σ_terms weight · s(t) · value

    per = "token":  value = Σ sum / N, with N the supervised tokens of the optimizer step
    per = "step":   value = mean of sum / count over the passes of the optimizer step

Both are over all devices and accumulated batches. A term computes `sum` and `count` of one forward pass; all else is
done for it (graftlm/tuning/model.py, graftlm/tuning/trainer.py): weights and schedules, normalisation, the log, which
text of its own it reads at which step, also after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from graftlm.heads.loss import IGNORE, document_ids, rows_loss, shifted_targets
from graftlm.models.decoder import Decoder, LayerCall
from graftlm.models.linear_cross_entropy import LinearCrossEntropy
from graftlm.tuning.terms.settings import TermSettings


@dataclass(frozen=True)
class TermOutput:
    """Value of a term in one forward pass: `sum` (scalar) carries the gradient; `log` has a sum and a count for each
    name in the log, whose quotient over many passes is logged."""

    sum: Tensor
    count: int
    log: Mapping[str, tuple[Tensor, int]]


@dataclass(frozen=True)
class Step:
    """The optimizer step that a forward pass is part of.

    number, total: steps before this one, and of the whole run.
    normaliser: N, the supervised tokens of the step.
    share: part of the step that the pass is: 1 / (passes over accumulation and devices).
    index: number of the pass among all of the run, over devices.
    """

    number: int = 0
    total: int = 1
    normaliser: Tensor | float = 1.0
    share: float = 1.0
    index: int = 0


class StepCounter:
    """Makes the `Step` of each forward pass of a Hugging Face trainer.

    The index is a function of the optimizer step and of the pass in it, so that a resumed run reads the same texts.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._last = (-1, 0)

    def next(self, *, normaliser: Tensor | float = 1.0, devices: int = 1) -> Step:
        """Step of the next pass in training. devices: over how many the loss is summed, not averaged."""
        trainer, number = self.trainer, self.trainer.state.global_step
        place = self._last[1] + 1 if self._last[0] == number else 0
        self._last = (number, place)
        # Set by the training loop; the last accumulation of an epoch may be shorter.
        passes = getattr(trainer, "current_gradient_accumulation_steps", 1)
        index = number * trainer.args.gradient_accumulation_steps + place
        return Step(
            number=number,
            total=trainer.state.max_steps or 1,
            normaliser=normaliser,
            share=1 / passes / devices,
            index=index * trainer.accelerator.num_processes + trainer.accelerator.process_index,
        )


@dataclass
class Pass:
    """One forward pass of `model`, a causal LM or a PEFT model of one: what it was given and what it gave.

    labels, attention_mask, position_ids, token_weights: [batch, time], where given.
    final_states: [batch, time, hidden], after the final norm. call: what the layer at `Term.tap` was called with.
    logits: [batch, time, vocabulary], only where the loss cannot be taken from the decoder's parts; those two are None
        then.
    router_loss: balancing loss of a mixture of experts, where a term asks for it.
    sharded: the parameters are divided over devices (FSDP, ZeRO).
    """

    model: nn.Module
    step: Step
    labels: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    token_weights: Tensor | None = None
    final_states: Tensor | None = None
    call: LayerCall | None = None
    logits: Tensor | None = None
    router_loss: Tensor | None = None
    sharded: bool = False

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.model)

    def targets(self, head: int) -> Tensor:
        """Targets [batch, time] of head `head` (0: the model's own), −100 where there is none."""
        assert self.labels is not None
        return shifted_targets(self.labels, head, self.attention_mask, self._documents)

    @cached_property
    def _documents(self) -> Tensor | None:
        return document_ids(self.position_ids)

    @cached_property
    def _own_targets(self) -> Tensor:
        return self.targets(0)

    @cached_property
    def predicted(self) -> Tensor:
        """Positions [batch, time] (bool) at which the model's own head has a target."""
        return self._own_targets != IGNORE

    @cached_property
    def next_token(self) -> LinearCrossEntropy:
        """The model's own predictions at `predicted`."""
        assert self.final_states is not None
        rows = self.final_states[self.predicted]
        ones = torch.ones(len(rows), device=rows.device, dtype=torch.promote_types(rows.dtype, torch.float32))
        return rows_loss(self.decoder, rows, self._own_targets[self.predicted], ones, with_entropy=True)


class Term:
    """One summand of the loss. A new one is a subclass in a file of its own, named in `TERMS`.

    per: what its sum is divided by (see above).
    needs_labels: it reads supervised labels; `reinforce` has none.
    needs_decoder: it reads the decoder's parts; False lets it act with adapters that work in PEFT's own forward only.
    when_sharded: it can be used where the weights are divided over devices (FSDP, ZeRO).
    when_evaluating: it is computed in evaluation as well, for the log; the loss there is the next-token loss alone.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[TermSettings]] = TermSettings
    per: ClassVar[Literal["token", "step"]] = "step"
    needs_labels: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = True
    when_sharded: ClassVar[bool] = True
    when_evaluating: ClassVar[bool] = False

    def __init__(self, settings: TermSettings | None = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @property
    def tap(self) -> int:
        """The layer whose call it reads, counted from the end."""
        return -1

    @property
    def has_trained_weights(self) -> bool:
        """Whether weights of its own need a gradient, be it zero: DDP waits for one of every trained parameter."""
        return False

    def prepare(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Called once, before training, with the model as it will be trained (adapter added, layers frozen)."""

    def forward(self, given: Pass) -> TermOutput:
        raise NotImplementedError


def weighted(term: Term, output: TermOutput, step: Step) -> Tensor:
    """The summand (scalar with gradient) that `term` adds to the loss of one pass."""
    weight = term.settings.weight_at(step.number, step.total)
    if term.per == "token":
        return weight * output.sum / step.normaliser
    return weight * step.share * output.sum / output.count
