"""`graftlm prune`: a file of solutions -> the same rows with shorter chains, and the rank of each token."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm import __version__
from graftlm.data.forms import TOKEN_COLUMNS
from graftlm.data.load import data_fingerprint, read_source
from graftlm.errors import InputError
from graftlm.models.checkpoints import weights_fingerprint
from graftlm.models.given import Given, GivenPair, given_model, name_of
from graftlm.pruning.config import PruneConfig, PruneSettings
from graftlm.pruning.encoding import encode_chain
from graftlm.pruning.importance import importance
from graftlm.pruning.page import write_prune_report
from graftlm.pruning.pruned_chain import kept_text, rank_agreement
from graftlm.pruning.pruned_file import (
    COLUMN,
    Failure,
    Pruned,
    check_companions,
    companions,
    partial_file,
    write_pruned,
)
from graftlm.pruning.pruner import prune_chain
from graftlm.pruning.solutions import Solution, solution_of
from graftlm.pruning.surrogate import Surrogate, load_surrogate
from graftlm.runs.console import Report
from graftlm.runs.files import plain, remove
from graftlm.runs.resumable import DoneItems
from graftlm.runs.run import Run, call_verb

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
RANKS = ("spans", "ranks", "log_likelihoods", "single_deletions")


def prune_data(
    pruner: Given,
    data: str,
    output: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Pruned:
    """`graftlm.prune`: shorten the chains of a file of solutions to what a model needs, see `prune`.

    Args:
        pruner: a name as `load_model` takes it, or a loaded model.
        data, output: solutions, and the file of the shortened ones, which ends in .jsonl or .parquet.
        tokenizer: of a loaded model (None: the one that is saved where it came from).
        resume, overwrite: go on with the run of `output`, or replace it.
        settings: the further fields of PruneConfig, such as mode="screened" and keep=[0.7].
    """
    named = {"pruner": name_of(pruner), "data": data, "output": os.fspath(output), **settings}
    given = (pruner, tokenizer)
    return call_verb("prune", PruneConfig, prune, named, resume=resume, overwrite=overwrite, given=given)


def prune(config: PruneConfig, run: Run, *, given: GivenPair | None = None, progress: Report | None = None) -> Pruned:
    """Prune the rows of `config.data` (graftlm/pruning/solutions.py says which) and write them to `config.output`.

    Each row keeps its columns and gets `prompt` and `completion` for `graftlm tune`, and, where all are kept whole,
    `importance`. The column `pruning` has the question, chain and answer as they were, the share kept, the characters
    (`spans`) and the rank of each token of the chain, `log_likelihoods` and `single_deletions` as in `PrunedChain`
    where the mode computes them, and how the ranks came about. A row that comes with ranks of the same kind is not
    ranked again. A row that fails is left out and listed in `companions(output)`.

    Args:
        given: a loaded model in the place of `config.pruner`, and its tokenizer.

    Raises:
        InputError: a file that is there, unreadable data, or not one row that can be pruned.
    """
    output = Path(config.output)
    check_companions(output, resumed=run.resumed)
    source = read_rows(config)
    ranker = Ranker.load(config, given)
    rows, failed = prune_rows(config, source, ranker, run, progress=progress)
    agreement = [] if ranker.settings.mode == "exact" else check_agreement(rows, ranker, config.check, progress)
    write_pruned(output, rows, failed)
    pruned = Pruned(rows=rows, failed=failed, agreement=agreement)
    page, _ = companions(output)
    verdict = write_prune_report(page, pruned, title=f"{output.name}: {config.data} pruned by {config.pruner}")
    remove(partial_file(output))
    return replace(pruned, verdict=verdict)


def read_rows(config: PruneConfig) -> list[tuple[str, Row]]:
    """Read (place, row) of the data; InputError without any."""
    source = [
        (place, _plain(place, row)) for place, row in islice(read_source(config.data, config.split), config.limit)
    ]
    if not source:
        raise InputError(f"data {config.data!r} (split {config.split!r}) has no rows")
    return source


def prune_rows(
    config: PruneConfig,
    source: Sequence[tuple[str, Row]],
    ranker: Ranker,
    run: Run,
    *,
    with_importance: bool = True,
    progress: Report | None = None,
) -> tuple[list[Row], list[Failure]]:
    """Rank and cut rows, or go on from those that an interrupted call has left in `partial_file(config.output)`.

    That file stays, for the caller to remove. `with_importance`: whether rows that are kept whole get that column.
    """
    jobs = [Job.of(place, row, ranker.tokenizer, config.answer_start) for place, row in source]
    if all(job.solution is None for job in jobs):
        raise InputError(f"none of {len(source)} rows can be pruned; the first: {jobs[0].wrong}")
    depends_on = {
        "ranking": ranker.provenance, "keep": [config.keep, config.keep_in_prompt, with_importance, config.seed],
        "answer start": config.answer_start, "data": data_fingerprint(row for _, row in source),
    }  # fmt: skip
    done = DoneItems(partial_file(Path(config.output)), depends_on, resume=run.resumed)
    run.keep()
    draw = random.Random(config.seed)
    keeps = [draw.choice(config.keep) for _ in jobs]
    with_importance = with_importance and set(config.keep) == {1.0}
    tokens = TokenProgress(progress, jobs)
    for number in range(len(done.lines), len(jobs)):
        tokens.start(number)
        done.add(pruned_line(jobs[number], ranker, keeps[number], config.keep_in_prompt, with_importance, tokens.step))
    tokens.start(len(jobs))
    rows = [line["row"] for line in done.lines if "row" in line]
    failed = [(line["place"], line["failed"]) for line in done.lines if "failed" in line]
    if not rows:
        done.remove()
        raise InputError(f"none of {len(source)} rows can be pruned; the first: {failed[0][1]}")
    return rows, failed


@dataclass(frozen=True)
class Job:
    """A row with its solution, or with what is wrong with it."""

    place: str
    row: Mapping[str, Any]
    solution: Solution | None
    tokens: int = 0
    wrong: str = ""

    @classmethod
    def of(
        cls, place: str, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, answer_start: str | None
    ) -> Job:
        try:
            before = row.get(COLUMN)
            if isinstance(before, Mapping):
                solution = _earlier_solution(place, before)
            else:
                chat = bool(tokenizer.chat_template)
                solution = solution_of(row, place, answer_start=answer_start, chat=chat)
            encoding = encode_chain(tokenizer, solution.question, solution.chain, solution.answer)
        except InputError as error:
            return cls(place, row, None, wrong=_placed(place, error))
        return cls(place, row, solution, tokens=len(encoding.chain))


@dataclass(frozen=True)
class Ranker:
    """A pruner with the settings of its ranks, and `provenance`: all that they depend on."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    settings: PruneSettings
    provenance: Mapping[str, Any]
    surrogate: Surrogate | None = None

    @classmethod
    def load(cls, config: PruneConfig, given: GivenPair | None = None) -> Ranker:
        """Load the pruner, unless it is given, and the surrogate; InputError where they cannot be."""
        provenance = ranking_provenance(config)
        surrogate = None if config.surrogate is None else load_surrogate(config.surrogate)
        pruner = given or (config.pruner, None)
        model, tokenizer = given_model(*pruner, trust_remote_code=config.trust_remote_code)
        return cls(model, tokenizer, config.settings, provenance, surrogate)

    def rank(self, solution: Solution, on_step: Callable[[int], None] | None = None) -> Row:
        """RANKS of a chain; InputError where it cannot be ranked."""
        pruned = prune_chain(
            self.model, self.tokenizer, solution.question, solution.chain, solution.answer, self.settings,
            surrogate=self.surrogate, on_step=on_step,
        )  # fmt: skip
        measured = self.settings.mode in ("exact", "screened")
        return {
            "spans": [[token.start, token.stop] for token in pruned.tokens],
            "ranks": pruned.ranks,
            "log_likelihoods": _rounded(pruned.log_likelihoods if measured else []),
            "single_deletions": _rounded(pruned.single_deletions if measured else []),
        }


def ranking_provenance(config: PruneConfig) -> Row:
    """All that ranks depend on besides the chain, without what the mode does not read; folders with their weights."""
    settings = config.settings
    named = {"pruner": config.pruner, "surrogate": config.surrogate}
    for name, value in named.items():
        if value is not None and (folder := Path(value).expanduser()).is_dir():
            named[name] = f"{value} {weights_fingerprint(folder)}"
    return {
        **named,
        "mode": settings.mode,
        "objective": settings.objective,
        "granularity": settings.granularity,
        "protect": list(settings.protect),
        "llmlingua_model": settings.llmlingua_model if settings.mode == "llmlingua2" else None,
        "seed": settings.seed if settings.mode == "random" else None,
    }


def pruned_line(
    job: Job, ranker: Ranker, keep: float, in_prompt: bool, with_importance: bool, on_step: Callable[[int], None]
) -> Row:
    """{"row"}, or {"place", "failed"} for a row that cannot be pruned."""
    solution = job.solution
    if solution is None:
        return {"place": job.place, "failed": job.wrong}
    before = job.row.get(COLUMN)
    try:
        ranked, provenance = _earlier_ranks(before, ranker.provenance)
        if ranked is None:
            ranked, provenance = ranker.rank(solution, on_step), {**ranker.provenance, "graftlm": __version__}
        chain = kept_text(solution.chain, ranked["spans"], ranked["ranks"], keep)
        end = ranker.tokenizer.eos_token or "\n"
        made = solution.row(chain, f"{end}{keep:g}{end}" if in_prompt else "")
        if with_importance:
            made["importance"] = importance(ranker.tokenizer, made, ranked["spans"], ranked["ranks"])
    except InputError as error:
        return {"place": job.place, "failed": _placed(job.place, error)}
    pruning = {**asdict(solution), "keep": keep, **ranked, "ranking": provenance}
    columns = {name: value for name, value in job.row.items() if name not in TOKEN_COLUMNS}  # of the whole completion
    return {"row": {**columns, **made, COLUMN: pruning}}


def check_agreement(rows: Sequence[Row], ranker: Ranker, count: int, progress: Report | None) -> list[float]:
    """Rank `count` rows, evenly spaced, by mode exact, and correlate their ranks with those that they have."""
    exact = replace(ranker, settings=replace(ranker.settings, mode="exact"), surrogate=None)
    count = min(count, len(rows))
    agreement = []
    for number in range(count):
        pruning = rows[number * len(rows) // count][COLUMN]
        agreement.append(rank_agreement(exact.rank(_earlier_solution("", pruning))["ranks"], pruning["ranks"]))
        if progress is not None:
            progress("rows ranked by mode exact", number + 1, count)
    return agreement


class TokenProgress:
    """Progress over the tokens of all chains."""

    def __init__(self, report: Report | None, jobs: Sequence[Job]) -> None:
        self.report = report
        self.ends = list(accumulate((job.tokens for job in jobs), initial=0))
        self.reached = 0

    def start(self, number: int) -> None:
        """All rows before this one are done."""
        self.reached = self.ends[number]
        self.step(0)

    def step(self, count: int) -> None:
        self.reached += count
        if self.report is not None and self.ends[-1]:
            self.report("tokens ranked", self.reached, self.ends[-1])


def _earlier_solution(place: str, before: Mapping[str, Any]) -> Solution:
    try:
        return Solution(question=before["question"], chain=before["chain"], answer=before["answer"])
    except KeyError as error:
        raise InputError(f"{place}: column {COLUMN!r} has no {error}; remove that column") from None


def _earlier_ranks(before: Any, provenance: Mapping[str, Any]) -> tuple[Row | None, Mapping[str, Any]]:
    """Ranks that depend on the same, whichever version of graftlm made them, and what they depend on."""
    earlier = before.get("ranking") if isinstance(before, Mapping) else None
    if not isinstance(earlier, Mapping) or {**earlier, "graftlm": None} != {**provenance, "graftlm": None}:
        return None, provenance
    return {name: before[name] for name in RANKS}, earlier


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    """Results depend on a batch's shape by more than what is cut off."""
    return [None if value is None else round(value, 5) for value in values]


def _placed(place: str, error: InputError) -> str:
    message = str(error)
    return message if message.startswith(place) else f"{place}: {message}"


def _plain(place: str, row: Mapping[str, Any]) -> Row:
    try:
        return dict(plain(row))
    except TypeError as error:
        raise InputError(f"{place}: {error}; leave that column out") from error
