"""`graftlm prune fit`: rank some chains by mode exact, fit a surrogate to them, and measure it on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftlm.models.given import GivenPair
from graftlm.pruning.config import PruneConfig, PruneFitConfig
from graftlm.pruning.encoding import encode_chain
from graftlm.pruning.features import ChainFeatures, chain_features
from graftlm.pruning.prune import Ranker, Row, prune_rows, read_rows
from graftlm.pruning.pruned_chain import rank_agreement
from graftlm.pruning.pruned_file import COLUMN, partial_file, write_pruned
from graftlm.pruning.surrogate import CONFIG_FILE, RankedChain, Surrogate, fit_surrogate, load_surrogate
from graftlm.runs.console import Report, prefixed
from graftlm.runs.files import WRITING, remove
from graftlm.runs.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = 0.2  # share of the chains that the network is not fitted to


def fit(
    config: PruneFitConfig, run: Run, *, given: GivenPair | None = None, progress: Report | None = None
) -> Surrogate:
    """Fit a surrogate to `config.chains` rows of `config.data` and save it in the run's folder.

    The last fifth of the chains is only measured, and so are `chains` / 5 rows of `other`, data of another kind. The
    exact ranks stay there as exact.jsonl and other.jsonl, which `graftlm prune` reads as well.

    Args:
        given: a loaded model in the place of `config.pruner`, and its tokenizer.

    Raises:
        InputError: as `prune`, or too few chains.
    """
    remove(run.folder / WRITING)  # a kill just after the last file leaves it
    sources = {"exact": (config.data, config.chains)}
    if config.other is not None:
        sources["other"] = (config.other, max(1, round(HELD_OUT * config.chains)))
    configs = {
        name: config.exact_ranks(data, str(run.folder / f"{name}.jsonl"), count)
        for name, (data, count) in sources.items()
    }
    if (run.folder / CONFIG_FILE).exists():  # a kill just before the end is resumed
        surrogate = load_surrogate(run.folder)
    else:
        chains = rank_exactly(configs, run, given, progress)
        surrogate = fit_and_measure(config, chains)
        surrogate.save(run.folder)
    for each in configs.values():
        remove(partial_file(Path(each.output)))
    return surrogate


def rank_exactly(
    configs: Mapping[str, PruneConfig], run: Run, given: GivenPair | None, progress: Report | None
) -> dict[str, list[RankedChain]]:
    """Rank the rows of each config, write them to its output, and return the chains."""
    sources = {name: read_rows(config) for name, config in configs.items()}
    ranker = Ranker.load(configs["exact"], given)
    chains = {}
    for name, config in configs.items():
        report = None if progress is None else prefixed(progress, config.data)
        rows, failed = prune_rows(config, sources[name], ranker, run, with_importance=False, progress=report)
        write_pruned(Path(config.output), rows, failed)
        chains[name] = [ranked_chain(ranker.model, ranker.tokenizer, row) for row in rows]
    return chains


def fit_and_measure(config: PruneFitConfig, chains: Mapping[str, Sequence[RankedChain]]) -> Surrogate:
    """Fit to all but the last fifth of the chains, and measure on the others."""
    count = max(1, round(HELD_OUT * len(chains["exact"])))
    surrogate = fit_surrogate(chains["exact"][:-count], config.pruner, config.objective, config.seed)
    measured = {config.data: measure(surrogate, chains["exact"][-count:])}
    if config.other is not None:
        measured[config.other] = measure(surrogate, chains["other"])
    surrogate.config = replace(surrogate.config, measured=measured)
    return surrogate


def ranked_chain(model: Any, tokenizer: PreTrainedTokenizerBase, row: Row) -> RankedChain:
    """A row that mode exact has ranked, with the features of its tokens; those that were protected are left out."""
    pruning: Mapping[str, Any] = row[COLUMN]
    encoding = encode_chain(tokenizer, pruning["question"], pruning["chain"], pruning["answer"])
    features = chain_features(model, encoding, pruning["ranking"]["objective"])
    scored = [place for place, value in enumerate(pruning["single_deletions"]) if value is not None]
    deletions = torch.tensor([pruning["single_deletions"][place] for place in scored], dtype=torch.float64)
    ranks = torch.tensor([pruning["ranks"][place] for place in scored])
    of_scored = ChainFeatures(features.features[scored], features.estimates[scored], features.value)
    return RankedChain(of_scored, deletions, ranks)


def measure(surrogate: Surrogate, chains: Sequence[RankedChain]) -> dict[str, Any]:
    """Measure on chains that it was not fitted to; beside the surrogate stands what the pass tells without it.

    `likelihood`: Pearson's correlation of predicted and true log-likelihood after deletion, over the tokens of all
    chains: of the surrogate, of `g` alone, and of the likelihood before deletion (`unchanged`), the trivial floor.
    `within`: the same of the surrogate and g within each chain, the mean. `rank`: Spearman's correlation with the exact
    ranks, mean and least.
    """
    predicted = [surrogate.predict(chain.known) for chain in chains]
    true = [chain.single_deletions for chain in chains]
    ways = {
        "surrogate": [likelihood for likelihood, _ in predicted],
        "g": [chain.known.estimates for chain in chains],
        "unchanged": [torch.full_like(chain.single_deletions, chain.known.value) for chain in chains],
    }
    agreement = [
        rank_agreement(rank.tolist(), chain.ranks.tolist()) for (_, rank), chain in zip(predicted, chains, strict=True)
    ]
    together = torch.cat(true)
    return {
        "chains": len(chains),
        "tokens": len(together),
        "likelihood": {name: pearson(torch.cat(values), together) for name, values in ways.items()},
        "within": {
            name: fmean(pearson(one, other) for one, other in zip(ways[name], true, strict=True))
            for name in ("surrogate", "g")
        },
        "rank": {"mean": fmean(agreement), "least": min(agreement)},
    }


def pearson(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])
