"""The text that heads are grown from: domain and general text that the model writes, and the share that is held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graftlm.data.encoding import encode_text
from graftlm.data.load import general_prompts, load_rows, prompt_tokens
from graftlm.data.readers import read_lines
from graftlm.data.written_text import TEXT_FILE, WrittenText, read_texts, write_texts
from graftlm.errors import InputError
from graftlm.heads.config import DistillConfig


def collect_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: DistillConfig,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[WrittenText]:
    """Domain and general text, which the model writes into `folder`, or that of an earlier distillation."""
    if config.text is not None:
        path = Path(config.text) / TEXT_FILE
        if not path.is_file():
            raise InputError(f"--text {config.text} holds no {TEXT_FILE}; give the folder of a `graftlm distill`")
        return read_texts(path)
    texts: list[WrittenText] = []
    for kind, tokens in (("domain", config.domain_tokens), ("general", config.general_tokens)):
        if tokens:
            texts += write_texts(
                model,
                tokenizer,
                domain_prompts(config, tokenizer) if kind == "domain" else general_prompt_ids(config, tokenizer),
                kind=kind,
                tokens=tokens,
                path=folder / TEXT_FILE,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.sampling_batch_size,
                seed=config.seed,
                progress=None if progress is None else partial(progress, f"{kind} text"),
            )
    return texts


def domain_prompts(config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the rows' prompts; for `text` rows of their common beginning and eight tokens more."""
    rows = load_rows(config.data)
    if "prompt" in rows.column_names:
        return [prompt_tokens(prompt, tokenizer) for prompt in rows["prompt"]]
    texts = [encode_text(tokenizer, text) for text in rows["text"]]
    first, last = min(texts), max(texts)  # these two differ the earliest
    differing = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    shared = next(differing, min(len(first), len(last)) if first != last else 0)
    return [ids[: shared + 8] for ids in texts]


def general_prompt_ids(config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the general prompts: the bundled ones, or the lines of a file."""
    prompts = general_prompts() if config.prompts is None else read_lines(Path(config.prompts), "--prompts")
    return [encode_text(tokenizer, prompt) for prompt in prompts]


def kinds(texts: Sequence[WrittenText]) -> list[str]:
    return sorted({text.kind for text in texts})


def split_held_out(
    texts: Sequence[WrittenText], share: float, seed: int
) -> tuple[list[WrittenText], list[WrittenText]]:
    """(learnt, held out): of each kind `share` of the *prompts* is held out, with all that was written from them.

    Where one prompt would be more than that share, it is a share of the texts, and prompts are common to both.
    """
    learnt: list[WrittenText] = []
    held_out: list[WrittenText] = []
    for kind in kinds(texts):
        of_kind = [t for t in texts if t.kind == kind]
        keys: list[Any] = [tuple(t.input_ids[: t.prompt_length]) for t in of_kind]
        count = round(share * len(set(keys)))
        if share * len(set(keys)) < 1:
            keys = list(range(len(of_kind)))
            count = min(max(1, round(share * len(of_kind))), len(of_kind) - 1)
        chosen = set(random.Random(seed).sample(sorted(set(keys)), count))
        for key, text in zip(keys, of_kind, strict=True):
            (held_out if key in chosen else learnt).append(text)
    return learnt, held_out
