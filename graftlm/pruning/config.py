"""Settings of pruning: `PruneSettings` for one chain, and the options of `graftlm prune` and `graftlm prune fit`.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from graftlm.data.patterns import row_pattern
from graftlm.errors import InputError
from graftlm.runs.config import REQUIRED, option, require
from graftlm.runs.ranges import LARGEST_SEED, check_ranges

Objective = Literal["joint", "answer"]
Granularity = Literal["token", "word"]
Mode = Literal["exact", "screened", "surrogate", "random", "surprisal", "attention", "truncation", "llmlingua2"]

THINK_TAGS = r"</?think>"
"""Text that `graftlm prune` deletes last unless something else is asked for."""
ENDINGS = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How the likelihood of a shortened chain is computed: log P(what is left, answer | question), or
    log P(answer | question, what is left)."""

    objective: Objective = option(
        "joint", "joint: the likelihood of what is left and the answer; answer: of the answer alone."
    )
    batch_tokens: int = option(512, "Most tokens in one pass; a GPU wants thousands.", at_least=1)
    seed: int = option(
        0, "Seed of mode random, of the draw from several shares, and of a surrogate.", at_least=0, at_most=LARGEST_SEED
    )

    def __post_init__(self) -> None:
        _check_choice("objective", self.objective, Objective)
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class PruneSettings(ScoreSettings):
    """How the tokens of a chain are ranked; InputError for a value that is out of range."""

    mode: Mode = option(
        "exact",
        "exact: every deletion is scored at every step; screened: the likeliest ones, several times as fast; "
        "surrogate: one pass and a network. Baselines: random, surprisal, attention, truncation, llmlingua2.",
    )
    granularity: Granularity = option("token", "What is deleted at a step: token or word.")
    protect: list[str] = option([], "What is deleted last: numbers, answer, or a regular expression; repeatable.")
    llmlingua_model: str | None = option(None, "Classifier of mode llmlingua2, if another one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("mode", self.mode, Mode)
        _check_choice("granularity", self.granularity, Granularity)
        for pattern in self.protect:
            row_pattern("--protect", pattern)


@dataclass(frozen=True, kw_only=True)
class ChainSource:
    """Where chains come from, and the model that ranks them."""

    data: str = option(
        REQUIRED,
        "File, folder or hub id of solutions: columns question, chain and answer; question and answer as in GSM8K; or "
        "whatever `graftlm tune` takes. See docs/pruning.md.",
        argument="DATA",
    )
    pruner: str = option(
        REQUIRED, "Model whose likelihood says what a token is worth: a folder, a LoRA adapter, a hub id."
    )
    answer_start: str | None = option(
        None,
        "Where the final answer starts in a completion, a regular expression. [default: </think>, ####, 'the answer "
        "is' or \\boxed]",
    )
    trust_remote_code: bool = option(False, "Run code from the model's repository.")


@dataclass(frozen=True, kw_only=True)
class PruneConfig(PruneSettings, ChainSource):
    """Options of `graftlm prune`."""

    output: str = option(
        REQUIRED, "Rows with shorter chains: a file whose name ends in .jsonl or .parquet.", files=ENDINGS
    )
    keep: list[float] = option(
        [0.7],
        "Share of each chain's tokens to keep; of several (0.5,0.7,1) each row gets one. 1: ranks as weights.",
        above=0,
        at_most=1,
    )
    surrogate: str | None = option(None, "Folder that `graftlm prune fit` made; means --mode surrogate.")
    keep_in_prompt: bool = option(False, "End each prompt with the share kept, as TokenSkip does.")
    check: int = option(0, "Rows that are ranked exactly as well, to tell how far the mode agrees.", at_least=0)
    split: str = option("train", "Split of the data.")
    limit: int | None = option(None, "Rows to read. [default: all]", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        ending = Path(self.output).suffix.lower()
        require(ending in ENDINGS, "output", self.output, f"its name must end in {' or '.join(ENDINGS)}")
        require(bool(self.keep), "keep", self.keep, "at least one share is needed")
        mode = self.settings.mode
        if (mode == "surrogate") != (self.surrogate is not None):
            raise InputError("--mode surrogate and --surrogate FOLDER, which graftlm prune fit makes, go together")
        if self.check and mode == "exact":
            raise InputError("--check compares another --mode with exact: leave it out")
        if self.answer_start is not None:
            row_pattern("--answer-start", self.answer_start)

    @property
    def settings(self) -> PruneSettings:
        """The settings of each chain: a surrogate is a mode, and tags of thinking are protected by default."""
        values = {field.name: getattr(self, field.name) for field in fields(PruneSettings)}
        values["protect"] = self.protect or [THINK_TAGS]
        if self.surrogate is not None and self.mode == "exact":
            values["mode"] = "surrogate"
        return PruneSettings(**values)


@dataclass(frozen=True, kw_only=True)
class PruneFitConfig(ScoreSettings, ChainSource):
    """Options of `graftlm prune fit`."""

    output: str = option(REQUIRED, "Folder for the surrogate and the exact ranks.")
    chains: int = option(200, "Rows that are ranked exactly; the last fifth only to measure.", at_least=3)
    other: str | None = option(None, "Data of another kind to measure on as well.")

    def exact_ranks(self, data: str, output: str, limit: int) -> PruneConfig:
        """The options with which so many rows of `data` are ranked by mode exact and kept whole."""
        shared = {each.name: getattr(self, each.name) for base in (ScoreSettings, ChainSource) for each in fields(base)}
        return PruneConfig(**{**shared, "data": data, "output": output, "limit": limit, "keep": [1.0]})


def _check_choice(name: str, value: str, choices: object) -> None:
    known = get_args(choices)
    require(value in known, name, value, f"it is one of {', '.join(known)}")
