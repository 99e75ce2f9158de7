"""`prune_chain`: a chain of reasoning, its tokens in the order in which a model can do without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.models.decoder import context_length
from graftlm.pruning import baselines
from graftlm.pruning.choices import Granularity, Mode, Objective, check_choice
from graftlm.pruning.encoding import Encoding, Question, encode_chain, protected_tokens, word_units
from graftlm.pruning.greedy import Deletions, OnStep, exact_order
from graftlm.pruning.pruned_chain import PrunedChain
from graftlm.pruning.scorer import Scorer
from graftlm.pruning.screened import screened_order

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from graftlm.pruning.surrogate import Surrogate


def prune_chain(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    chain: str,
    answer: str,
    objective: Objective = "joint",
    mode: Mode = "exact",
    *,
    granularity: Granularity = "token",
    protect: str | Sequence[str] = (),
    batch_tokens: int = 512,
    seed: int = 0,
    llmlingua_model: str | None = None,
    surrogate: Surrogate | None = None,
    on_step: OnStep | None = None,
) -> PrunedChain:
    """Rank the tokens of `chain` by what the model's log-likelihood loses without them.

    Args:
        question: text, or the messages of a chat, which get the tokenizer's template with its generation prompt.
        chain, answer: text that follows the question as it is, whatever space is between them included.
        objective: "joint" is log P(what is left of the chain, answer | question), "answer" is log P(answer | question,
            what is left of the chain).
        mode: "exact" scores every deletion at every step, "screened" only the likely best ones (same idea, an order
            close to that, many times faster), "surrogate" takes one pass and a small network that was fitted to exact
            orders (`graftlm.pruning.surrogate`); the others are baselines (`graftlm.pruning.baselines`).
        granularity: what is deleted at a step: one token, or one word between white space.
        protect: what goes last, after all the rest: "numbers", "answer" (the answer's text), regular expressions.
        batch_tokens: at most so many tokens are in one pass (but at least one sequence).
        seed: of mode "random".
        llmlingua_model: name or folder of the classifier of mode "llmlingua2", if not the original one.
        surrogate: of mode "surrogate".
        on_step: called after each step with the number of tokens or words just deleted.

    Raises:
        InputError: an option is unknown, a text is empty, too long for the model, or not given back by the tokenizer.
    """
    check_choice("objective", objective, Objective)
    check_choice("mode", mode, Mode)
    check_choice("granularity", granularity, Granularity)
    if mode == "surrogate" and surrogate is None:
        raise InputError("mode surrogate needs a surrogate: load_surrogate(FOLDER), made by graftlm prune fit")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}: give 1 or more")
    encoding = encode_chain(tokenizer, question, chain, answer)
    _check_length(model, len(encoding))
    places = range(len(encoding.chain))
    units = [[place] for place in places] if granularity == "token" else word_units(encoding.chain)
    patterns = [protect] if isinstance(protect, str) else protect
    tokens = protected_tokens(encoding.chain, chain, answer, patterns)
    protected = {number for number, unit in enumerate(units) if not tokens.isdisjoint(unit)}
    make_scorer = partial(
        Scorer,
        question=encoding.question,
        units=[[encoding.chain[place].id for place in unit] for unit in units],
        answer=encoding.answer,
        objective=objective,
        batch_tokens=batch_tokens,
    )
    single: Mapping[int, float]
    measure: Callable[[], list[float]]
    was_training = model.training
    model.eval()
    try:
        if mode in ("exact", "screened"):
            rank = exact_order if mode == "exact" else screened_order
            deletions = rank(make_scorer(model), protected, on_step)
            order, single, measure = deletions.order, deletions.single, partial(list, deletions.values)
        else:
            scores = _scores(mode, model, encoding, chain, objective, seed, llmlingua_model, surrogate)
            order = baselines.order_of(scores, units, protected)
            measure = partial(_log_likelihoods, model, make_scorer, order)
            single = {}
    finally:
        model.train(was_training)
    ranks = [0] * len(encoding.chain)
    alone: list[float | None] = [None] * len(encoding.chain)
    for step, unit in enumerate(order, start=1):
        for place in units[unit]:
            ranks[place], alone[place] = step, single.get(unit)
    return PrunedChain(
        chain=chain,
        tokens=encoding.chain,
        order=[place for unit in order for place in units[unit]],
        ranks=ranks,
        single_deletions=alone,
        measure=measure,
    )


def _scores(
    mode: str,
    model: Any,
    encoding: Encoding,
    chain: str,
    objective: Objective,
    seed: int,
    llmlingua_model: str | None,
    surrogate: Surrogate | None,
) -> list[float]:
    """Of each chain token what it is worth: the least goes first."""
    count = len(encoding.chain)
    if surrogate is not None and mode == "surrogate":
        return surrogate.scores(model, encoding, objective)
    if mode == "random":
        return baselines.random_scores(count, seed, chain)
    if mode == "surprisal":
        single = [[token.id] for token in encoding.chain]
        return baselines.surprisal_scores(Scorer(model, encoding.question, single, encoding.answer))
    if mode == "attention":
        return baselines.attention_scores(model, encoding)
    if mode == "llmlingua2":
        return baselines.keep_probabilities(encoding, chain, llmlingua_model or baselines.LLMLINGUA2)
    return [float(count - place) for place in range(count)]


def _log_likelihoods(model: Any, make_scorer: Callable[[Any], Scorer], order: Sequence[int]) -> list[float]:
    was_training = model.training
    model.eval()
    try:
        deletions = Deletions(make_scorer(model))
        for unit in order:
            deletions.add(unit)
        return deletions.values
    finally:
        model.train(was_training)


def _check_length(model: Any, length: int) -> None:
    limit = context_length(model)
    if limit is not None and length > limit:
        raise InputError(f"question, chain and answer have {length} tokens, the model {limit} positions: shorten them")
