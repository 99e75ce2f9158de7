"""Decoding with drafting heads beside plain `generate`, in one process and in turns, prompt by prompt.

    .venv/bin/python bench/speculative.py --folder /tmp/speculative

- general, domain: the bundled model goes on from general prompts and from names of molecules, texts of the kind that
  its heads were distilled on, but from prompts that were held out of that, and from beginnings of encyclopaedic text.
- molecules: the same model tuned on `molecules` (multi-token, one epoch), its heads refreshed on what it writes since,
  answers the test questions.

- `generate`: transformers' own. `quick`: the same with the products of graftlm/models/few_rows.py, which
  `graftlm generate` uses as well. `heads`: those and drafts, as many as pay.
- tokens a pass, and how far that is from drafts that are all right: every pass would yield all heads' tokens and one.

Greedy, batch 1 prompt by prompt, then batches. Tokens of `heads` and `generate` are compared; where they differ, the
gap between the two tokens' logits is told. FOLDER keeps heads and models, which take half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad as pad_rows

from graftlm import load_model
from graftlm.data.load import general_text
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.few_rows import transposed_is_faster, use_fast_cpu_products
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.tasks import get_task

BASE = "smollm2-135m"


def prepare(folder: Path, domain_tokens: int, general_tokens: int) -> None:
    """Heads of the base model, the tuned model, and its refreshed heads, where they are missing."""
    sizes = ["--domain-tokens", str(domain_tokens), "--general-tokens", str(general_tokens), "--epochs", "5"]
    steps = {
        "heads": ["distill", "--data", "molecules", *sizes],
        "tuned": ["tune", "--data", "molecules", "--heads", str(folder / "heads")],
        "refreshed": [
            "distill", "--data", "molecules", "--model", str(folder / "tuned" / "model"), "--general-tokens", "0",
            "--domain-tokens", str(domain_tokens // 2), "--epochs", "3", "--temperature", "0.3",
            "--refresh", str(folder / "heads"),
        ],
    }  # fmt: skip
    for name, arguments in steps.items():
        if not any((folder / name / file).exists() for file in ("agreement.json", "model")):
            say(f"preparing {name}")
            command = [sys.executable, "-m", "graftlm", *arguments, "--output", str(folder / name)]
            subprocess.run([*command, *(["--resume"] if (folder / name).exists() else [])], check=True)


def tuned_model(folder: Path) -> tuple[Any, MultiTokenHeads, Any]:
    """The tuned model, in one piece, with its refreshed heads, and its tokenizer."""
    adapted, tokenizer = load_model(str(folder / "tuned" / "model"))
    model = adapted.merge_and_unload()  # type: ignore[union-attr, operator]
    return model, MultiTokenHeads.from_pretrained(folder / "refreshed", model), tokenizer


def held_out_prompts(folder: Path, kind: str, tokenizer: Any, count: int) -> list[list[int]]:
    """Of the distillation's prompts those that its heads have not learnt from."""
    from graftlm.data.written_text import TEXT_FILE, read_texts
    from graftlm.heads.config import DistillConfig
    from graftlm.heads.texts import split_held_out

    config = DistillConfig()
    _, held_out = split_held_out(read_texts(folder / "heads" / TEXT_FILE), config.held_out, config.seed)
    prompts = {tuple(text.input_ids[: text.prompt_length]): None for text in held_out if text.kind == kind}
    return [list(prompt) for prompt in prompts][:count]


def peers(model: Any, heads: MultiTokenHeads) -> dict[str, Callable[..., Any]]:
    """Functions that write; two where our products are not used."""
    decoding = HeadsDecoding(model, heads)

    def with_products(generate: Callable[..., Any]) -> Callable[..., Any]:
        def run(**inputs: Any) -> Any:
            with use_fast_cpu_products(model), use_fast_cpu_products(decoding.heads):
                return generate(**inputs)

        return run

    writers = {"generate": model.generate, "heads": with_products(decoding.generate)}
    if model.device.type == "cpu" and transposed_is_faster():
        writers["quick"] = with_products(model.generate)
        writers["heads, plain products"] = HeadsDecoding(model, heads).generate
    return writers


@torch.no_grad()
def measure(
    model: Any, heads: MultiTokenHeads, prompts: Sequence[list[int]], pad: int, arguments: Any
) -> dict[str, Any]:
    """Prompt by prompt, and batch by batch, all peers in turns."""
    writers = peers(model, heads)
    found: dict[str, Any] = {}
    for batch in arguments.batches:
        seconds = dict.fromkeys(writers, 0.0)
        totals = {"tokens": 0, "passes": 0, "rows": 0, "drafted": 0, "accepted": 0}
        gaps: list[float] = []
        texts = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
        for number, rows in enumerate(texts):
            width = max(map(len, rows))
            inputs = {
                "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device),
                "attention_mask": torch.tensor(
                    [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device
                ),
                "max_new_tokens": arguments.new_tokens, "do_sample": False, "pad_token_id": pad,
                "return_dict_in_generate": True,
            }  # fmt: skip
            outputs = {}
            names = list(writers)
            for name in names[number % len(names) :] + names[: number % len(names)]:  # no one is always first
                begun = time.perf_counter()
                outputs[name] = writers[name](**inputs)
                seconds[name] += time.perf_counter() - begun
            plain, drafted = outputs["generate"].sequences, outputs["heads"]
            totals["tokens"] += int((plain[:, width:] != pad).sum())
            totals["passes"] += drafted.rounds + 1
            totals["rows"] += (drafted.rounds + 1) * len(rows)
            totals["drafted"] += drafted.drafted
            totals["accepted"] += drafted.accepted
            gaps += differing_gaps(model, plain, drafted.sequences, inputs["attention_mask"], pad)
        rates = {name: totals["tokens"] / taken for name, taken in seconds.items()}
        found[str(batch)] = {
            "prompts": len(prompts), **totals, "seconds": seconds, "tokens_per_second": rates,
            "times_generate": {name: rate / rates["generate"] for name, rate in rates.items()},
            "times_quick": rates["heads"] / rates.get("quick", rates["generate"]),
            "tokens_per_pass": totals["tokens"] / totals["rows"], "differing": gaps,
        }  # fmt: skip
        kept = f"{totals['accepted']} of {totals['drafted']} drafts kept"
        say(
            f"batch {batch}: {', '.join(f'{name} {rate:.1f}' for name, rate in rates.items())} tokens/s; "
            f"{found[str(batch)]['tokens_per_pass']:.2f} tokens a pass, {kept}, {len(gaps)}/{len(prompts)} texts differ"
        )
    return found


def differing_gaps(model: Any, plain: Any, drafted: Any, mask: Any, pad: int) -> list[float]:
    """Of each row that differs, be it in length: how far apart the logits of the two first differing tokens are."""
    gaps = []
    width = max(plain.shape[1], drafted.shape[1])
    plain, drafted = (pad_rows(each, (0, width - each.shape[1]), value=pad) for each in (plain, drafted))
    for row, other, kept in zip(plain, drafted, mask, strict=True):
        if len(places := (row != other).nonzero()):
            place, start = int(places[0]), int((kept == 0).sum())
            logits = model(row[None, start:place]).logits[0, -1]
            gaps.append(float((logits[row[place]] - logits[other[place]]).abs()))
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for heads and models, which are used again")
    parser.add_argument("--output", type=Path, default=Path("bench/results/speculative.json"))
    parser.add_argument("--prompts", type=int, default=67, help="of each kind of text")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--domain-tokens", type=int, default=90_000)
    parser.add_argument("--general-tokens", type=int, default=30_000)
    arguments = parser.parse_args()
    prepare(arguments.folder, arguments.domain_tokens, arguments.general_tokens)
    model, tokenizer = load_model(BASE)
    heads = MultiTokenHeads.from_pretrained(arguments.folder / "heads", model)
    results: dict[str, Any] = {}
    for kind in ("general", "domain"):
        prompts = held_out_prompts(arguments.folder, kind, tokenizer, arguments.prompts)
        if kind == "general":  # few of the bundled prompts are held out
            others = [list(tokenizer(text)["input_ids"])[:8] for text in general_text()]
            prompts += others[: arguments.prompts - len(prompts)]
        say(f"{kind}: {len(prompts)} prompts")
        results[kind] = measure(model, heads, prompts, tokenizer.pad_token_id, arguments)
    tuned, refreshed, _ = tuned_model(arguments.folder)
    say("molecules")
    questions = get_task("molecules").rows("test")["prompt"][: arguments.prompts]
    results["molecules"] = measure(
        tuned, refreshed, [list(tokenizer(text)["input_ids"]) for text in questions], tokenizer.pad_token_id, arguments,
    )  # fmt: skip
    agreements = {name: json.loads((arguments.folder / name / "agreement.json").read_text())["heads"]
                  for name in ("heads", "refreshed")}  # fmt: skip
    document = {
        "base": BASE, "device": model.device.type, "threads": torch.get_num_threads(), "versions": versions(),
        "heads": heads.num_heads,
        "settings": {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "agreement": agreements, "results": results,
    }  # fmt: skip
    write_text(arguments.output, dump_json(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
