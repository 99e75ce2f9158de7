"""Verbs of pruning: prune, and prune fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.options import Overwrite, number_option, parse_numbers, seed_option
from graftlm.pruning.choices import THINK_TAGS
from graftlm.runs.console import print_table, printable, reported_progress, say
from graftlm.runs.files import claimed
from graftlm.runs.provenance import command_line

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="File, folder or hub id of solutions: columns question, chain and answer; question and answer as in "
        "GSM8K; or whatever `graftlm tune` takes. See docs/pruning.md.",
    ),
]
Pruner = Annotated[
    str, typer.Option(help="Model whose likelihood says what a token is worth: a folder, a LoRA adapter, a hub id.")
]
Objective = Annotated[
    str, typer.Option(help="joint: the likelihood of what is left and the answer; answer: of the answer alone.")
]
AnswerStart = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Where the final answer starts in a completion. [default: </think>, ####, 'the answer is' or \\boxed]",
    ),
]
BatchTokens = Annotated[int, number_option("Most tokens in one pass; a GPU wants thousands.", at_least=1)]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")]
ResumeFile = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted call stopped.")]


@app.command()
def prune(
    data: Data,
    *,
    pruner: Pruner,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Rows with shorter chains: .jsonl or .parquet.")],
    keep: Annotated[
        str,
        typer.Option(
            help="Share of each chain's tokens to keep; of several (0.5,0.7,1) each row gets one. 1: ranks as weights."
        ),
    ] = "0.7",
    mode: Annotated[
        str,
        typer.Option(
            help="exact: every deletion is scored at every step; screened: the likeliest ones, several times as fast; "
            "surrogate: one pass and a network. Baselines: random, surprisal, attention, truncation, llmlingua2."
        ),
    ] = "exact",
    surrogate: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What `graftlm prune fit` made; means --mode surrogate.")
    ] = None,
    objective: Objective = "joint",
    granularity: Annotated[str, typer.Option(help="What is deleted at a step: token or word.")] = "token",
    protect: Annotated[
        list[str] | None,
        typer.Option(
            help="What goes last: numbers, answer, or a regular expression; repeatable. [default: think tags, unless "
            "anything else is given]"
        ),
    ] = None,
    keep_in_prompt: Annotated[
        bool, typer.Option("--keep-in-prompt", help="End each prompt with the share kept, as TokenSkip does.")
    ] = False,
    answer_start: AnswerStart = None,
    check: Annotated[
        int, number_option("Rows that are ranked exactly as well, to tell how far the mode agrees.", at_least=0)
    ] = 0,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    limit: Annotated[int | None, number_option("Rows to read. [default: all]", at_least=1)] = None,
    batch_tokens: BatchTokens = 512,
    llmlingua_model: Annotated[str | None, typer.Option(help="Classifier of mode llmlingua2, if another one.")] = None,
    seed: Annotated[int, seed_option("Of mode random, and of the draw from several shares.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    resume: ResumeFile = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, its page and its list.")] = False,
) -> None:
    """Shorten chains of reasoning to what a model needs.

    The rows come out with shorter completions, the rank of each token, and a page that shows which tokens and which
    kinds of words survive. `graftlm tune` reads them.
    """
    from graftlm.pruning.page import write_prune_report
    from graftlm.pruning.partial import companions
    from graftlm.pruning.rows import Cut, Pruned, Ranking, prune_rows

    settings: dict[str, Any] = {"pruner": pruner, "objective": objective, "granularity": granularity, "seed": seed}
    ranking = Ranking(
        **settings, mode="surrogate" if surrogate is not None and mode == "exact" else mode,  # type: ignore[arg-type]
        protect=tuple(protect or (THINK_TAGS,)), surrogate=None if surrogate is None else str(surrogate),
        llmlingua_model=llmlingua_model,
    )  # fmt: skip
    cut = Cut(keep=tuple(parse_numbers("--keep", keep)), keep_in_prompt=keep_in_prompt, seed=seed)
    page, failed = companions(output)
    found: list[str] = []

    def write_page(pruned: Pruned) -> None:
        found.extend(write_prune_report(page, pruned, title=f"{output.name}: {data} pruned by {pruner}"))

    with resumable(), reported_progress() as progress:
        pruned = prune_rows(
            data, output, ranking, cut, split=split, limit=limit, answer_start=answer_start, check=check,
            batch_tokens=batch_tokens, trust_remote_code=trust_remote_code, resume=resume, overwrite=overwrite,
            finish=write_page, progress=progress,
        )  # fmt: skip
    for line in found:
        print(printable(line))
    for _, reason in pruned.failed[:5]:
        say(f"left out: {reason}")
    if pruned.failed:
        say(f"all {len(pruned.failed)} that are left out: {failed}")
    say(f"rows: {output}; report: {page}")


@app.command("prune fit")
def prune_fit(
    data: Data,
    *,
    pruner: Pruner,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the surrogate and the exact ranks.")],
    chains: Annotated[
        int, number_option("Rows that are ranked exactly; the last fifth only to measure.", at_least=3)
    ] = 200,
    other: Annotated[str | None, typer.Option(help="Data of another kind to measure on as well.")] = None,
    objective: Objective = "joint",
    answer_start: AnswerStart = None,
    batch_tokens: BatchTokens = 512,
    seed: Annotated[int, seed_option("Of the network.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    resume: ResumeFile = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a network that ranks a chain's tokens in one pass.

    Some chains are ranked exactly, which takes long; from then on `graftlm prune --surrogate FOLDER` takes one pass a
    chain.
    """
    from graftlm.pruning.fit import fit
    from graftlm.pruning.rows import Ranking

    ranking = Ranking(pruner=pruner, objective=objective, protect=(THINK_TAGS,), seed=seed)  # type: ignore[arg-type]
    with resumable(), claimed(output), reported_progress() as progress:
        surrogate = fit(
            data, output, ranking, other=other, chains=chains, answer_start=answer_start, batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code, resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    print_table(measured_table(surrogate.config.measured))
    say(f"surrogate: {output}")


@contextmanager
def resumable() -> Iterator[None]:
    """An interrupt says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        words = [word for word in command_line().split(" ") if word != "--resume"]
        raise KeyboardInterrupt(f"continue with: {' '.join(words)} --resume") from interrupt


def measured_table(measured: dict[str, Any]) -> Any:
    """Held-out chains of each data: how well deletions and ranks are predicted, beside what needs no surrogate."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("held-out chains of", "chains", "likelihood after deletion", "without surrogate", "unchanged",
                    "within a chain", "without", "rank", "least"):  # fmt: skip
        table.add_column(Text(heading), justify="left" if heading == "held-out chains of" else "right")
    for name, found in measured.items():
        numbers = (
            found["likelihood"]["surrogate"], found["likelihood"]["g"], found["likelihood"]["unchanged"],
            found["within"]["surrogate"], found["within"]["g"], found["rank"]["mean"], found["rank"]["least"],
        )  # fmt: skip
        table.add_row(Text(name), str(found["chains"]), *(f"{number:.3f}" for number in numbers))
    table.caption = "Pearson's correlation with the true likelihood; Spearman's with the exact ranks"
    return table
