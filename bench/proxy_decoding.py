"""Proxy-tuned decoding beside the authors' loop and its own limit, in one process and in turns.

    .venv/bin/python bench/small_sibling.py --output /tmp/sibling
    graftlm tune --model /tmp/sibling --objective next-token --data molecules --max-steps 100 --output /tmp/expert
    .venv/bin/python bench/proxy_decoding.py --antiexpert /tmp/sibling --expert /tmp/expert/model \\
        --output bench/results/proxy/decoding.json

- `three models`: the loop of the paper's code (arXiv 2401.08565) written anew for today's transformers: base, expert
  (its adapter merged) and anti-expert run one after another, each with its own cache.
- `proxy`: ProxyTunedModel, whose expert is the adapter on the anti-expert.
- the limit: what one forward of the base model and one of the small model without an adapter on twice
  the rows take, prompt and tokens fed in as the others have them.

`proxy` multiplies a few rows by a weight in another way than `nn.Linear` (graftlm/models/few_rows.py), which is faster
on some machines. So the others are measured twice: as transformers has them, and `quick`, with the same
products.

All write the same number of greedy tokens after the same prompts. The fastest round of each counts, since whatever
else the machine does only adds to a round. A token that differs between the two loops is looked up: the gap between
the two tokens' logits is told.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import resident_bytes
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from graftlm import ProxyTunedModel, load_model
from graftlm.models.few_rows import use_fast_cpu_products
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.tasks import get_task

BASE = "smollm2-135m"


Models = tuple[Any, Any, Any]
"""Base, expert (merged) and anti-expert."""


class Reader:
    """One model with its cache: reads tokens, gives the logits of the last one."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache()

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def three_models(models: Models, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    """base + (expert - anti-expert), one model after another; `count` greedy tokens."""
    base, expert, antiexpert = (Reader(model) for model in models)
    tokens, new = ids, ids
    for _ in range(count):
        logits = base(new, mask) + (expert(new, mask) - antiexpert(new, mask))
        new = logits.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, new], dim=-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return tokens


@torch.no_grad()
def read_along(model: Any, tokens: Tensor, mask: Tensor, count: int, copies: int) -> None:
    """The forwards that writing the last `count` of `tokens` takes, and nothing else."""
    tokens = tokens.repeat(copies, 1)
    mask = torch.cat([mask, mask.new_ones(len(mask), count)], dim=-1).repeat(copies, 1)
    read, prompt = Reader(model), tokens.shape[1] - count
    read(tokens[:, :prompt], mask[:, :prompt])
    for place in range(prompt, tokens.shape[1] - 1):
        read(tokens[:, place : place + 1], mask[:, : place + 1])


def fastest(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, run in turns."""
    best = dict.fromkeys(peers, float("inf"))
    for number in range(rounds):
        for name, run in peers.items():
            begun = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begun)
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items()))
    return best


def plain_decoding(model: Any, apart: list[Models], ids: Tensor, mask: Tensor, arguments: Any) -> Any:
    """Seconds of each peer on one batch, and whether both loops wrote the same."""
    plain, quick = apart
    count = arguments.new_tokens
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = three_models(plain, ids, mask, count)
    ours = model.generate(ids, attention_mask=mask, **options)
    best = fastest(
        {
            "three models": lambda: three_models(plain, ids, mask, count),
            "three models, quick": lambda: three_models(quick, ids, mask, count),
            "proxy": lambda: model.generate(ids, attention_mask=mask, **options),
            "base forward": lambda: read_along(plain[0], ours, mask, count, 1),
            "base forward, quick": lambda: read_along(quick[0], ours, mask, count, 1),
            "small forward": lambda: read_along(plain[2], ours, mask, count, 2),
            "small forward, quick": lambda: read_along(quick[2], ours, mask, count, 2),
        },
        arguments.rounds,
    )
    times_three_models, times_limit = {}, {}
    for kind in ("", ", quick"):
        times_three_models[f"plain{kind}"] = best[f"three models{kind}"] / best["proxy"]
        times_limit[f"plain{kind}"] = best["proxy"] / (best[f"base forward{kind}"] + best[f"small forward{kind}"])
    found = {
        "batch_size": len(ids),
        "new_tokens": count,
        "seconds": best,
        "same_tokens": bool(torch.equal(ours, theirs)),
        "first_gaps": first_gaps(model, ours, theirs, mask),
        "times_three_models": times_three_models,
        "times_limit": times_limit,
    }
    for name, ratios in {"of three models": times_three_models, "the limit": times_limit}.items():
        say(f"batch {len(ids)}: " + ", ".join(f"{ratio:.2f}x {name} ({kind})" for kind, ratio in ratios.items()))
    return found


@torch.no_grad()
def first_gaps(model: Any, ours: Tensor, theirs: Tensor, mask: Tensor) -> list[float]:
    """Of each row that differs: how far apart the logits of the two first differing tokens are."""
    gaps = []
    for row, other, kept in zip(ours, theirs, mask, strict=True):
        differing = (row != other).nonzero()
        if len(differing):
            place = int(differing[0])
            start = int((kept == 0).sum())
            logits = model(row[None, start:place]).logits[0, -1]
            gaps.append(float((logits[row[place]] - logits[other[place]]).abs()))
    return gaps


def memory(model: Any, resident: dict[str, int]) -> dict[str, int]:
    """Bytes of the weights, each counted once, and of the process with only the composition loaded."""
    weights = {}
    for name, part in {"base": model.base, "small with adapter": model.experts}.items():
        sizes = {each.data_ptr(): each.numel() * each.element_size() for each in part.parameters()}
        weights[f"{name}_bytes"] = sum(sizes.values())
    return {**weights, **resident}


def resident_model(name: str) -> tuple[Any, Any]:
    """The weights copied out of the mapped file, so that the process holds them."""
    model, tokenizer = load_model(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.tie_weights()
    return model, tokenizer


def separate_models(arguments: argparse.Namespace) -> Models:
    adapted: Any = load_model(arguments.expert)[0]
    return load_model(BASE)[0], adapted.merge_and_unload(), load_model(arguments.antiexpert)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--antiexpert", required=True, help="the small model")
    parser.add_argument("--expert", required=True, help="a LoRA adapter on it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=128, help="of each prompt (default: 128)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    before = resident_bytes()
    base, tokenizer = resident_model(BASE)
    small, _ = resident_model(arguments.antiexpert)
    model = ProxyTunedModel(base, PeftModel.from_pretrained(small, arguments.expert))
    held = memory(model, {"resident_bytes": resident_bytes() - before})
    say(f"weights {(held['base_bytes'] + held['small with adapter_bytes']) / 2**20:.0f} MiB, "
        f"process grew by {held['resident_bytes'] / 2**20:.0f} MiB")  # fmt: skip
    apart = [separate_models(arguments) for _ in range(2)]
    for part in (model, *apart[1]):
        use_fast_cpu_products(part)
    prompts = get_task("molecules").rows("test")["prompt"]
    plain = []
    for rows in arguments.batch_sizes:
        encoded = tokenizer(prompts[:rows], return_tensors="pt", padding=True, padding_side="left")
        plain.append(plain_decoding(model, apart, encoded["input_ids"], encoded["attention_mask"], arguments))
    document = {
        "base": BASE,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "memory": held,
        "plain": plain,
    }
    write_text(arguments.output, dump_json(document, indent=1) + "\n")
    say(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
