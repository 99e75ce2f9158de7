"""Growing heads by self-distillation: the model writes the text, and its heads learn what it would say further on.

    L = Σ_{k=1..K} d^k · mean_t CE(target(t + k), head_k(t))

where target(t + k) is the model's own next-token distribution k positions later (`soft`) or the token that it sampled
there (`sampled`). The trunk, final norm and unembedding are frozen. Source: CAFT (arXiv 2506.07833), section 3 and
the authors' train_aux_heads.py.

Where this differs from the authors' code:
1. The text is written here, by the model in hand, from the user's prompts and a general set; theirs is downloaded.
   At temperature 0.7: at 1 a small model soon writes noise, which teaches the heads less (docs/multitoken.md).
2. Soft targets by default: the model's 16 likeliest words and one bin for all others. Sampled ones are the paper's.
3. The trunk runs once: its hidden states are cached for all epochs.
4. Not the whole vocabulary is scored in a step, but the words in the batch's targets and a random sample of the
   others, whose share of the normaliser is scaled up to stand for all others (importance sampling; `candidates`).
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup, set_seed

from graftlm.data.written_text import WrittenText
from graftlm.heads.config import DistillConfig
from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.hidden_states import CachedBatch, cached_batches
from graftlm.heads.loss import rows_loss
from graftlm.heads.texts import collect_texts, kinds, split_held_out
from graftlm.models.adapters import merged
from graftlm.models.decoder import Decoder
from graftlm.models.finite import not_finite
from graftlm.models.given import Given, GivenPair, given_model, name_of
from graftlm.runs.console import say
from graftlm.runs.run import Run, call_verb

Log = Callable[[dict[str, Any]], None]


@dataclass
class Distillation:
    """Result of `distill_heads`.

    agreement[kind][k - 1]: share of held-out positions where head k's likeliest token is the model's own greedy one,
    k further; before: the same before they learnt, of fresh copies or of the heads to be refreshed; held_out_positions:
    how many there were, per kind.
    """

    heads: MultiTokenHeads
    agreement: dict[str, list[float]]
    before: dict[str, list[float]]
    held_out_positions: dict[str, int]
    trunk_seconds: float
    epoch_seconds: list[float]


def distill_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[WrittenText],
    config: DistillConfig | None = None,
    *,
    log: Log | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    scratch: Path | None = None,
) -> Distillation:
    """Grow heads on `model` and teach them from `texts` (see `write_texts`).

    log: called with a dict of metrics now and then. progress: called with (what, done, total).
    scratch: folder for the cache of hidden states (default: the system's temporary folder).
    """
    config = config or DistillConfig()
    set_seed(config.seed)
    heads = new_heads(config, model)
    learnt, held_out = split_held_out(texts, config.held_out, config.seed)
    pad_id, size = tokenizer.pad_token_id, config.tokens_per_batch
    cached = partial(cached_batches, model, tap=heads.tap, tokens_per_batch=size, pad_token_id=pad_id, folder=scratch)
    started = time.perf_counter()
    batches = cached(learnt, progress=partial(progress, "hidden states") if progress else None)
    trunk_seconds = time.perf_counter() - started
    tests = {kind: cached([text for text in held_out if text.kind == kind]) for kind in kinds(held_out)}
    decoder = Decoder(model)
    before = {kind: agreement(decoder, heads, test) for kind, test in tests.items()}
    seconds = _train(decoder, heads, batches, config, log, progress)
    return Distillation(
        heads=heads,
        agreement={kind: agreement(decoder, heads, test) for kind, test in tests.items()},
        before=before,
        held_out_positions={kind: sum(int(b.targets(1).sum()) for b in test) for kind, test in tests.items()},
        trunk_seconds=trunk_seconds,
        epoch_seconds=seconds,
    )


def new_heads(config: DistillConfig, model: PreTrainedModel) -> MultiTokenHeads:
    """Copy the model's layers, or load the heads to be refreshed; InputError for a layer or heads that do not fit."""
    if config.refresh is None:
        return MultiTokenHeads.from_model(model, config.num_heads, depth=config.depth, copy_layer=config.copy_layer)
    heads = MultiTokenHeads.from_pretrained(config.refresh, model, of_relative=True)
    heads.belong_to(model)
    return heads


def _train(
    decoder: Decoder,
    heads: MultiTokenHeads,
    batches: list[CachedBatch],
    config: DistillConfig,
    log: Log | None,
    progress: Callable[[str, int, int], None] | None,
) -> list[float]:
    """Teach the heads; returns the seconds of each epoch."""
    dtype = decoder.unembedding.weight.dtype
    precision = torch.promote_types(dtype, torch.float32)  # small steps and gradients get lost in less
    heads.train().requires_grad_(True).to(precision)
    norm = copy.deepcopy(decoder.final_norm).to(precision).requires_grad_(False)
    frozen = {p: p.requires_grad for p in decoder.model.parameters()}
    decoder.model.requires_grad_(False)
    total = config.epochs * len(batches)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, total // 20), total)
    order = random.Random(config.seed)
    seconds: list[float] = []
    step = 0
    try:
        for epoch in range(config.epochs):
            started = time.perf_counter()
            for batch in order.sample(batches, len(batches)):
                step += 1
                losses = _step(decoder, norm, heads, batch, config)
                gradient = float(nn.utils.clip_grad_norm_(heads.parameters(), 1.0))
                if not all(map(math.isfinite, (*losses, gradient))):
                    raise _not_finite(step, total, losses, gradient, config)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                if progress is not None:
                    progress("heads", step, total)
                if log is not None and (step % 10 == 0 or step == total):
                    log({"step": step, "epoch": epoch, **{f"loss_{k}": v for k, v in enumerate(losses, start=1)}})
            seconds.append(time.perf_counter() - started)
    finally:
        heads.to(dtype)
        for parameter, flag in frozen.items():
            parameter.requires_grad_(flag)
    if not_finite(heads.named_parameters()) is not None:
        raise FloatingPointError(f"after step {step} the heads' weights are not finite in {dtype}; none are saved")
    return seconds


def _not_finite(
    step: int, total: int, losses: Sequence[float], gradient: float, config: DistillConfig
) -> FloatingPointError:
    values = ", ".join(f"{loss:g}" for loss in losses)
    return FloatingPointError(
        f"at step {step} of {total} the heads' losses are {values} and their gradient's norm is {gradient:g}; "
        f"no heads are saved: lower the learning rate ({config.learning_rate:g})"
    )


def _step(
    decoder: Decoder, norm: nn.Module, heads: MultiTokenHeads, batch: CachedBatch, config: DistillConfig
) -> list[float]:
    """Run forward and backward of one batch, head by head; returns each head's mean loss in nats."""
    words = candidate_words(batch, decoder.unembedding.weight.shape[0], config.candidates)
    call = batch.call(next(heads.parameters()))
    losses = []
    for head in range(1, heads.num_heads + 1):
        positions = batch.targets(head)
        rows = norm(heads.hidden_states(head, call)[positions])
        if not len(rows):
            losses.append(0.0)
            continue
        if config.targets == "sampled":
            targets = batch.ahead(torch.roll(batch.tokens, -1, dims=1), head, positions)[:, None]
            weights = torch.ones(targets.shape)
        else:
            targets = batch.ahead(batch.top_tokens, head, positions)
            weights = batch.ahead(batch.top_probabilities, head, positions)
        loss = candidate_cross_entropy(decoder, rows, targets.to(rows.device), weights.to(rows.device), words)
        (loss * config.decay**head).backward()
        losses.append(float(loss.detach()))
    return losses


@dataclass
class CandidateWords:
    """The words scored in a step: `ids` sorted, and what is added to each one's logit so that the sampled ones stand
    for all that are left out."""

    ids: Tensor  # [words] int64
    log_multiplicity: Tensor  # [words] float


def candidate_words(batch: CachedBatch, vocabulary_size: int, sampled: int | None) -> CandidateWords:
    """The words that the batch's targets name, and `sampled` random others (all of them where it is None)."""
    named = torch.unique(torch.cat([batch.top_tokens.flatten(), batch.tokens.flatten()]))
    others = vocabulary_size - len(named)
    if sampled is None or sampled >= others:
        return CandidateWords(torch.arange(vocabulary_size), torch.zeros(vocabulary_size))
    free = torch.ones(vocabulary_size, dtype=torch.bool)
    free[named] = False
    drawn = torch.nonzero(free)[:, 0][torch.randperm(others)[:sampled]]
    ids, order = torch.cat([named, drawn]).sort()
    multiplicity = torch.cat([torch.zeros(len(named)), torch.log(torch.tensor(others / sampled)).expand(sampled)])
    return CandidateWords(ids, multiplicity[order])


def candidate_cross_entropy(
    decoder: Decoder, rows: Tensor, targets: Tensor, weights: Tensor, words: CandidateWords
) -> Tensor:
    """Mean cross-entropy in nats of normed rows [rows, hidden] against target words [rows, n] with probabilities
    `weights` [rows, n]; what these leave of 1 is the probability of all other words together, as one bin."""
    ids = words.ids.to(rows.device)
    bias = getattr(decoder.unembedding, "bias", None)
    weight = decoder.unembedding.weight[ids].to(rows.dtype)
    logits = nn.functional.linear(rows, weight, None if bias is None else bias[ids].to(rows.dtype))
    logits = decoder.scaled(logits.float())
    normaliser = torch.logsumexp(logits + words.log_multiplicity.to(rows.device), dim=1, keepdim=True)
    named = logits.gather(1, torch.searchsorted(ids, targets)) - normaliser
    loss = -(weights * named).sum(1)
    rest = (1 - weights.sum(1)).clamp(min=0)
    rest_predicted = (1 - named.exp().sum(1)).clamp(min=1e-6)
    return (loss - rest * rest_predicted.log()).mean()


@torch.no_grad()
def agreement(decoder: Decoder, heads: MultiTokenHeads, batches: Sequence[CachedBatch]) -> list[float]:
    """Share [K] of positions where head k's likeliest word is the model's own greedy one, k positions later."""
    right, count = [0] * heads.num_heads, [0] * heads.num_heads
    for batch in batches:
        call = batch.call(decoder.unembedding.weight)
        for head in range(1, heads.num_heads + 1):
            positions = batch.targets(head)
            rows = decoder.final_norm(heads.hidden_states(head, call)[positions])
            greedy = batch.ahead(batch.top_tokens[..., 0], head, positions).to(rows.device)
            result = rows_loss(decoder, rows, greedy, torch.ones(len(rows), device=rows.device))
            right[head - 1] += int(result.correct.sum())
            count[head - 1] += len(rows)
    return [r / max(c, 1) for r, c in zip(right, count, strict=True)]


def distill_model(
    model: Given,
    data: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> MultiTokenHeads:
    """`graftlm.distill`: grow heads on a model from text that it writes itself, into a run folder; returns the heads.

    Args:
        model: a name as `load_model` takes it, or a loaded model.
        data: where the domain prompts come from: a built-in task, a file, or a hub id.
        tokenizer: of a loaded model (None: the one that is saved where it came from).
        resume, overwrite: go on with the run in the folder `output`, or replace it.
        progress: called with (what, done, total).
        settings: the further fields of DistillConfig, such as num_heads=4 and output="heads".

    Raises InputError as `graftlm distill` does.
    """
    settings = {"model": name_of(model), "data": data, **settings}
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "progress": progress, "given": (model, tokenizer)}
    return call_verb("distill", DistillConfig, distill, settings, **how)


def distill(
    config: DistillConfig,
    run: Run,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    given: GivenPair | None = None,
) -> MultiTokenHeads:
    """`graftlm distill`: write the text, grow the heads, save them into the run's folder with their agreement.

    Returns the heads. The folder then holds model.safetensors and config.json (the heads), text.jsonl (what the model
    wrote), agreement.json, metrics.jsonl and run.yaml. Text that is there from an interrupted run is used again.
    """
    model, tokenizer = given_model(*(given or (config.model, None)), trust_remote_code=config.trust_remote_code)
    model = merged(model)
    new_heads(config, model)  # a wrong folder or layer is noticed before the long writing
    texts = collect_texts(model, tokenizer, config, run.folder, progress)
    run.keep()
    if run.resumed:
        run.rewind(-1)
    result = distill_heads(model, tokenizer, texts, config, log=run.log, progress=progress, scratch=run.folder)
    result.heads.save_pretrained(run.folder)
    run.write_json(
        "agreement.json",
        {
            "what": "share of held-out positions where a head's likeliest token is the model's own greedy one",
            "heads": result.agreement,
            "undistilled_copies" if config.refresh is None else "before_refresh": result.before,
            "held_out_positions": result.held_out_positions,
            "hidden_states_seconds": result.trunk_seconds,
            "epoch_seconds": result.epoch_seconds,
        },
    )
    for kind, shares in result.agreement.items():
        of_heads = ", ".join(f"{s:.1%}" for s in shares)
        before = ", ".join(f"{s:.1%}" for s in result.before[kind])
        state = "undistilled" if config.refresh is None else "before"
        say(f"agreement on {kind} text, head 1 to {len(shares)}: {of_heads} ({state}: {before})")
    return result.heads
