"""Completions and their log-likelihoods, batched, for any Hugging Face causal LM with or without an adapter.

All pad by themselves and leave the tokenizer as it is, so `tokenizer.padding_side` makes no difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graftlm.data.batches import batches_that_fit, padded
from graftlm.data.encoding import encode_pair, encode_prompt
from graftlm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

MAX_LOGIT_ROWS = 2048
"""Most positions unembedded at once (0.4 GB in float32 at 49,152 words); one example may need more."""

OnBatch = Callable[[int], None]


def generate_completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 32,
    batch_size: int = 32,
    *,
    stop: str | None = "\n",
    on_batch: OnBatch | None = None,
) -> list[str]:
    """The greedy completion of each prompt, without special tokens, cut before `stop`.

    Whatever sampling or penalties the model's own generation config asks for is switched off. A batch ends as soon as
    each of its rows has written `stop` or an end-of-sequence token. `on_batch` gets the number of prompts just done.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    _check_lengths(model, [len(ids) + max_new_tokens for ids in encoded])
    config = _plain_config(model, tokenizer, max_new_tokens)
    outputs = [""] * len(prompts)
    generate: Any = model.generate
    equal = has_virtual_tokens(model)

    def fits(batch: list[int]) -> bool:
        same_length = len(encoded[batch[0]]) == len(encoded[batch[-1]])
        return len(batch) <= batch_size and (same_length or not equal)

    order = sorted(range(len(prompts)), key=lambda index: -len(encoded[index]))
    for chosen in batches_that_fit(order, fits):
        ids, mask = padded([encoded[index] for index in chosen], _pad_id(tokenizer), "left")
        width = ids.shape[1]
        generated = generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=_stop_criteria(tokenizer, stop, width) if stop else None,
        )
        texts = tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            outputs[index] = text.split(stop, 1)[0] if stop else text
        if on_batch is not None:
            on_batch(len(chosen))
    return outputs


def sample_completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int,
    max_new_tokens: int,
) -> list[str]:
    """`samples` completions of each prompt in one batch, drawn from the whole distribution at temperature 1, without
    special tokens; those of a prompt stand together."""
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    ids, mask = padded(encoded, _pad_id(tokenizer), "left")
    generate: Any = model.generate
    written = generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=_plain_config(model, tokenizer, max_new_tokens, samples),
    )
    return tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)


def completion_log_likelihoods(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    batch_size: int = 32,
    *,
    on_batch: OnBatch | None = None,
) -> list[tuple[float, int]]:
    """Score each (prompt, completion): the sum of log p(token | all before it) over the completion's tokens, in nats,
    and how many these are. Only the positions that predict them are unembedded.

    Rows are padded on the right: no token sees what follows it, so neither masks nor positions are needed.
    """
    encoded = [encode_pair(tokenizer, prompt, completion) for prompt, completion in pairs]
    _check_lengths(model, [len(prompt) + len(completion) for prompt, completion in encoded])
    results = [(0.0, 0)] * len(pairs)

    def fits(batch: list[int]) -> bool:
        first = len(encoded[batch[0]][0])
        last = max(len(encoded[index][0]) + len(encoded[index][1]) for index in batch)
        return len(batch) <= batch_size and len(batch) * (last - first) <= MAX_LOGIT_ROWS

    order = sorted(range(len(pairs)), key=lambda index: (len(encoded[index][0]), len(encoded[index][1])))
    for chosen in batches_that_fit(order, fits):
        batch = [encoded[index] for index in chosen]
        for index, total in zip(chosen, _score(model, batch, _pad_id(tokenizer)), strict=True):
            results[index] = (total, len(encoded[index][1]))
        if on_batch is not None:
            on_batch(len(chosen))
    return results


def target_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[targets], in float32 or better: logits [..., vocabulary], targets [...] -> [...]."""
    import torch

    if logits.dtype != torch.float64:
        logits = logits.float()
    chosen = logits.gather(-1, targets.to(logits.device).unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def has_virtual_tokens(model: PreTrainedModel | PeftModel) -> bool:
    """Prompt and prefix tuning: PEFT puts tokens of its own before every input, and takes no position ids, so that
    padding on the left would shift them, and a cache would get them twice."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def logits_at(model: PreTrainedModel | PeftModel, positions: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits [batch, len(positions), vocabulary] at these positions, and the cache if any.

    `positions` (int64) count from the end, -1 being the last, which holds where PEFT puts virtual tokens
    first. A model whose forward has no `logits_to_keep` computes all of them first.
    """
    adapted: Any = model
    base = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        output = model(**inputs, logits_to_keep=positions)
        return output.logits, getattr(output, "past_key_values", None)
    output = model(**inputs)
    return output.logits[:, positions], getattr(output, "past_key_values", None)


def _score(model: PreTrainedModel | PeftModel, batch: list[tuple[list[int], list[int]]], pad_id: int) -> list[float]:
    """Sum of the log-probabilities of each completion in a batch that fits into memory."""
    import torch

    ids = padded([prompt + completion for prompt, completion in batch], pad_id, "right")[0].to(model.device)
    first = min(len(prompt) for prompt, _ in batch)  # the first position that any completion takes up
    with torch.no_grad():
        positions = torch.arange(first - 1 - ids.shape[1], -1, device=model.device)
        logits, _ = logits_at(model, positions, input_ids=ids, use_cache=False)
        scores = target_log_probs(logits, ids[:, first:])
    scores = scores.double().cpu()
    return [
        float(scores[row, len(prompt) - first : len(prompt) - first + len(completion)].sum())
        for row, (prompt, completion) in enumerate(batch)
    ]


def _check_lengths(model: PreTrainedModel | PeftModel, lengths: Sequence[int]) -> None:
    from graftlm.models.decoder import context_length

    limit = context_length(model)
    longest = max(lengths, default=0)
    if limit is not None and longest > limit:
        raise InputError(f"an example of {longest} tokens exceeds the model's {limit} positions: use fewer shots")


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do, since padding is masked or comes after all that counts."""
    return next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(each, int)), 0)


def _plain_config(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    samples: int | None = None,
) -> GenerationConfig:
    """Plain greedy search, or samples. Values left out would be taken from the model's own generation config."""
    from transformers import GenerationConfig

    from graftlm.models.decoder import end_tokens

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=samples is not None,
        num_beams=1,
        num_return_sequences=samples or 1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_k=50 if samples is None else 0,
        top_p=1.0,
        use_cache=True,
        return_dict_in_generate=False,
        pad_token_id=_pad_id(tokenizer),
        eos_token_id=end_tokens(model, tokenizer) or None,
    )


def _stop_criteria(tokenizer: PreTrainedTokenizerBase, stop: str, width: int) -> StoppingCriteriaList:
    """Ends each row by itself once `stop` is among what it has written after the prompt of `width` tokens.

    transformers' own `stop_strings` prepares the whole vocabulary for it, which costs more than these short texts.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    # A token is at least one byte; one token more, as some decoders trim the first one's space.
    window = len(stop.encode()) + 1

    class StopString(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            tails = input_ids[:, max(width, input_ids.shape[1] - window) :]
            texts = tokenizer.batch_decode(tails, skip_special_tokens=True)
            return torch.tensor([stop in text for text in texts], device=input_ids.device)

    return StoppingCriteriaList([StopString()])
