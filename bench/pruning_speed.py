"""Greedy pruning of real chains: the plain algorithm, `exact` and `screened`, chain by chain and in turns.

    .venv/bin/python bench/pruning_speed.py --output bench/results/pruning/speed.json

- `plain`: the algorithm of arXiv 2601.03066 written as it reads: at each step one full pass for every token that is
  left, in batches, all positions unembedded. It goes along the order of `exact`, and tells whether it would have
  deleted the same token: where it always would, its own order is the same. With --every N only every Nth step is taken,
  and its time is scaled by the number of tokens in all passes.
- `exact`: `prune_chain(..., mode="exact")`, with the same rule for ties.
- `screened`, and with --surrogate `surrogate`: `prune_chain` in that mode; Spearman's rank correlation of its ranks
  with those of `exact`.
- With --rounded N, of N chains the same of `exact` with weights rounded to bfloat16: whether the ranks hang on such
  details.

The limit of `exact`: the matrix products of the positions that have to be read, each once as long as what precedes it
stays the same, all in batches of 512.

Chains: GSM-Symbolic problems of reasoning-gym with their own solutions. The plain algorithm takes a quarter of an hour
for 60 tokens and two for 150: each chain's result is kept in the output file, and a chain that is there is not measured
again (with --again only screened and surrogate are). Seconds are those of the process's own CPU time, with one thread,
so that what else the machine does counts less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from graftlm import load_model
from graftlm.pruning import prune_chain
from graftlm.pruning.config import Mode, PruneSettings
from graftlm.pruning.encoding import Encoding, encode_chain
from graftlm.pruning.greedy import TIE
from graftlm.pruning.pruned_chain import rank_agreement
from graftlm.pruning.surrogate import Surrogate, load_surrogate
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.tasks.reasoning import Reasoning

BASE = "smollm2-135m"
BATCH_TOKENS = 1024
"""Of the plain algorithm's passes."""


def chains(tokenizer: Any, count: int, shortest: int, longest: int) -> list[tuple[str, str, str, Encoding]]:
    """Question, chain and answer of the first `count` problems whose chain has that many tokens."""
    found: list[tuple[str, str, str, Encoding]] = []
    for problem in Reasoning("reasoning-gym:gsm_symbolic").problems("train", 40 * count):
        chain = problem["metadata"]["answer_cot"].rpartition("####")[0].rstrip()
        texts = (f"{problem['question']}\n", chain, f"\nThe answer is {problem['answer']}")
        encoding = encode_chain(tokenizer, *texts)
        if shortest <= len(encoding.chain) <= longest:
            found.append((*texts, encoding))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} chains of {shortest} to {longest} tokens")


@torch.no_grad()
def plain(
    model: Any,
    encoding: Encoding,
    order: Sequence[int],
    every: int,
    on_step: Callable[[int], None],
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[float, int, list[dict[str, float]]]:
    """Seconds, the number of steps taken, and those whose own choice is not that of `order`, with the gap in nats."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    left = list(range(len(order)))
    differing: list[dict[str, float]] = []
    seconds = tokens = all_tokens = 0.0
    for step, given in enumerate(order):
        others = len(encoding.question) + len(left) - 1 + len(encoding.answer)
        all_tokens += len(left) * others
        if step % every == 0:
            begun = clock()
            rows = [
                [*encoding.question, *(encoding.chain[place].id for place in left if place != out), *encoding.answer]
                for out in left
            ]
            scores = log_likelihoods(model, rows, len(encoding.question), batch_tokens)
            chosen = int((scores >= scores.max() - TIE).nonzero()[0])
            seconds += clock() - begun
            tokens += len(left) * others
            if left[chosen] != given:
                differing.append({"step": step, "gap_nats": float(scores[chosen] - scores[left.index(given)])})
        left.remove(given)
        on_step(1)
    return seconds * all_tokens / tokens, len(range(0, len(order), every)), differing


def positions_to_read(order: Sequence[int], answer: int) -> tuple[int, int]:
    """Of exact pruning that deletes in this order: positions that go through the layers, and that are unembedded.

    A sequence without a token is read from there on, and from where the last deletion was if that was further on.
    """
    left, known = list(range(len(order))), dict[int, int]()
    read = unembedded = 0
    for deleted in order:
        for place, unit in enumerate(left):
            length = len(left) - 1 + answer - max(place, known.get(unit, 0))
            read, unembedded = read + length - 1, unembedded + length
        place = left.index(deleted)
        known = dict.fromkeys(left[:place], place - 1)
        left.remove(deleted)
    return read, unembedded


@torch.no_grad()
def seconds_a_position(model: Any, rows: int = 512) -> tuple[float, float]:
    """CPU time of the bare products of a position with the layers' weights, and with the unembedding."""

    def fastest(weight: Any) -> float:
        inputs, found = torch.randn(rows, weight.shape[1]), []
        for _ in range(5):
            begun = time.process_time()
            inputs @ weight.T
            found.append(time.process_time() - begun)
        return min(found) / rows

    unembedding = model.get_output_embeddings()
    shapes = Counter(
        tuple(part.weight.shape)
        for part in model.modules()
        if isinstance(part, torch.nn.Linear) and part is not unembedding
    )
    return sum(count * fastest(torch.randn(shape)) for shape, count in shapes.items()), fastest(unembedding.weight)


def log_likelihoods(model: Any, rows: Sequence[Sequence[int]], first: int, batch_tokens: int) -> torch.Tensor:
    """Of each row (all of one length) the sum of log p over the tokens from `first` on."""
    ids = torch.tensor(rows, device=model.device)
    batches = ids.split(max(1, batch_tokens // ids.shape[1]))
    return torch.cat([row_log_likelihoods(model, batch, first) for batch in batches])


def row_log_likelihoods(model: Any, ids: torch.Tensor, first: int) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    chosen = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    return chosen[:, first - 1 :].double().sum(-1)


def agreement(order: Sequence[int], other: Sequence[int]) -> float:
    """Spearman's, of the ranks in two permutations."""
    first, second = (sorted(range(len(each)), key=each.__getitem__) for each in (order, other))
    return rank_agreement(first, second)


def measure(
    model: Any,
    tokenizer: Any,
    texts: tuple[str, str, str, Encoding],
    known: dict[str, Any],
    every: int,
    surrogate: Surrogate | None,
) -> dict[str, Any]:
    """Seconds, orders and how they agree; those of `exact` and `plain` may be `known`."""
    question, chain, answer, encoding = texts
    seconds, orders = dict(known.get("seconds", {})), dict(known.get("orders", {}))
    modes: list[Mode] = ["screened", *(["surrogate"] if surrogate else []), *([] if known else ["exact"])]  # type: ignore[list-item]
    for mode in modes:
        begun = time.process_time()
        pruned = prune_chain(
            model, tokenizer, question, chain, answer, PruneSettings(mode=mode), surrogate=surrogate,
            on_step=progress(mode, encoding),
        )  # fmt: skip
        seconds[mode], orders[mode] = time.process_time() - begun, pruned.order
    rounded = {"rounded": known["rounded"]} if "rounded" in known else {}
    compared, differing = known.get("steps_compared", 0), known.get("differing", [])
    if not known:
        seconds["plain"], compared, differing = plain(
            model, encoding, orders["exact"], every, progress("plain", encoding)
        )
    return {
        "chain": chain,
        "tokens": len(encoding.chain),
        "question_tokens": len(encoding.question),
        "answer_tokens": len(encoding.answer),
        "seconds": seconds,
        "steps_compared": compared,
        "differing": differing,
        "spearman": {mode: agreement(orders["exact"], orders[mode]) for mode in orders if mode != "exact"},
        "orders": orders,
        **rounded,
    }


def rounding_agreement(
    model: Any, tokenizer: Any, texts: tuple[str, str, str, Encoding], exact: Sequence[int]
) -> float:
    """Spearman's, of the exact ranks with those of a `model` whose weights were rounded."""
    pruned = prune_chain(model, tokenizer, *texts[:3], mode="exact", on_step=progress("rounded", texts[3]))
    return agreement(exact, pruned.order)


def rounded_copy(name: str) -> Any:
    model, _ = load_model(name)
    for weights in model.parameters():
        weights.data = weights.data.bfloat16().to(weights.dtype)
    return model


def progress(name: str, encoding: Encoding) -> Callable[[int], None]:
    """Says every minute how far it is."""
    done, begun = 0, time.monotonic()

    def on_step(steps: int) -> None:
        nonlocal done, begun
        done += steps
        if time.monotonic() - begun > 60:
            begun = time.monotonic()
            say(f"  {name}: {done}/{len(encoding.chain)} tokens")

    return on_step


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over the chains that have been measured in all modes which the last one has."""
    modes = [mode for mode in results[-1]["orders"] if all(mode in each["orders"] for each in results)]
    total = {mode: sum(each["seconds"][mode] for each in results) for mode in ("plain", *modes)}
    ratios = {mode: [each["seconds"]["plain"] / each["seconds"][mode] for each in results] for mode in modes}
    correlations = {mode: [each["spearman"][mode] for each in results] for mode in modes if mode != "exact"}
    return {
        "chains": len(results),
        "tokens": sum(each["tokens"] for each in results),
        "seconds": total,
        "times_plain": {mode: total["plain"] / total[mode] for mode in ratios},
        "times_plain_least": {mode: min(ratio) for mode, ratio in ratios.items()},
        "steps_compared": sum(each["steps_compared"] for each in results),
        "times_limit": {"exact": total["exact"] / sum(each["limit_seconds"] for each in results)},
        "same_choice": sum(each["steps_compared"] - len(each["differing"]) for each in results),
        "spearman_mean": {mode: sum(values) / len(values) for mode, values in correlations.items()},
        "spearman_least": {mode: min(values) for mode, values in correlations.items()},
        "spearman_rounded": [each["rounded"] for each in results if "rounded" in each],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="also where a run that was cut off goes on")
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--shortest", type=int, default=60, help="tokens of a chain (default: 60)")
    parser.add_argument("--longest", type=int, default=150, help="tokens of a chain (default: 150)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no chain after so many")
    parser.add_argument("--every", type=int, default=1, help="of the plain algorithm take every Nth step (default: 1)")
    parser.add_argument("--surrogate", type=Path, help="folder of `graftlm prune fit`, to be measured as well")
    parser.add_argument("--again", action="store_true", help="measure all but exact and plain of known chains again")
    parser.add_argument("--rounded", type=int, default=0, help="of how many chains rounded weights are tried")
    arguments = parser.parse_args()
    begun = time.monotonic()
    torch.set_num_threads(1)
    model, tokenizer = load_model(BASE)
    costs = seconds_a_position(model)
    surrogate = load_surrogate(arguments.surrogate) if arguments.surrogate else None
    wanted = chains(tokenizer, arguments.chains, arguments.shortest, arguments.longest)
    rounded = rounded_copy(BASE) if arguments.rounded else None
    stored = json.loads(arguments.output.read_text())["results"] if arguments.output.exists() else []
    results = {each["chain"]: each for each in stored}
    for number, texts in enumerate(wanted, start=1):
        known = results.get(texts[1], {})
        try_rounded = number <= arguments.rounded and "rounded" not in known
        if known and not arguments.again and not try_rounded:
            continue
        if time.monotonic() - begun > 60 * arguments.minutes:
            say(f"stopped at the limit of {arguments.minutes:g} minutes; the same command goes on")
            break
        if not known or arguments.again:
            results[texts[1]] = measure(model, tokenizer, texts, known, arguments.every, surrogate)
        if try_rounded:
            exact = results[texts[1]]["orders"]["exact"]
            results[texts[1]]["rounded"] = rounding_agreement(rounded, tokenizer, texts, exact)
        for each in results.values():
            counts = positions_to_read(each["orders"]["exact"], each["answer_tokens"])
            each["limit_seconds"] = sum(count * cost for count, cost in zip(counts, costs, strict=True))
        document = {
            "base": BASE,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "summary": summary(list(results.values())),
            "results": list(results.values()),
        }
        write_text(arguments.output, dump_json(document, indent=1) + "\n")
        say(f"chain {number}/{len(wanted)}, {line(summary([results[texts[1]]]))}; so far {line(document['summary'])}")
    say(f"written: {arguments.output}")


def line(found: dict[str, Any]) -> str:
    speeds = ", ".join(f"{mode} {ratio:.1f}x" for mode, ratio in found["times_plain"].items())
    agreements = ", ".join(f"{mode} {value:.3f}" for mode, value in found["spearman_mean"].items())
    return (
        f"{found['tokens']} tokens: plain {found['seconds']['plain']:.0f} s, {speeds}, {found['same_choice']} of "
        f"{found['steps_compared']} choices the same, Spearman with exact: {agreements}"
    )


if __name__ == "__main__":
    main()
