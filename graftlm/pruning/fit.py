"""`graftlm prune fit`: rank some chains by mode exact, fit a surrogate to them, and measure it on others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import InputError
from graftlm.pruning.agreement import rank_agreement
from graftlm.pruning.encoding import encode_chain
from graftlm.pruning.features import ChainFeatures, chain_features
from graftlm.pruning.partial import partial_file
from graftlm.pruning.rows import COLUMN, Cut, Ranker, Ranking, prune_rows, read_rows, what_rows_depend_on
from graftlm.pruning.surrogate import CONFIG_FILE, RankedChain, Surrogate, fit_surrogate
from graftlm.runs.console import Report, prefixed
from graftlm.runs.files import WRITING, dump_json, plain, read_json_lines, remove, write_text
from graftlm.runs.resumable import check_same

FINISHED_FILE = "finished.json"
"""What each finished file of exact ranks was made with."""
HELD_OUT = 0.2  # share of the chains that the network is not fitted to
Rows = Sequence[Mapping[str, Any]]


def fit(
    data: str,
    output: Path,
    ranking: Ranking,
    *,
    other: str | None = None,
    chains: int = 200,
    answer_start: str | None = None,
    batch_tokens: int = 512,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Surrogate:
    """Fit a surrogate to `chains` rows of `data` and save it in `output`.

    The last fifth of the chains is only measured, and so are `chains` / 5 rows of `other`, data of another kind. The
    exact ranks stay in `output` as exact.jsonl and other.jsonl, which `graftlm prune` reads as well.

    Raises:
        InputError: as `prune_rows`, or too few chains.
    """
    if chains < 3:
        raise InputError(f"--chains is {chains}: at least 3 are needed, one of them to measure by")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a folder")
    remove(output / WRITING)  # a kill just after the last file leaves it
    if (output / CONFIG_FILE).exists() and not overwrite:
        raise InputError(f"--output {output} holds a surrogate; give another, or --overwrite")

    finished = output / FINISHED_FILE
    if overwrite and not resume:
        remove(finished)
    cut = Cut(keep=(1.0,), importance=False)
    load_ranker = cache(lambda: Ranker.load(ranking, batch_tokens, trust_remote_code))

    def exact(source: str, name: str, count: int) -> Rows:
        path = output / f"{name}.jsonl"
        depends_on = plain(what_rows_depend_on(ranking, cut, answer_start, read_rows(source, limit=count)))
        known = json.loads(finished.read_text("utf-8")) if finished.exists() else {}
        if resume and path.exists() and name in known:
            check_same(path, depends_on, known[name], "--overwrite alone")
            remove(partial_file(path))  # which a kill may have come before
            return read_json_lines(path)
        return prune_rows(
            source, path, ranking, cut, limit=count, answer_start=answer_start, resume=resume, overwrite=overwrite,
            load_ranker=load_ranker,
            finish=lambda _: write_text(finished, dump_json({**known, name: depends_on}, indent=1) + "\n"),
            progress=None if progress is None else prefixed(progress, source),
        ).rows  # fmt: skip

    rows = exact(data, "exact", chains)
    others = [] if other is None else exact(other, "other", max(1, round(HELD_OUT * chains)))
    count = max(1, round(HELD_OUT * len(rows)))
    model, tokenizer = load_ranker().model, load_ranker().tokenizer
    ranked = [ranked_chain(model, tokenizer, row) for row in rows]
    surrogate = fit_surrogate(ranked[:-count], ranking.pruner, ranking.objective, ranking.seed)
    measured = {data: measure(surrogate, ranked[-count:])}
    if other is not None:
        measured[other] = measure(surrogate, [ranked_chain(model, tokenizer, row) for row in others])
    surrogate.config = replace(surrogate.config, measured=measured)
    surrogate.save(output)
    return surrogate


def ranked_chain(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> RankedChain:
    """A row that mode exact has ranked, with the features of its tokens; those that were protected are left out."""
    pruning = row[COLUMN]
    encoding = encode_chain(tokenizer, pruning["question"], pruning["chain"], pruning["answer"])
    found = chain_features(model, encoding, pruning["ranking"]["objective"])
    scored = [place for place, value in enumerate(pruning["single_deletions"]) if value is not None]
    deletions = torch.tensor([pruning["single_deletions"][place] for place in scored], dtype=torch.float64)
    known = ChainFeatures(found.features[scored], found.estimates[scored], found.value)
    return RankedChain(known, deletions, torch.tensor([pruning["ranks"][place] for place in scored]))


def measure(surrogate: Surrogate, chains: Sequence[RankedChain]) -> dict[str, Any]:
    """On chains that it was not fitted to; beside the surrogate stands what the pass tells without it.

    `likelihood`: Pearson's correlation of predicted and true log-likelihood after deletion, over the tokens of all
    chains: of the surrogate, of `g` alone, and of the likelihood before deletion (`unchanged`), the trivial floor.
    `within`: the same of the surrogate and g within each chain, the mean. `rank`: Spearman's correlation with the exact
    ranks, mean and least.
    """
    predicted = [surrogate.predict(chain.found) for chain in chains]
    true = [chain.single_deletions for chain in chains]
    ours, g = [likelihood for likelihood, _ in predicted], [chain.found.estimates for chain in chains]
    unchanged = [torch.full_like(each, chain.found.value) for each, chain in zip(true, chains, strict=True)]
    agreement = [
        rank_agreement(rank.tolist(), chain.ranks.tolist()) for (_, rank), chain in zip(predicted, chains, strict=True)
    ]
    together = torch.cat(true)
    return {
        "chains": len(chains),
        "tokens": len(together),
        "likelihood": {
            name: pearson(torch.cat(values), together)
            for name, values in (("surrogate", ours), ("g", g), ("unchanged", unchanged))
        },
        "within": {
            name: mean([pearson(one, other) for one, other in zip(values, true, strict=True)])
            for name, values in (("surrogate", ours), ("g", g))
        },
        "rank": {"mean": mean(agreement), "least": min(agreement)},
    }


def pearson(first: Tensor, second: Tensor) -> float:
    """0 where one of the two does not vary."""
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
