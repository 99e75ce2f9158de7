"""`prune_chain`: a chain of reasoning, its tokens in the order in which a model can do without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from graftlm.errors import InputError
from graftlm.pruning import baselines
from graftlm.pruning.encoding import Encoding, Question, encode_chain, protected_tokens, word_units
from graftlm.pruning.greedy import Deletions, OnStep, exact_order
from graftlm.pruning.pruned_chain import PrunedChain
from graftlm.pruning.scorer import Objective, Scorer
from graftlm.pruning.screened import screened_order

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Granularity = Literal["token", "word"]
Mode = Literal["exact", "screened", "random", "surprisal", "attention", "truncation", "llmlingua2"]


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
    llmlingua_model: str = baselines.LLMLINGUA2,
    on_step: OnStep | None = None,
) -> PrunedChain:
    """Rank the tokens of `chain` by what the model's log-likelihood loses without them.

    Args:
        question: text, or the messages of a chat, which get the tokenizer's template with its generation prompt.
        chain, answer: text that follows the question as it is, whatever space is between them included.
        objective: "joint" is log P(what is left of the chain, answer | question), "answer" is log P(answer | question,
            what is left of the chain).
        mode: "exact" scores every deletion at every step, "screened" only the likely best ones (same idea, an order
            close to that, many times faster); the others are baselines (`graftlm.pruning.baselines`).
        granularity: what is deleted at a step: one token, or one word between white space.
        protect: what goes last, after all the rest: "numbers", "answer" (the answer's text), regular expressions.
        batch_tokens: at most so many tokens are in one pass (but at least one sequence).
        seed: of mode "random".
        llmlingua_model: name or folder of the classifier of mode "llmlingua2".
        on_step: called after each step with the number of tokens or words just deleted.

    Raises:
        InputError: an option is unknown, a text is empty, too long for the model, or not given back by the tokenizer.
    """
    _check_choice("objective", objective, Objective)
    _check_choice("mode", mode, Mode)
    _check_choice("granularity", granularity, Granularity)
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
    measure: Callable[[], list[float]]
    was_training = model.training
    model.eval()
    try:
        if mode in ("exact", "screened"):
            rank = exact_order if mode == "exact" else screened_order
            deletions = rank(make_scorer(model), protected, on_step)
            order, measure = deletions.order, partial(list, deletions.values)
        else:
            scores = _baseline_scores(mode, model, encoding, chain, seed, llmlingua_model)
            order = baselines.order_of(scores, units, protected)
            measure = partial(_log_likelihoods, model, make_scorer, order)
    finally:
        model.train(was_training)
    ranks = [0] * len(encoding.chain)
    for step, unit in enumerate(order, start=1):
        for place in units[unit]:
            ranks[place] = step
    return PrunedChain(
        chain=chain,
        tokens=encoding.chain,
        order=[place for unit in order for place in units[unit]],
        ranks=ranks,
        measure=measure,
    )


def _baseline_scores(
    mode: str, model: Any, encoding: Encoding, chain: str, seed: int, llmlingua_model: str
) -> list[float]:
    """Of each chain token what it is worth: the least goes first."""
    count = len(encoding.chain)
    if mode == "random":
        return baselines.random_scores(count, seed)
    if mode == "surprisal":
        single = [[token.id] for token in encoding.chain]
        return baselines.surprisal_scores(Scorer(model, encoding.question, single, encoding.answer))
    if mode == "attention":
        return baselines.attention_scores(model, encoding)
    if mode == "llmlingua2":
        return baselines.keep_probabilities(encoding, chain, llmlingua_model)
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


def _check_choice(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: choose one of {', '.join(allowed)}")


def _check_length(model: Any, length: int) -> None:
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and length > limit:
        raise InputError(f"question, chain and answer have {length} tokens, the model {limit} positions: shorten them")
