"""`graftlm generate`: texts for prompts, printed while they are written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import set_seed

from graftlm.decoding.config import GenerateConfig
from graftlm.decoding.generation import Written, stream_completion
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.models.load import load_model
from graftlm.runs.console import printable, say
from graftlm.runs.files import dump_json
from graftlm.runs.run import Run


def run_generate(config: GenerateConfig, run: Run, *, load: Callable[[str], Any] = load_model) -> list[dict[str, Any]]:
    """Print the text of each prompt and, where the run has a folder, write them there as texts.jsonl.

    `load` gives the model and its tokenizer. Returns prompt, text, tokens and seconds of each.
    """
    prompts = config.all_prompts
    model, tokenizer = load(config.model)
    writer = model if config.heads is None else HeadsDecoding.load(model, config.heads)
    options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "chat": config.chat
    }  # fmt: skip
    if config.compare:  # what is measured once in a process, and first calls of kernels, count for neither
        for each in (writer, model):
            stream_completion(each, tokenizer, prompts[0], lambda piece: None, **{**options, "max_new_tokens": 2})
    set_seed(config.seed)
    texts = []
    for number, prompt in enumerate(prompts, start=1):
        if len(prompts) > 1:
            say(f"[{number}/{len(prompts)}] {prompt}")
        pieces: list[str] = []
        written = stream_completion(writer, tokenizer, prompt, partial(show, pieces), **options)
        print()
        text = "".join(pieces)
        texts.append({"prompt": prompt, "text": text, "tokens": len(written.ids), "seconds": written.seconds})
        if config.compare:
            with torch.random.fork_rng():  # the next prompt's text does not depend on this
                plain = stream_completion(model, tokenizer, prompt, lambda piece: None, **options)
            say(speeds(written, plain))
    run.write_text("texts.jsonl", "".join(f"{dump_json(text)}\n" for text in texts))
    return texts


def show(pieces: list[str], piece: str) -> None:
    pieces.append(piece)
    print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)


def speeds(drafted: Written, plain: Written) -> str:
    """How fast the same prompt was written with drafts and without."""
    output, tokens = drafted.output, len(drafted.ids)
    drafts = f"{output.accepted} of {output.drafted} drafts accepted" if output.drafted else "nothing drafted"
    rates = [len(each.ids) / each.seconds for each in (drafted, plain)]
    same = ", the same tokens" if drafted.ids == plain.ids else ""
    return (
        f"{tokens} tokens in {output.rounds + 1} passes ({drafts}): {rates[0]:.1f} tokens/s, {rates[0] / rates[1]:.2f}"
        f" times the {rates[1]:.1f} without drafts{same}"
    )
