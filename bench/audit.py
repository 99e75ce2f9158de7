"""A probe's log-likelihoods beside the LM Evaluation Harness, in one process and in turns.

    .venv/bin/python bench/audit.py --output bench/results/audit.json

The probe `capitals`: 100 prompts with 10 candidates each, whose log-likelihoods an audit ranks.

- `graftlm`: `candidate_log_likelihoods`, which reads each prompt once for all of its candidates.
- `lm-eval`: the harness's HFLM on the same 1,000 pairs of prompt and candidate.
- the limit: one forward over all prompts without padding, and the unembedding of one row for each.

The fastest round of each counts. The two's values are compared.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from graftlm import load_model
from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.tasks import get_task

MODEL = "smollm2-135m"
CANDIDATES = 10


@torch.no_grad()
def least_work(model: Any, rows: list[list[int]], batch: int) -> None:
    """Each prompt once, those of one length together, and the logits after it."""
    lengths = defaultdict(list)
    for row in rows:
        lengths[len(row)].append(row)
    for group in lengths.values():
        for start in range(0, len(group), batch):
            model(input_ids=torch.tensor(group[start : start + batch]), logits_to_keep=1, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench/results/audit.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    model, tokenizer = load_model(MODEL)
    rows = get_task("capitals").rows("test")
    prompts, answers = list(rows["prompt"]), list(rows["completion"])
    candidates = [
        [answers[(place + step) % len(answers)] for step in range(CANDIDATES)] for place in range(len(prompts))
    ]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(prompt, candidate), idx=0)
        for prompt, group in zip(prompts, candidates, strict=True) for candidate in group
    ]  # fmt: skip
    encoded = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    values: dict[str, list[float]] = {}

    def ours() -> None:
        found = candidate_log_likelihoods(model, tokenizer, prompts, candidates, arguments.batch_size)
        values["graftlm"] = [value for group in found for value, _ in group]

    def theirs() -> None:
        values["lm-eval"] = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    peers: dict[str, Callable[[], None]] = {
        "graftlm": ours, "lm-eval": theirs, "limit": lambda: least_work(model, encoded, arguments.batch_size)
    }  # fmt: skip
    seconds = dict.fromkeys(peers, float("inf"))
    for number in range(arguments.rounds):
        for name, run in peers.items():
            begun = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
        say(f"round {number + 1}/{arguments.rounds}: {seconds}")
    apart = max(abs(one - other) for one, other in zip(values["graftlm"], values["lm-eval"], strict=True))
    document = {
        "model": MODEL, "threads": torch.get_num_threads(), "versions": versions(), "pairs": len(requests),
        "seconds": seconds, "times_lm_eval": seconds["lm-eval"] / seconds["graftlm"],
        "times_limit": seconds["graftlm"] / seconds["limit"], "largest_difference_nats": apart,
    }  # fmt: skip
    write_text(arguments.output, dump_json(document, indent=1) + "\n")
    say(f"{document['times_lm_eval']:.2f} times lm-eval's speed, {document['times_limit']:.2f} times the limit's time, "
        f"values at most {apart:.1e} nats apart")  # fmt: skip


if __name__ == "__main__":
    main()
