"""A small model with the default model's vocabulary: some of its layers, healed on text that it wrote itself.

    .venv/bin/python bench/small_sibling.py --output /tmp/sibling                  (minutes on two cores; cached)
    graftlm tune --model /tmp/sibling --objective next-token --data molecules --output /tmp/expert

The first is the anti-expert of proxy-tuning, the second, a LoRA on it, the expert. Kept are the first, the last and
evenly spaced layers between them. The small model learns the large one's next-token distribution (KL, nats per token)
on text that the large one wrote from the task's and from general prompts; embedding and unembedding stay as they are,
so that both share a vocabulary to the last entry. What it reached on held-out text is written beside the model.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from graftlm import load_model
from graftlm.data.load import general_prompts, load_rows
from graftlm.data.written_text import WrittenText, write_texts
from graftlm.heads.hidden_states import batches_of_similar_length
from graftlm.models.decoder import Decoder, decoder_layers
from graftlm.models.linear_cross_entropy import linear_kl_divergence
from graftlm.runs.console import prefixed, reported_progress, say

BASE = "smollm2-135m"
DONE = "healing.json"


def shortened(model: Any, count: int) -> Any:
    """`count` layers of `model` in a model of its own: the first, the last, and evenly spaced ones between."""
    every = len(decoder_layers(model))
    kept = sorted({round(place * (every - 1) / (count - 1)) for place in range(count)})
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    small = AutoModelForCausalLM.from_config(config).to(model.dtype)
    layers, new = decoder_layers(model), decoder_layers(small)
    prefix = next(name for name, module in small.named_modules() if module is new)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{prefix}.")}
    small.load_state_dict(own, strict=False)
    for place, layer in enumerate(kept):
        new[place].load_state_dict(layers[layer].state_dict())
    return small


def rows_of(decoder: Decoder, batch: list[WrittenText]) -> Tensor:
    """Final hidden states [positions, hidden] of all tokens that are no padding."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(text.input_ids) for text in batch], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(text.input_ids)) for text in batch], batch_first=True).bool()
    final, _ = decoder.run(-1, input_ids=ids)
    return final[mask]


Batch = tuple[list[WrittenText], Tensor]
"""Texts, and the large model's final hidden states of their tokens: read once, used in every epoch."""


def read_once(large: Decoder, texts: list[WrittenText], tokens: int, report: Any) -> list[Batch]:
    batches = batches_of_similar_length(texts, tokens)
    found = []
    with torch.no_grad():
        for batch in batches:
            found.append((batch, rows_of(large, batch)))
            report(len(found), len(batches))
    return found


def divergence(large: Decoder, small: Decoder, batch: Batch) -> tuple[Tensor, int]:
    """Sum of KL(large ‖ small) over a batch's positions in nats, and their number."""
    texts, reference = batch
    rows = rows_of(small, texts)
    return linear_kl_divergence(reference, large.unembedding.weight, rows, small.unembedding.weight), len(rows)


def heal(model: Any, small: Any, texts: list[WrittenText], arguments: argparse.Namespace, progress: Any) -> float:
    """Train the layers of `small`; returns KL per token on the held-out tenth."""
    random.Random(0).shuffle(texts)
    large_decoder, small_decoder = Decoder(model), Decoder(small)
    kinds = {"training": texts[len(texts) // 10 :], "held out": texts[: len(texts) // 10]}
    batches = {
        kind: read_once(
            large_decoder, those, arguments.tokens_per_batch,
            lambda done, total, kind=kind: progress(f"reading, {kind}", done, total),
        )
        for kind, those in kinds.items()
    }  # fmt: skip
    small.get_input_embeddings().requires_grad_(False)
    small.get_output_embeddings().requires_grad_(False)
    trained = [parameter for parameter in small.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, arguments.steps // 20, arguments.steps)
    draw = random.Random(0)
    for step in range(arguments.steps):
        total, count = divergence(large_decoder, small_decoder, draw.choice(batches["training"]))
        (total / count).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress("healing", step + 1, arguments.steps)
        if step % 50 == 0:
            say(f"KL {float(total.detach()) / count:.2f}")
    with torch.no_grad():
        sums = [divergence(large_decoder, small_decoder, batch) for batch in batches["held out"]]
    return sum(float(total) for total, _ in sums) / sum(count for _, count in sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and the text it learnt from")
    parser.add_argument("--layers", type=int, default=11, help="of the 30 (default: 11, half of the parameters)")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps (default: 400)")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=30_000, help="written from each kind of prompt (default: 30,000)")
    arguments = parser.parse_args()
    if (arguments.output / DONE).exists():
        say(f"{arguments.output} is there already")
        return
    begun = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(BASE)
    prompts = {"domain": load_rows("molecules")["prompt"], "general": general_prompts()}
    with reported_progress() as progress:
        texts = []
        for kind, given in prompts.items():
            report = prefixed(progress, "text")
            texts += write_texts(
                model, tokenizer, list(given), tokens=arguments.tokens, kind=kind, temperature=1.0,
                path=arguments.output / "text.jsonl",
                progress=lambda done, total, kind=kind, report=report: report(kind, done, total),
            )  # fmt: skip
        small = shortened(model, arguments.layers)
        reached = heal(model, small, texts, arguments, progress)
    small.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    found = {"layers": arguments.layers, "steps": arguments.steps, "kl_per_token": reached,
             "seconds": time.monotonic() - begun}  # fmt: skip
    (arguments.output / DONE).write_text(json.dumps(found, indent=1) + "\n")
    say(f"KL(large ‖ small) on held-out text: {reached:.3f} nats per token; model: {arguments.output}")


if __name__ == "__main__":
    main()
