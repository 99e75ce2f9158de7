"""TRL's SFTTrainer with the multi-token loss.

What is saved is the plain model (or adapter), which loads without graftlm; the heads lie beside it in `heads/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from graftlm.data.encoding import check_no_end
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import IGNORE
from graftlm.models.decoder import Decoder, decoder_layers, plain_model
from graftlm.runs.config import coerce, declared, option, takes_earlier_names, typed_fields
from graftlm.runs.ranges import check_ranges
from graftlm.tuning.config import MULTI_TOKEN_FLAGS, refuse_idle
from graftlm.tuning.model import TermsModel, TermsOutput
from graftlm.tuning.proofs import check_packing, why_not_by_parts
from graftlm.tuning.resuming import ResumableTrainer
from graftlm.tuning.terms.base import Step, StepCounter, Term
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.terms.multi_token import MultiToken
from graftlm.tuning.terms.next_token import NEXT_TOKEN_LOSS, NextToken, Routers
from graftlm.tuning.terms.settings import (
    KLAnchorSettings,
    MultiTokenSettings,
    Schedule,
    TermSettings,
    Weighting,
)
from graftlm.tuning.token_weights import TokenWeightsCollator, align_token_weights
from graftlm.tuning.training import arguments_as

HEADS_FOLDER = "heads"
OF_HEADS = ("train_heads", "heads_learning_rate")


@takes_earlier_names
@dataclass
class MultiTokenConfig(SFTConfig):
    """`trl.SFTConfig` and the settings of the multi-token loss (see `graftlm.tuning.terms.multi_token`).

    Unlike in TRL, bf16 is off by default where there is no GPU: CPUs run it many times slower than float32.
    """

    mtp_coefficient: float = declared(MultiTokenSettings, "weight", formerly="coefficient")
    mtp_decay: float = declared(MultiTokenSettings, "decay", formerly="decay")
    mtp_schedule: str = declared(MultiTokenSettings, "schedule", formerly="schedule")
    mtp_weights: str = declared(MultiTokenSettings, "token_weights", formerly="weights")
    forking_fraction: float = declared(MultiTokenSettings, "forking_fraction")
    train_heads: bool = option(False, "Train the heads along instead of keeping them frozen.")
    heads_learning_rate: float | None = option(None, "Learning rate of trained heads; None: the model's.", at_least=0)
    freeze_unembedding: bool = option(False, "Leave the unembedding (and an embedding tied to it) as it is.")
    protect_layers: float = option(
        0.0, "Share of the layers, from the bottom, that is left untouched.", at_least=0, below=1
    )
    anchor_weight: float = declared(KLAnchorSettings, "weight", default=0.0)

    def __post_init__(self) -> None:
        bf16: bool | None = self.bf16  # type: ignore[has-type]
        if bf16 is None and not self.fp16 and not torch.cuda.is_available():
            self.bf16 = False
        super().__post_init__()
        check_ranges(self, prefix="")
        self.multi_token_settings()
        cut = self.packing or self.padding_free or self.truncation_mode == "keep_end"
        if self.mtp_weights == "importance" and cut:
            raise InputError("mtp_weights 'importance' excludes packing, padding_free and truncation_mode 'keep_end'")
        if self.loss_type != "nll":
            raise InputError(f"loss_type={self.loss_type!r} is not supported with the multi-token loss: use 'nll'")
        if self.label_smoothing_factor:
            raise InputError("label_smoothing_factor is not supported with the multi-token loss: set it to 0")

    def multi_token_settings(self) -> MultiTokenSettings:
        """Settings of the multi-token term. Raises InputError for a wrong word or number."""
        types = {field.name: annotation for field, annotation in typed_fields(MultiTokenSettings)}
        given = {name: coerce(getattr(self, flag), types[name], flag) for flag, name in MULTI_TOKEN_FLAGS.items()}
        return MultiTokenSettings(**given)


class MultiTokenTrainer(ResumableTrainer, SFTTrainer):
    """Supervised fine-tuning with auxiliary heads; all of SFTTrainer's arguments, and these:

    Args:
        args: a MultiTokenConfig, or TRL's or transformers' arguments, completed with MultiTokenConfig's defaults.
        heads: heads grown on `model`, or a folder of them. None trains next-token only.
        anchor_texts: general text for the KL anchor; needed where `anchor_weight` > 0.
        terms: further terms of the loss (graftlm/tuning/terms).

    Raises InputError for heads of another model and for settings that contradict each other.
    """

    args: MultiTokenConfig
    model: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        heads: MultiTokenHeads | str | os.PathLike[str] | None = None,
        anchor_texts: Sequence[str] | None = None,
        terms: Sequence[Term] = (),
        **trainer_kwargs: Any,
    ) -> None:
        args = MultiTokenConfig("multi-token") if args is None else arguments_as(MultiTokenConfig, args)
        if args.mtp_weights == "importance":
            args.remove_unused_columns = False  # TRL would drop the weights
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        self._check_arguments(with_heads=heads is not None)
        self.model_accepts_loss_kwargs = True  # the loss is normalised here, whatever the model's own forward takes
        if args.mtp_weights == "importance":
            self._attach_token_weights()
        plain = self.model
        own_terms = [*self._next_token_terms(), *self._multi_token_terms(plain, heads), *self._anchors(anchor_texts)]
        freeze(plain, share=args.protect_layers, unembedding=args.freeze_unembedding)
        self.model = self.model_wrapped = self._with_terms(plain, [*own_terms, *terms])
        # Every trainable parameter has a gradient in each backward pass.
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        self._packing_is_unproved = self.padding_free
        if not self.model.sharded:
            self._prove_packing(self.model)
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self._steps = StepCounter(self)

    @property
    def _text_tokenizer(self) -> Any:
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def _check_arguments(self, *, with_heads: bool) -> None:
        """Refuse with an InputError what TRL takes and this trainer does not."""
        args = self.args
        if self.compute_loss_func is not None:
            raise InputError("compute_loss_func is not supported: the multi-token loss is this trainer's own")
        check_no_end(self._text_tokenizer)
        reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        if reentrant and with_heads:
            raise InputError("gradient_checkpointing_kwargs use_reentrant=True cuts the heads off: leave it unset")
        if args.eval_packing and not self.padding_free and args.packing_strategy != "wrapped":
            raise InputError("eval_packing without packing: the rows in one line would see each other; set both")

    def _next_token_terms(self) -> list[Term]:
        routers = [Routers(TermSettings(weight=self.router_aux_loss_coef))] if self.aux_loss_enabled else []
        return [NextToken(), *routers]

    def _multi_token_terms(
        self, plain: nn.Module, heads: MultiTokenHeads | str | os.PathLike[str] | None
    ) -> list[Term]:
        if heads is None:
            refuse_idle(self.args, [*MULTI_TOKEN_FLAGS, *OF_HEADS], "there are no heads", prefix="")
            return []
        if not isinstance(heads, MultiTokenHeads):
            heads = MultiTokenHeads.from_pretrained(heads, plain)
        weight = Decoder(plain).unembedding.weight
        heads.to(device=weight.device, dtype=weight.dtype).requires_grad_(self.args.train_heads)
        return [MultiToken(self.args.multi_token_settings(), heads)]

    def _anchors(self, texts: Sequence[str] | None) -> list[Term]:
        if self.args.anchor_weight == 0:
            if texts:
                raise InputError("anchor_texts are given, but anchor_weight is 0")
            return []
        if not texts:
            raise InputError("anchor_weight is set, but there are no anchor_texts to hold the model to")
        return [KLAnchor(KLAnchorSettings(weight=self.args.anchor_weight), texts)]

    def _with_terms(self, plain: nn.Module, terms: Sequence[Term]) -> TermsModel:
        """Make the terms ready, and put them to the model. InputError for one that cannot be used with it."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        reason = why_not_by_parts(plain, sharded=sharded, checkpointing=self.args.gradient_checkpointing)
        names = [term.name for term in terms]
        for term in terms:
            if names.count(term.name) > 1:
                raise InputError(f"{term.name} is added twice: leave one out")
            if term.needs_decoder and reason is not None:
                raise InputError(f"{term.name} cannot be used: {reason}; next-token training goes without")
            if sharded and not term.when_sharded:
                raise InputError(f"{term.name} cannot be used where the weights are divided over devices: leave it out")
            term.prepare(plain, self._text_tokenizer)
        return TermsModel(plain, terms, sharded=sharded, own_forward=reason is not None)

    def _attach_token_weights(self) -> None:
        """`token_weights` in the rows and in each batch, from the rows' column `weights` or `importance`."""
        self.data_collator = TokenWeightsCollator(self.data_collator)
        self.train_dataset = align_token_weights(self.train_dataset, self.args.max_length)
        if isinstance(self.eval_dataset, Mapping):
            self.eval_dataset = {n: align_token_weights(d, self.args.max_length) for n, d in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = align_token_weights(self.eval_dataset, self.args.max_length)

    def _prove_packing(self, model: nn.Module) -> None:
        """Once: when the trainer is built or, with weights divided over devices, at the first batch."""
        if self._packing_is_unproved:
            check_packing(model, self.accelerator.unwrap_model(self.model).model, self.data_collator)
        self._packing_is_unproved = False

    # -- loss ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the terms in training; the next-token loss in evaluation, so that eval_loss is the plain NLL."""
        self._prove_packing(model)
        training = self.model.training
        if not training:
            self._leave_out_repeated_rows(inputs["labels"])
        normaliser: Any = num_items_in_batch
        if normaliser is None:
            normaliser = (inputs["labels"][:, 1:] != IGNORE).sum()
        normaliser = torch.as_tensor(normaliser, device=inputs["labels"].device).clamp(min=1)
        shared = self.args.average_tokens_across_devices and num_items_in_batch is not None
        devices = self.accelerator.num_processes if shared else 1
        step = self._steps.next(normaliser=normaliser, devices=devices) if training else Step(normaliser=normaliser)
        given = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
        outputs: TermsOutput = model(**given, step=step)
        self._record("train" if training else "eval", outputs.log)
        if training:
            self._check_finite(outputs.loss, inputs)
            self._count_tokens(inputs)
        # In evaluation a model with virtual tokens may have more targets than labels tell.
        total, count = outputs.log[NEXT_TOKEN_LOSS]
        loss = outputs.loss if training else (total / count.clamp(min=1)).to(outputs.loss.dtype)
        # As in TRL: the normaliser counts all devices' tokens, and DDP averages the gradients over devices.
        loss = loss * devices
        if return_outputs:
            with torch.no_grad():
                plain = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "position_ids")}
                return loss, self.accelerator.unwrap_model(model).model(**plain)
        return loss

    def _check_finite(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; its batch begins with the tokens "
                f"{inputs['input_ids'][0, :12].tolist()}; the last checkpoint is unharmed: lower the learning rate"
            )

    def _count_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen == "no":  # else the training loop counts them
            mask = inputs.get("attention_mask")
            count = inputs["input_ids"].numel() if mask is None else mask.sum()
            count = torch.as_tensor(count, device=inputs["input_ids"].device)
            self.state.num_input_tokens_seen += int(self.accelerator.reduce(count, "sum"))

    # -- log ----------------------------------------------------------------------------------------------------

    def _record(self, mode: str, log: dict[str, Tensor]) -> None:
        sums = self._sums[mode]
        for name, entry in log.items():
            sums[name] = sums[name] + entry if name in sums else entry

    def _leave_out_repeated_rows(self, labels: Tensor) -> None:
        """Take the targets from rows that stand in for missing ones, so that all processes have as many.

        Rows that lie in one line (padding-free) cannot be told apart; they are counted again.
        """
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0 and len(labels) > 1:
            labels[max(state.remainder - self.accelerator.process_index * len(labels), 0) :] = IGNORE

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As Trainer's, but `eval_loss` is the mean over all tokens; Trainer's is one over batches."""
        self._sums["eval"] = {}
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._sums["eval"]:
            total, count = self.accelerator.reduce(self._sums["eval"][NEXT_TOKEN_LOSS], "sum").tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the terms log: TRL's own names, each head's mean NLL (`head_1_loss`, ...), the anchor's KL."""
        mode = "train" if self.model.training else "eval"
        sums, self._sums[mode] = self._sums[mode], {}
        if sums:
            prefix = "" if mode == "train" else "eval_"
            entries = self.accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()
            means = {name: total / max(count, 1) for name, (total, count) in zip(sums, entries, strict=True)}
            logs.update({prefix + name: mean for name, mean in means.items()})
            logs[prefix + "num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    # -- optimizer ----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model) if model is not None else super().create_optimizer()
        rate = self.args.heads_learning_rate
        heads = (self.model if model is None else model).heads
        if (
            rate is None
            or heads is None
            or not self.args.train_heads
            or any("heads" in g for g in optimizer.param_groups)
        ):
            return optimizer
        own = {id(parameter) for parameter in heads.parameters()}
        for group in list(optimizer.param_groups):
            moved = [p for p in group["params"] if id(p) in own]
            if moved:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                rest = {k: v for k, v in group.items() if k != "params"}
                optimizer.add_param_group({**rest, "params": moved, "lr": rate, "heads": True})
        return optimizer

    # -- saving: the plain model as transformers and PEFT write it, the heads beside it --------------------------

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """`self.model` is the plain model within."""
        whole = self.model
        self.model = self.accelerator.unwrap_model(whole).model
        try:
            yield
        finally:
            self.model = whole

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir if output_dir is not None else self.args.output_dir
        whole = self.accelerator.unwrap_model(self.model)
        heads: MultiTokenHeads | None = whole.heads
        of_heads = None
        if state_dict is not None:
            of_heads = {k.removeprefix("heads."): v for k, v in state_dict.items() if k.startswith("heads.")}
            state_dict = {k.removeprefix("model."): v for k, v in state_dict.items() if k.startswith("model.")}
        with self._plain():
            super()._save(folder, state_dict)
        if heads is not None and self.args.should_save:
            heads.belong_to(whole.model, state_dict)
            heads.save_pretrained(Path(folder) / HEADS_FOLDER, of_heads)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, self.model.model)
        self._load_heads(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        with self._plain():
            super()._load_best_model()
        self._load_heads(str(self.state.best_model_checkpoint))

    def _load_heads(self, checkpoint: str) -> None:
        if self.model.heads is not None and self.args.train_heads:
            saved = MultiTokenHeads.from_pretrained(Path(checkpoint) / HEADS_FOLDER, self.model.model)
            self.model.heads.load_state_dict(saved.state_dict())


def freeze(model: nn.Module, *, share: float, unembedding: bool) -> None:
    """Freeze the lowest `share` of the layers with the input embedding below them, and the unembedding if asked."""
    plain = plain_model(model)
    if unembedding:
        plain.get_output_embeddings().requires_grad_(False)
        # Where the two are tied, this one is the same tensor.
    if share > 0:
        plain.get_input_embeddings().requires_grad_(False)
        layers = decoder_layers(plain)
        for layer in layers[: round(share * len(layers))]:
            layer.requires_grad_(False)


__all__ = ["MultiTokenConfig", "MultiTokenTrainer", "Schedule", "Weighting", "freeze"]
