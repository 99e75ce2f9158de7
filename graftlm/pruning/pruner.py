"""`prune_chain`: a chain of reasoning, its tokens in the order in which a model can do without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.models.decoder import context_length
from graftlm.models.modes import at_rest
from graftlm.pruning import baselines
from graftlm.pruning.config import PruneSettings
from graftlm.pruning.encoding import ChainToken, Question, encode_chain, protected_tokens, units_of
from graftlm.pruning.greedy import Deletions, OnStep, exact_order
from graftlm.pruning.pruned_chain import PrunedChain
from graftlm.pruning.scorer import Scorer
from graftlm.pruning.screened import screened_order

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from graftlm.pruning.surrogate import Surrogate

GREEDY = {"exact": exact_order, "screened": screened_order}


def prune_chain(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    chain: str,
    answer: str,
    settings: PruneSettings | None = None,
    *,
    surrogate: Surrogate | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> PrunedChain:
    """Rank the tokens of `chain` by what the model's log-likelihood loses without them.

    Args:
        question: text, or the messages of a chat, which get the tokenizer's template with its generation prompt.
        chain, answer: text that follows the question as it is, whatever space is between them included.
        settings: how the tokens are ranked.
        surrogate: the network of mode "surrogate", see `load_surrogate`.
        on_step: called after each step with the number of tokens or words just deleted.
        changes: fields of `settings` to set otherwise, such as mode="screened" or protect="numbers".

    Raises:
        InputError: a setting is out of range, a text is empty, too long for the model, or not given back by the
            tokenizer.
    """
    if isinstance(changes.get("protect"), str):
        changes["protect"] = [changes["protect"]]
    settings = replace(settings or PruneSettings(), **changes)
    if settings.mode == "surrogate" and surrogate is None:
        raise InputError("mode surrogate needs a surrogate: load_surrogate(FOLDER), made by graftlm prune fit")
    encoding = encode_chain(tokenizer, question, chain, answer)
    _check_length(model, len(encoding))
    units = units_of(encoding.chain, settings.granularity)
    tokens = protected_tokens(encoding.chain, chain, answer, settings.protect)
    protected = {number for number, unit in enumerate(units) if not tokens.isdisjoint(unit)}
    ids = [[encoding.chain[place].id for place in unit] for unit in units]
    new_scorer = partial(
        Scorer, model, encoding.question, ids, encoding.answer, settings.objective, batch_tokens=settings.batch_tokens
    )
    with at_rest(model):
        if settings.mode in GREEDY:
            deletions = GREEDY[settings.mode](new_scorer(), protected, on_step)
            return _pruned(chain, encoding.chain, units, deletions.order, deletions.single, deletions.values.copy)
        if surrogate is not None and settings.mode == "surrogate":
            scores = surrogate.scores(model, encoding, settings.objective)
        else:
            scores = baselines.scores(model, encoding, chain, settings)
    order = baselines.order_of(scores, units, protected)
    return _pruned(chain, encoding.chain, units, order, {}, partial(_log_likelihoods, model, new_scorer, order))


def _pruned(
    chain: str,
    tokens: list[ChainToken],
    units: Sequence[Sequence[int]],
    order: Sequence[int],
    single: Mapping[int, float],
    measure: Callable[[], list[float]],
) -> PrunedChain:
    """The result for tokens, of an order of units."""
    ranks = [0] * len(tokens)
    alone: list[float | None] = [None] * len(tokens)
    for step, unit in enumerate(order, start=1):
        for place in units[unit]:
            ranks[place], alone[place] = step, single.get(unit)
    places = [place for unit in order for place in units[unit]]
    return PrunedChain(chain=chain, tokens=tokens, order=places, ranks=ranks, single_deletions=alone, measure=measure)


def _log_likelihoods(model: Any, new_scorer: Callable[[], Scorer], order: Sequence[int]) -> list[float]:
    with at_rest(model):
        deletions = Deletions(new_scorer())
        for unit in order:
            deletions.add(unit)
        return deletions.values


def _check_length(model: Any, length: int) -> None:
    limit = context_length(model)
    if limit is not None and length > limit:
        raise InputError(f"question, chain and answer have {length} tokens, the model {limit} positions: shorten them")
