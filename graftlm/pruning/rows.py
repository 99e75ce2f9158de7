"""`graftlm prune`: a file of solutions -> the same rows with shorter chains, and what each token was worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm import __version__
from graftlm.data.forms import TOKEN_COLUMNS
from graftlm.data.load import data_fingerprint, read_source
from graftlm.data.patterns import row_pattern
from graftlm.errors import InputError
from graftlm.models.checkpoints import weights_fingerprint
from graftlm.models.load import load_model
from graftlm.pruning.agreement import rank_agreement
from graftlm.pruning.choices import Granularity, Mode, Objective, check_choice
from graftlm.pruning.encoding import check_patterns, encode_chain
from graftlm.pruning.importance import importance
from graftlm.pruning.partial import check_output_file, companions, partial_file, write_rows
from graftlm.pruning.pruned_chain import kept_text
from graftlm.pruning.pruner import prune_chain
from graftlm.pruning.solutions import Solution, solution_of
from graftlm.pruning.surrogate import Surrogate, load_surrogate
from graftlm.runs.console import Report
from graftlm.runs.files import claimed, dump_json, plain, remove, write_text
from graftlm.runs.resumable import DoneItems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN = "pruning"
Ranked = dict[str, Any]
"""spans, ranks, log_likelihoods, single_deletions."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What a chain's ranks depend on besides the chain: as in `prune_chain`. InputError for what is out of range."""

    pruner: str
    mode: Mode = "exact"
    objective: Objective = "joint"
    granularity: Granularity = "token"
    protect: tuple[str, ...] = ()
    surrogate: str | None = None
    llmlingua_model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("--mode", self.mode, Mode)
        check_choice("--objective", self.objective, Objective)
        check_choice("--granularity", self.granularity, Granularity)
        check_patterns(self.protect)
        if (self.mode == "surrogate") != (self.surrogate is not None):
            raise InputError("--mode surrogate and --surrogate FOLDER, which graftlm prune fit makes, go together")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the ranks depend on, without what this mode does not read; folders with what is in them."""
        found: dict[str, Any] = plain(asdict(self))
        for name in ("pruner", "surrogate"):
            if found[name] is not None and (folder := Path(found[name]).expanduser()).is_dir():
                found[name] += f" {weights_fingerprint(folder)}"
        found["seed"] = self.seed if self.mode == "random" else None
        found["llmlingua_model"] = self.llmlingua_model if self.mode == "llmlingua2" else None
        return found


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is made of the ranks.

    `keep`: of several shares each row gets one, drawn at random. `importance`: whether rows that are kept whole get
    that column.
    """

    keep: tuple[float, ...] = (0.7,)
    keep_in_prompt: bool = False
    importance: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if wrong := [keep for keep in self.keep if not 0 < keep <= 1]:
            raise InputError(f"--keep has {wrong[0]:g}: give shares above 0 and at most 1")
        if not self.keep:
            raise InputError("--keep is empty: give shares above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """`rows` as written; `failed`: (row, reason); `agreement`: Spearman with exact ranks of the rows checked."""

    rows: list[dict[str, Any]]
    failed: list[tuple[str, str]]
    agreement: list[float]


def prune_rows(
    data: str,
    output: Path,
    ranking: Ranking,
    cut: Cut,
    *,
    split: str = "train",
    limit: int | None = None,
    answer_start: str | None = None,
    check: int = 0,
    batch_tokens: int = 512,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    load_ranker: Callable[[], Ranker] | None = None,
    finish: Callable[[Pruned], None] | None = None,
    progress: Report | None = None,
) -> Pruned:
    """Prune the rows of `data` (graftlm/pruning/solutions.py says which) and write them to `output`.

    Each row keeps its columns and gets `prompt` and `completion` for `graftlm tune`, and, where all are kept whole,
    `importance`. The column `pruning` has the question, chain and answer as they were, the share kept, the characters
    (`spans`) and the rank of each token of the chain, `log_likelihoods` and `single_deletions` as in `PrunedChain`
    where the mode computes them, and how the ranks came about. A row that comes with ranks of the same kind is not
    ranked again. A row that fails is left out and listed in `companions(output)`.

    Args:
        output: .jsonl or .parquet; `resume` goes on from what an interrupted call left beside it.
        answer_start: where the answer starts in a completion, a regular expression.
        load_ranker: gives the pruner instead of loading it here, for several files.
        finish: called when the rows are written; what it writes, a resumed call writes too.
        check: so many rows are ranked by mode exact too, to tell how far the mode agrees with it.

    Raises:
        InputError: a bad option, a file that is there or that another process writes, unreadable data, or not one row
            that can be pruned.
    """
    if check and ranking.mode == "exact":
        raise InputError("--check compares another --mode with exact: leave it out")
    with claimed(output):
        check_output_file(output, resume=resume, overwrite=overwrite)
        if answer_start is not None:
            row_pattern("--answer-start", answer_start)
        source = read_rows(data, split, limit)
        depends_on = what_rows_depend_on(ranking, cut, answer_start, source)
        partial = DoneItems(partial_file(output), depends_on, resume=resume)
        ranker = Ranker.load(ranking, batch_tokens, trust_remote_code) if load_ranker is None else load_ranker()
        jobs = [Job.of(place, row, ranker.tokenizer, answer_start) for place, row in source]
        draw = random.Random(cut.seed)
        keeps = [draw.choice(cut.keep) for _ in jobs]
        told = _Told(progress, jobs, len(partial.lines))
        for job, keep in list(zip(jobs, keeps, strict=True))[len(partial.lines) :]:
            partial.add(_finished(job, ranker, cut, keep, told.step))
            told.finish(job)
        rows = [line["row"] for line in partial.lines if "row" in line]
        failed = [(line["place"], line["failed"]) for line in partial.lines if "failed" in line]
        if not rows:
            partial.remove()
            raise InputError(f"none of {len(source)} rows can be pruned; the first: {failed[0][1]}")
        agreement = [] if ranking.mode == "exact" else _agreement(rows, ranker, check, progress)
        write_rows(output, rows)
        _, left_out = companions(output)
        if failed:
            lines = (dump_json({"row": place, "reason": reason}) for place, reason in failed)
            write_text(left_out, "".join(f"{line}\n" for line in lines))
        else:
            remove(left_out)
        pruned = Pruned(rows=rows, failed=failed, agreement=agreement)
        if finish is not None:
            finish(pruned)
        partial.remove()
        return pruned


def read_rows(data: str, split: str = "train", limit: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """(place, row); InputError without any."""
    source = [(place, _plain(place, row)) for place, row in islice(read_source(data, split), limit)]
    if not source:
        raise InputError(f"data {data!r} (split {split!r}) has no rows")
    return source


def what_rows_depend_on(
    ranking: Ranking, cut: Cut, answer_start: str | None, source: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    return {
        "ranking": ranking.provenance, "keep": plain(asdict(cut)), "answer start": answer_start,
        "data": data_fingerprint(row for _, row in source),
    }  # fmt: skip


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
    """A pruner with the settings of its ranks."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    ranking: Ranking
    surrogate: Surrogate | None
    batch_tokens: int

    @classmethod
    def load(cls, ranking: Ranking, batch_tokens: int, trust_remote_code: bool) -> Ranker:
        surrogate = None if ranking.surrogate is None else load_surrogate(Path(ranking.surrogate))
        model, tokenizer = load_model(ranking.pruner, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, ranking, surrogate, batch_tokens)

    def rank(self, solution: Solution, on_step: Callable[[int], None] | None = None) -> Ranked:
        """InputError where this chain cannot be ranked."""
        ranking = self.ranking
        pruned = prune_chain(
            self.model, self.tokenizer, solution.question, solution.chain, solution.answer, ranking.objective,
            ranking.mode, granularity=ranking.granularity, protect=ranking.protect, batch_tokens=self.batch_tokens,
            seed=ranking.seed, llmlingua_model=ranking.llmlingua_model, surrogate=self.surrogate, on_step=on_step,
        )  # fmt: skip
        measured = ranking.mode in ("exact", "screened")
        return {
            "spans": [[token.start, token.stop] for token in pruned.tokens],
            "ranks": pruned.ranks,
            "log_likelihoods": _rounded(pruned.log_likelihoods if measured else []),
            "single_deletions": _rounded(pruned.single_deletions if measured else []),
        }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    """Results depend on a batch's shape by more than what is cut off."""
    return [None if value is None else round(value, 5) for value in values]


def _finished(job: Job, ranker: Ranker, cut: Cut, keep: float, on_step: Callable[[int], None]) -> dict[str, Any]:
    """{"row"} or {"place", "failed"}."""
    solution = job.solution
    if solution is None:
        return {"place": job.place, "failed": job.wrong}
    provenance = {**ranker.ranking.provenance, "graftlm": __version__}
    before = job.row.get(COLUMN)
    before = before if isinstance(before, Mapping) else {}
    try:
        if _same_kind(before.get("ranking"), provenance):
            ranked = {name: before[name] for name in ("spans", "ranks", "log_likelihoods", "single_deletions")}
            provenance = before["ranking"]
        else:
            ranked = ranker.rank(solution, on_step)
        chain = kept_text(solution.chain, ranked["spans"], ranked["ranks"], keep)
        end = ranker.tokenizer.eos_token or "\n"
        made = solution.row(chain, f"{end}{keep:g}{end}" if cut.keep_in_prompt else "")
        if cut.importance and set(cut.keep) == {1.0}:
            made["importance"] = importance(ranker.tokenizer, made, ranked["spans"], ranked["ranks"])
    except InputError as error:
        return {"place": job.place, "failed": _placed(job.place, error)}
    pruning = {**asdict(solution), "keep": keep, **ranked, "ranking": provenance}
    kept = {name: value for name, value in job.row.items() if name not in TOKEN_COLUMNS}  # of the whole completion
    return {"row": {**kept, **made, COLUMN: pruning}}


def _same_kind(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether the ranks depend on the same, whichever version of graftlm made them."""
    return isinstance(before, Mapping) and {**before, "graftlm": None} == {**now, "graftlm": None}


def _earlier_solution(place: str, before: Mapping[str, Any]) -> Solution:
    try:
        return Solution(question=before["question"], chain=before["chain"], answer=before["answer"])
    except KeyError as error:
        raise InputError(f"{place}: column {COLUMN!r} has no {error}; remove that column") from None


def _agreement(rows: Sequence[Mapping[str, Any]], ranker: Ranker, count: int, progress: Report | None) -> list[float]:
    """Of `count` rows, evenly spaced."""
    exact = replace(ranker, ranking=replace(ranker.ranking, mode="exact", surrogate=None), surrogate=None)
    count = min(count, len(rows))
    found = []
    for number in range(count):
        pruning = rows[number * len(rows) // count][COLUMN]
        solution = _earlier_solution("", pruning)
        found.append(rank_agreement(exact.rank(solution)["ranks"], pruning["ranks"]))
        if progress is not None:
            progress("rows ranked by mode exact", number + 1, count)
    return found


class _Told:
    """Progress over the tokens of all chains."""

    def __init__(self, progress: Report | None, jobs: Sequence[Job], finished: int) -> None:
        self.progress = progress
        self.total = sum(job.tokens for job in jobs)
        self.done = self.reached = sum(job.tokens for job in jobs[:finished])

    def step(self, count: int) -> None:
        self.reached += count
        self._tell()

    def finish(self, job: Job) -> None:
        self.done += job.tokens
        self.reached = self.done
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None and self.total:
            self.progress("tokens ranked", self.reached, self.total)


def _placed(place: str, error: InputError) -> str:
    message = str(error)
    return message if message.startswith(place) else f"{place}: {message}"


def _plain(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(plain(row))
    except TypeError as error:
        raise InputError(f"{place}: {error}; leave that column out") from error
