"""TRL's GRPO, its policy loss on forking tokens only (graftlm/models/forking.py has the equation).

Where this differs from TRL's `top_entropy_quantile`:
1. The mask is taken once over the whole rollout batch of all devices (`forking_scope="rollout"`), from the entropies
   that the tokens had when they were sampled. TRL takes one for each micro-batch, so that the gradient depends on how
   the batch is split. `micro-batch` and `response` are there for comparison.
2. The loss is divided by the kept tokens, as in the paper (`forking_normaliser="kept"`). TRL divides by all tokens,
   which makes the step five times smaller at 20 % (`all`).
3. The number of kept tokens is exact.
4. The complement of the forking tokens and random ones can be kept instead (`forking_tokens`), as controls.

As in TRL, the KL term (beta) is not masked: it acts on all tokens and is divided by all of them.

The entropies cost no forward pass: they are taken from the logits that generation samples from, or, where TRL computes
the rollouts' log-probabilities before training anyway (vLLM, several iterations), from that pass. Only where there is
neither (continuous batching, tools) is one made. Without Triton, where TRL unembeds prompt tokens too, they are cut off
(not with `forking_fraction=1`, which is TRL's own run to the last bit).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from graftlm.data.encoding import check_no_end
from graftlm.errors import InputError
from graftlm.models.adapters import alteration_of, lasting_alteration
from graftlm.models.decoder import acts_in_forward, backbone_of, plain_model
from graftlm.models.forking import forking_token_mask, forking_token_mask_of_all_processes, token_entropy
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.config import declared, option
from graftlm.runs.ranges import check_ranges
from graftlm.tuning.resuming import ResumableTrainer
from graftlm.tuning.terms.base import Pass, StepCounter, Term, weighted
from graftlm.tuning.training import arguments_as

Scope = Literal["rollout", "micro-batch", "response"]
Normaliser = Literal["kept", "all"]
Tokens = Literal["top", "rest", "random"]
MASK = "forking_weights"


@dataclass
class ForkingTokenGRPOConfig(GRPOConfig):
    """GRPOConfig with the forking mask.

    Raises InputError for a fraction, scope, normaliser or kind of tokens that there is not, or where TRL's own
    `top_entropy_quantile` is set besides.
    """

    forking_fraction: float = declared(ReinforceConfig, "forking_fraction")
    forking_scope: str = declared(ReinforceConfig, "forking_scope")
    forking_normaliser: str = declared(ReinforceConfig, "forking_normaliser")
    forking_tokens: str = declared(ReinforceConfig, "forking_tokens")
    start_agreement_steps: int = option(
        20,
        "Rollout batches between measurements of the mask's agreement with the start model's (LoRA; 0: never).",
        at_least=0,
    )

    def __post_init__(self) -> None:
        if self.top_entropy_quantile != 1.0:  # type: ignore[has-type]
            raise InputError("top_entropy_quantile is TRL's own mask; set forking_fraction instead")
        check_ranges(self, prefix="")
        for name, allowed in (("scope", Scope), ("normaliser", Normaliser), ("tokens", Tokens)):
            value = getattr(self, f"forking_{name}")
            if value not in get_args(allowed):
                raise InputError(f"forking_{name} is {value!r}, but one of {', '.join(get_args(allowed))} is expected")
        if self.forking_tokens == "rest" and self.forking_fraction == 1:
            raise InputError("forking_tokens is 'rest', but forking_fraction is 1: no token is left")
        super().__post_init__()
        # TRL asks the trainer's `get_high_entropy_mask`, which the trainer below gives weights to answer with.
        self.top_entropy_quantile = self.forking_fraction


class ForkingTokenGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """GRPOTrainer whose policy loss is taken from forking tokens; all else, and all of it at `forking_fraction=1`,
    is TRL's.

    Logs beside TRL's metrics: `forking/kept` (share of the completions' tokens) and, with the scope "rollout",
    `forking/threshold` (lowest kept entropy in nats) and, where the trainer adds the adapter (`peft_config`),
    `forking/start_agreement` (share of the kept tokens that the start model's mask keeps as well).
    """

    args: ForkingTokenGRPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: TrainingArguments | None = None,
        *others: Any,
        terms: Sequence[Term] = (),
        **named: Any,
    ) -> None:
        """As GRPOTrainer; `args` is completed with ForkingTokenGRPOConfig's defaults where it is another's.

        terms: added to the loss (graftlm/tuning/terms). Raises InputError for one that needs labels.
        """
        args = ForkingTokenGRPOConfig("forking-tokens") if args is None else arguments_as(ForkingTokenGRPOConfig, args)
        # An adapter that this trainer adds can be switched off to have the start model; one that was there cannot.
        added = None if hasattr(model, "peft_config") else named.get("peft_config")
        altered = lasting_alteration(model) if isinstance(model, PeftModel) else added and alteration_of(added)
        if altered and args.beta:
            raise InputError(
                f"the adapter has {altered}, which switching it off does not undo, so there is no start model to "
                "hold it to: leave out beta, or merge the adapter first"
            )
        self._start_is_without_adapter = added is not None and not altered
        super().__init__(model, reward_funcs, args, *others, **named)
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        check_no_end(tokenizer)
        self._terms = terms
        self._steps = StepCounter(self)
        self._prepare_terms(tokenizer)
        self._recorded: list[Tensor] | None = None
        self._turns = 0
        self._scored: Tensor | None = None
        self._weights: Tensor | None = None
        # Of this object alone: in the class the method stays TRL's, which gives a mask, not weights.
        self.get_high_entropy_mask = self._policy_weights
        self._rollouts = 0
        self._drawn: dict[str, tuple[int, int]] = {}
        """Train or eval -> the last step at which random tokens were drawn, and how many draws that step had before."""

    def _prepare_terms(self, tokenizer: Any) -> None:
        for term in self._terms:
            if term.needs_labels:
                raise InputError(f"terms: {term.name} reads supervised labels, which completions do not have")
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise InputError(f"{term.name} cannot be used here where the weights are divided over devices")
            term.prepare(self.model, tokenizer)

    @property
    def _masks(self) -> bool:
        return bool(self.args.forking_fraction < 1)

    # -- once per rollout batch: entropies as sampled, and the mask -----------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._recorded = self._scored = None
        self._turns = 0
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._masks and self.args.forking_scope == "rollout":
            mask = loss_mask(output)
            entropy = self._rollout_entropy(output, mask)
            output[MASK] = self._weights_of(entropy, mask)
            self._log_mask(output, entropy, mask)
        self._recorded = self._scored = None
        return output

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        self._turns += 1
        self._recorded = None  # after a second turn its tokens and the first's no longer stand in one row
        if not self._masks or self.args.forking_scope != "rollout" or self._turns > 1:
            return super()._generate_single_turn(*arguments, **named)
        with recorded_entropy(plain_model(self.accelerator.unwrap_model(self.model)), self.temperature) as steps:
            result = super()._generate_single_turn(*arguments, **named)
        self._recorded = steps
        return result

    def _rollout_entropy(self, output: dict[str, Any], mask: Tensor) -> Tensor:
        """Entropies [batch, time] float32 of the policy that wrote the completions, in nats."""
        if self._scored is not None and "old_per_token_logps" in output:
            return self._scored
        steps = self._recorded or []
        if self.accelerator.num_processes > 1:  # with sharded weights a process goes on until the last one is done
            steps = steps[: mask.shape[1]]
        # One recorded step for each token of the longest completion, or these are not what was sampled from.
        padding = mask.shape[1] - len(steps)
        usable = bool(steps) and 0 <= padding < (self.pad_to_multiple_of or 1) and len(steps[0]) == len(mask)
        # A pass over sharded weights needs all processes, or none.
        agreed = self.accelerator.reduce(torch.tensor(float(usable), device=mask.device), "sum")
        if int(agreed) == self.accelerator.num_processes:
            return torch.nn.functional.pad(torch.stack(steps, dim=1), (0, padding))
        return self._entropy_now(output)

    @torch.no_grad()
    def _entropy_now(self, output: dict[str, Any]) -> Tensor:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        _, entropy, _ = self._get_per_token_logps_and_entropies(
            self.model, ids, mask, output["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size, compute_entropy=True,
        )  # fmt: skip
        return entropy

    def _log_mask(self, output: dict[str, Any], entropy: Tensor, mask: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        kept = output[MASK] > 0
        counts = self.accelerator.reduce(torch.stack([kept.sum(), mask.sum()]).float(), "sum")
        lowest = self.accelerator.gather(entropy[kept].min()[None] if kept.any() else entropy.new_full((1,), torch.inf))
        self._metrics[mode]["forking/kept"].append(float(counts[0] / counts[1].clamp(min=1)))
        if counts[0]:
            self._metrics[mode]["forking/threshold"].append(float(lowest.min()))
        every = self.args.start_agreement_steps if self.args.forking_tokens != "random" else 0
        if mode == "train" and every and self._start_is_without_adapter and self._rollouts % every == 0:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                start = self._entropy_now(output)
            agreeing = (self._chosen(start, mask) & kept).sum()
            both = self.accelerator.reduce(torch.stack([agreeing, kept.sum()]).float(), "sum")
            self._metrics[mode]["forking/start_agreement"].append(float(both[0] / both[1].clamp(min=1)))
        self._rollouts += mode == "train"

    # -- which tokens, and how much each counts -------------------------------------------------------------------

    def _chosen(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """Choose the tokens (bool [batch, time]) that have a policy loss; the scope says among which."""
        fraction, tokens = self.args.forking_fraction, self.args.forking_tokens
        mask = mask.bool()
        if tokens == "random":
            seed = (self.args.seed * 1_000_003 + self._draw_number()) * 1_009 + self.accelerator.process_index
            draw = torch.Generator().manual_seed(seed)
            entropy = torch.rand(mask.shape, generator=draw).to(mask.device)
        if self.args.forking_scope == "response":
            rows = [forking_token_mask(*row, fraction) for row in zip(entropy, mask, strict=True)]
            chosen = torch.stack(rows) if rows else torch.zeros_like(mask)
        else:
            chosen = forking_token_mask_of_all_processes(self.accelerator, entropy, mask, fraction)
        return mask & ~chosen if tokens == "rest" else chosen

    def _draw_number(self) -> int:
        """Number the draw by its step and its rollout batch, so that a resumed run draws the same tokens."""
        mode, step = "train" if self.model.training else "eval", self.state.global_step
        last, count = self._drawn.get(mode, (-1, 0))
        count = count + 1 if last == step else 0
        self._drawn[mode] = (step, count)
        return 101 * step + count

    def _weights_of(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """Weights [batch, time] float32 of the tokens' policy losses.

        0 where not kept. With the normaliser "kept" n/k elsewhere, with n tokens in the scope and k of them kept, so
        that TRL's division by n becomes one by k.
        """
        chosen = self._chosen(entropy, mask)
        if self.args.forking_normaliser == "all":
            return chosen.float()
        counts = torch.stack([mask.sum(-1), chosen.sum(-1)]).float()
        if self.args.forking_scope != "response":
            counts = self.accelerator.reduce(counts.sum(-1), "sum")[:, None]
        return chosen * (counts[0] / counts[1].clamp(min=1))[:, None]

    def _policy_weights(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """Factors of TRL's policy loss [batch, time]: `_weights_of` the rollout batch, or of these entropies."""
        if self._weights is not None:
            return self._weights
        weights = self._weights_of(entropies.detach(), mask)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["forking/kept"].append(float((weights > 0).sum() / mask.sum().clamp(min=1)))
        return weights

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._weights = inputs.get(MASK)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._terms and self.model.training:
            loss = loss + self._loss_of_terms(model)
        if not return_outputs and self.model.training and not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; the last checkpoint is unharmed: "
                "lower the learning rate"
            )
        return loss

    def _loss_of_terms(self, model: nn.Module) -> Tensor | float:
        """Sum of the terms in this batch; what they log joins TRL's metrics."""
        step = self._steps.next()
        given = Pass(self.accelerator.unwrap_model(model), step)
        terms = [term for term in self._terms if term.settings.weight_at(step.number, step.total) > 0]
        outputs = [term.forward(given) for term in terms]
        for name, (total, count) in (entry for output in outputs for entry in output.log.items()):
            mean = self.accelerator.reduce(total.float() / max(count, 1), "mean")
            self._metrics["train"][name].append(float(mean))
        return sum(weighted(term, output, step) for term, output in zip(terms, outputs, strict=True))

    # -- log-probabilities and entropies --------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        before_training = self._masks and model is self.model and self._scored is None and not torch.is_grad_enabled()
        whole = self.accelerator.unwrap_model(model)
        # Virtual tokens and the like come in behind the hooks that cut.
        cuts = self._masks and not (isinstance(whole, PeftModel) and acts_in_forward(whole.active_peft_config))
        cut = only_completions_unembedded(model, plain_model(whole), logits_to_keep) if cuts else nullcontext()
        with cut:
            log_probabilities, entropy, router_loss = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size,
                compute_entropy or before_training, **others,
            )  # fmt: skip
        if before_training:
            self._scored = entropy
        return log_probabilities, entropy, router_loss


def loss_mask(rollouts: dict[str, Any]) -> Tensor:
    """Mask [batch, time] (bool) of the completions' tokens that the model itself wrote."""
    mask = rollouts["completion_mask"].bool()
    return mask & rollouts["tool_mask"].bool() if "tool_mask" in rollouts else mask


@contextmanager
def recorded_entropy(model: nn.Module, temperature: float) -> Iterator[list[Tensor]]:
    """Record, while `model` generates, the entropies [batch] in nats of each step's distribution at `temperature`."""
    steps: list[Tensor] = []

    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None:
            steps.append(token_entropy(logits[:, -1] / temperature))

    handle = model.register_forward_hook(record)
    try:
        yield steps
    finally:
        handle.remove()


@contextmanager
def only_completions_unembedded(model: nn.Module, plain: Any, logits_to_keep: int) -> Iterator[None]:
    """Unembed the last `logits_to_keep` tokens alone, while `model` scores tokens with TRL's fused unembedding.

    plain: the transformers model inside. With Triton TRL leaves out what has no label by itself.
    """
    if next(plain.parameters()).device.type in ("cuda", "xpu"):
        yield
        return
    rows = logits_to_keep + 1  # the row before a token predicts it

    def cut_labels(module: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        return arguments, {**named, "labels": named["labels"][:, -rows:]} if "labels" in named else named

    def cut_hidden_states(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, -rows:]
        return output

    handles = [
        model.register_forward_pre_hook(cut_labels, with_kwargs=True),
        backbone_of(plain).register_forward_hook(cut_hidden_states),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
