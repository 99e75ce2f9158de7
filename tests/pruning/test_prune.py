from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from graftlm import prune as graftlm_prune
from graftlm.cli import main
from graftlm.data.load import load_rows
from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.pruning import prune, prune_chain
from graftlm.pruning.config import PruneConfig
from graftlm.pruning.prune import Ranker, prune_rows, read_rows
from graftlm.pruning.pruned_chain import rank_agreement
from graftlm.pruning.pruned_file import COLUMN, Pruned
from graftlm.runs.files import read_json_lines
from graftlm.runs.run import Run, call_verb
from tests.conftest import tiny_model
from tests.report.browsing import draw
from tests.tuning.plain import PEFT_WARNING
from tests.tuning.test_tune import environment, graftlm

SOLUTIONS = [
    {"id": "a", "question": "How many?", "answer": "Tom has 2+3 = 5 pens.\n#### 5"},
    {"id": "b", "question": "And é?", "answer": "First, 4*2 is 8 🎉 in total.\n#### 8"},
]
UNANSWERED = {"id": "c", "question": "Why?", "answer": "no number"}


@pytest.fixture
def pruner(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> str:
    folder = tmp_path / "pruner"
    tiny_model(initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, solutions: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in solutions), "utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "data.jsonl", SOLUTIONS)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return int(exit_.value.code or 0)  # type: ignore[arg-type]


def pruned(data: str, output: Path, pruner: str, mode: str = "exact", *keep: float, **options: Any) -> Pruned:
    how = {name: options.pop(name) for name in ("resume", "overwrite") if name in options}
    settings = {
        "data": data,
        "output": str(output),
        "pruner": pruner,
        "mode": mode,
        "keep": list(keep or (0.5,)),
        **options,
    }
    return call_verb("prune", PruneConfig, prune.prune, settings | options, **how)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "truncation"])
def test_rows_come_out_with_the_text_that_prune_chain_leaves(data: str, pruner: str, tmp_path: Path, mode: str) -> None:
    found = pruned(data, tmp_path / "out.jsonl", pruner, mode)
    model, tokenizer = load_model(pruner)
    for row, given in zip(found.rows, SOLUTIONS, strict=True):
        chain, _, number = given["answer"].rpartition("\n#### ")
        question = [{"role": "user", "content": given["question"]}]
        own = prune_chain(model, tokenizer, question, chain, f"\n#### {number}", mode=mode)  # type: ignore[arg-type]
        assert {name: row[name] for name in given} == given
        assert row["prompt"] == question
        assert row["completion"][0]["content"] == own.text(0.5).lstrip() + f"\n#### {number}"
        assert row[COLUMN]["ranks"] == own.ranks and row[COLUMN]["chain"] == chain
        assert row[COLUMN]["spans"] == [[token.start, token.stop] for token in own.tokens]
        if mode == "exact":
            assert row[COLUMN]["log_likelihoods"] == pytest.approx(own.log_likelihoods, abs=1e-3)
    assert read_json_lines(tmp_path / "out.jsonl") == found.rows
    assert load_rows(tmp_path / "out.jsonl")["completion"][0] == found.rows[0]["completion"]


@pytest.mark.slow
def test_all_kept_gives_the_completion_back_and_its_importance(data: str, pruner: str, tmp_path: Path) -> None:
    for row, given in zip(pruned(data, tmp_path / "out.jsonl", pruner, "exact", 1.0).rows, SOLUTIONS, strict=True):
        assert row["completion"][0]["content"] == given["answer"]
        ranks = row[COLUMN]["ranks"]
        if given["answer"].isascii():  # elsewhere several tokens share a letter
            assert row["importance"][: len(ranks)] == [rank / max(ranks) for rank in ranks]
        assert set(row["importance"][len(ranks) :]) == {1.0}
    assert "importance" not in pruned(data, tmp_path / "half.jsonl", pruner).rows[0]


@pytest.mark.slow
@pytest.mark.filterwarnings(PEFT_WARNING)
def test_tune_takes_the_ranks_as_weights(data: str, pruner: str, tmp_path: Path) -> None:
    pruned(data, tmp_path / "out.jsonl", pruner, "surprisal", 1.0)
    options = {"objective": "multi-token", "mtp-weights": "importance", "heads": "cold", "max-steps": "1"}
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    result = graftlm("tune", "--model", pruner, "--data", "out.jsonl", "--output", "run", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_ranks_of_the_same_kind_are_not_computed_again(
    data: str, pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pruned(data, tmp_path / "first.jsonl", pruner, "exact", 0.9)
    direct = pruned(data, tmp_path / "direct.jsonl", pruner, "exact", 0.3)
    calls: list[Any] = []
    monkeypatch.setattr(
        prune, "prune_chain", lambda *given, **options: calls.append(given) or prune_chain(*given, **options)
    )
    again = pruned(str(tmp_path / "first.jsonl"), tmp_path / "again.jsonl", pruner, "exact", 0.3)
    assert not calls
    assert [row["completion"] for row in again.rows] == [row["completion"] for row in direct.rows]
    assert again.rows[0][COLUMN] == direct.rows[0][COLUMN] != first.rows[0][COLUMN]
    pruned(str(tmp_path / "first.jsonl"), tmp_path / "other.jsonl", pruner, "surprisal")
    assert len(calls) == len(SOLUTIONS)
    tiny_model(initializer_range=0.2).save_pretrained(pruner)
    pruned(str(tmp_path / "first.jsonl"), tmp_path / "retrained.jsonl", pruner)
    assert len(calls) == 2 * len(SOLUTIONS)


def test_of_several_shares_each_row_gets_one_and_can_say_so(tmp_path: Path, pruner: str) -> None:
    data = write(tmp_path / "many.jsonl", [{**SOLUTIONS[0], "id": number} for number in range(12)])

    def rows_of(name: str, seed: int = 0) -> list[dict[str, Any]]:
        return pruned(data, tmp_path / name, pruner, "truncation", 0.5, 1.0, seed=seed, keep_in_prompt=True).rows

    found = rows_of("out.jsonl")
    assert {row[COLUMN]["keep"] for row in found} == {0.5, 1.0}
    for row in found:
        assert row["prompt"][-1]["content"] == f"How many?<eos>{row[COLUMN]['keep']:g}<eos>"
        assert (row["completion"][0]["content"] == SOLUTIONS[0]["answer"]) == (row[COLUMN]["keep"] == 1)
        assert "importance" not in row
    assert rows_of("again.jsonl") == found and rows_of("other.jsonl", seed=1) != found


@pytest.mark.slow
def test_parquet_holds_the_same_rows(data: str, pruner: str, tmp_path: Path) -> None:
    lines = pruned(data, tmp_path / "out.jsonl", pruner).rows
    pruned(data, tmp_path / "table.parquet", pruner)
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == lines
    from_parquet = pruned(str(tmp_path / "table.parquet"), tmp_path / "again.jsonl", pruner).rows
    assert [row["completion"] for row in from_parquet] == [row["completion"] for row in lines]


def test_a_row_that_fails_is_listed_and_the_rest_goes_on(
    pruner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"id": "d", "question": "Q", "answer": "x" * 300 + "\n#### 1"}
    data = write(tmp_path / "data.jsonl", [UNANSWERED, SOLUTIONS[0], long])
    output = tmp_path / "out.jsonl"
    assert run("prune", data, "--pruner", pruner, "--output", str(output), "--mode", "random") == 0
    shown = capsys.readouterr()
    assert [row["id"] for row in read_json_lines(output)] == ["a"]
    failed = read_json_lines(tmp_path / "out.failed.jsonl")
    assert [row["row"] for row in failed] == [f"row 1 of {data}", f"row 3 of {data}"]
    assert "no answer is found" in failed[0]["reason"] and "256 positions" in failed[1]["reason"]
    assert "1 of 3 rows" in shown.out and f"left out: row 1 of {data}: no answer" in shown.err
    assert not list(tmp_path.glob("*.partial"))
    write(tmp_path / "data.jsonl", SOLUTIONS)
    assert run("prune", data, "--pruner", pruner, "--output", str(output), "--mode", "random", "--overwrite") == 0
    assert not (tmp_path / "out.failed.jsonl").exists()


@pytest.mark.slow
def test_kill_and_resume_is_the_uninterrupted_file(
    pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    solutions = [{**SOLUTIONS[number % 2], "id": number} for number in range(16)]
    write(tmp_path / "data.jsonl", [*solutions[:3], UNANSWERED, *solutions[3:]])
    command = ["prune", "data.jsonl", "--pruner", pruner, "--output"]
    assert run(*command, "whole.jsonl") == 0
    partial = tmp_path / "cut.jsonl.partial"
    killed = subprocess.Popen(
        [sys.executable, "-m", "graftlm", *command, "cut.jsonl"], env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (partial.exists() and partial.read_bytes().count(b"\n") > 4):
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    done = partial.read_bytes().count(b"\n") - 1
    assert 4 <= done < 17 and not (tmp_path / "cut.jsonl").exists()
    partial.write_bytes(partial.read_bytes() + b'{"row": {"half')
    assert run(*command, "cut.jsonl") == 2 and "give --resume, --overwrite" in capsys.readouterr().err
    assert run(*command, "cut.jsonl", "--resume", "--keep", "0.4") == 2
    assert "cannot be resumed with another config: keep" in capsys.readouterr().err
    assert run(*command, "cut.jsonl", "--resume") == 0
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_kill_after_the_rows_were_written_is_resumed_to_the_same_files(
    data: str, pruner: str, tmp_path: Path
) -> None:
    whole = pruned(data, tmp_path / "whole.jsonl", pruner, "truncation")

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "cut.jsonl"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prune, "write_prune_report", kill)
        pruned(data, output, pruner, "truncation")
    assert output.exists() and not (tmp_path / "cut.html").exists()
    assert pruned(data, output, pruner, "truncation", resume=True) == whole
    assert (tmp_path / "cut.html").exists()
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(InputError, match="nothing beside it to resume"):
        pruned(data, output, pruner, "truncation", resume=True)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


def test_an_output_that_another_call_prunes_into_is_refused(data: str, pruner: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    config = PruneConfig(data=data, output=str(output), pruner=pruner)
    with Run.create(output, "prune", config, {}):
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="in use by another process"):
                pruned(data, output, pruner, "truncation", **how)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "--keep is 0.0, but it must be above 0 and at most 1"),
        (["--keep", "0.5,1.5"], "--keep is 1.5, but"),
        (["--keep", "half"], "--keep is 'half', but"),
        (["--mode", "best"], "--mode is 'best', but one of exact, screened, surrogate"),
        (["--mode", "surrogate"], "--mode surrogate and --surrogate FOLDER"),
        (["--surrogate", "absent"], "absent holds no surrogate"),
        (["--objective", "both"], "--objective is 'both', but one of joint, answer"),
        (["--granularity", "line"], "--granularity is 'line'"),
        (["--check", "1"], "--check compares another --mode with exact"),
        (["--protect", "("], "--protect: '(' is no regular expression"),
        (["--answer-start", "("], "--answer-start: '(' is no regular expression"),
        (["--output", "out.csv"], "--output is 'out.csv', but its name must end in .jsonl or .parquet"),
        (["--split", "test"], "is one split, 'train'"),
        (["--pruner", "absent"], "absent"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(
    options: list[str],
    message: str,
    data: str,
    pruner: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run("prune", data, "--pruner", pruner, "--output", "out.jsonl", *options) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_without_rows_that_can_be_pruned_is_refused(pruner: str, tmp_path: Path) -> None:
    empty, unanswered = write(tmp_path / "empty.jsonl", []), write(tmp_path / "none.jsonl", [UNANSWERED])
    with pytest.raises(InputError, match="has no rows"):
        pruned(empty, tmp_path / "out.jsonl", pruner)
    with pytest.raises(InputError, match=r"none of 1 rows can be pruned; the first: row 1 of .*: no answer is found"):
        pruned(unanswered, tmp_path / "out.jsonl", pruner)
    assert not list(tmp_path.glob("out*"))


def test_what_is_there_is_kept(data: str, pruner: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"out\.jsonl holds a run; give --resume, --overwrite or another --output"):
        pruned(data, output, pruner)
    assert output.read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["out.html", "out.failed.jsonl"])
def test_files_beside_the_output_are_kept_too(data: str, pruner: str, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", "utf-8")
    with pytest.raises(InputError, match=f"{name} exists"):
        pruned(data, tmp_path / "out.jsonl", pruner)
    assert (tmp_path / name).read_text("utf-8") == "mine"


def test_rows_of_every_wrong_kind_are_listed_and_the_good_one_is_pruned(
    tokenizer: PreTrainedTokenizerBase, pruner: str, tmp_path: Path
) -> None:
    refusing = PreTrainedTokenizerFast.from_pretrained(pruner)
    refusing.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + tokenizer.chat_template
    )
    refusing.save_pretrained(pruner)
    chain = {"chain": "2+2", "answer": "4"}
    wrong = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}], **chain},
        {"prompt": [], **chain},
        {"prompt": 5, **chain},
        {"prompt": [{"role": "assistant", "content": "2+2\n4"}], **chain},
        {"question": "Q", "chain": "2+2", "answer": ["4"]},
        {"question": "Q", "answer": "<think>\n\n</think>\n\n4"},
    ]
    good = {**SOLUTIONS[0], "pruning": "light"}
    found = pruned(write(tmp_path / "mixed.jsonl", [*wrong, good]), tmp_path / "out.jsonl", pruner, "truncation")
    assert len(found.rows) == 1 and len(found.failed) == len(wrong)
    reasons = " | ".join(reason for _, reason in found.failed)
    for part in ("no system turns", "asks nothing", "5", "'answer' is ['4']", "the chain is empty"):
        assert part in reasons


@pytest.mark.parametrize("change", ["{{ m.content | trim }}", "{{ m.content.split('=')[-1] }}"])
def test_a_template_that_changes_the_completion_fails_its_row_and_no_fit(
    tokenizer: PreTrainedTokenizerBase, data: str, pruner: str, tmp_path: Path, change: str
) -> None:
    changing = PreTrainedTokenizerFast.from_pretrained(pruner)
    changing.chat_template = tokenizer.chat_template.replace("{{ m.content }}", change)
    changing.save_pretrained(pruner)
    whole = write(tmp_path / "spaced.jsonl", [{**SOLUTIONS[0], "answer": " a = b \n#### 5 "}, SOLUTIONS[1]])
    if "trim" in change:
        assert len(pruned(whole, tmp_path / "one.jsonl", pruner, "truncation", 1.0).failed) == 1
    output = tmp_path / "out.jsonl"
    config = PruneConfig(data=whole, output=str(output), pruner=pruner, mode="truncation", keep=[1.0])
    with Run.create(output, "prune", config, {}) as opened:
        made, failed = prune_rows(config, read_rows(config), Ranker.load(config), opened, with_importance=False)
    assert len(made) == 2 and not failed


def test_parquet_keeps_columns_that_the_first_row_has_not(pruner: str, tmp_path: Path) -> None:
    data = write(tmp_path / "some.jsonl", [SOLUTIONS[0], {**SOLUTIONS[1], "source": "s", "difficulty": 3}])
    pruned(data, tmp_path / "out.parquet", pruner, "truncation")
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["source"], row["difficulty"]) for row in table] == [(None, None), ("s", 3)]


def test_the_answer_is_protected_whatever_leads_to_it(pruner: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"question": "Q", "answer": "so 27 it is then\n#### 27"}])
    (row,) = pruned(data, tmp_path / "out.jsonl", pruner, "truncation", 0.1, protect=["answer"]).rows
    assert row["completion"][0]["content"].startswith("27")


def test_the_solution_does_not_get_into_the_prompt(pruner: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "x y\n4"}]
    data = write(tmp_path / "data.jsonl", [{"messages": turns, "chain": "x y", "answer": "4"}])
    (row,) = pruned(data, tmp_path / "out.jsonl", pruner, "truncation", 1.0).rows
    assert row["prompt"] == turns[:1] and row["completion"] == turns[1:]


def test_random_deletions_differ_from_row_to_row(pruner: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"question": "Q", "answer": f"{letter * 12}\n#### 1"} for letter in "abc"])
    first, second, third = (row[COLUMN]["ranks"] for row in pruned(data, tmp_path / "out.jsonl", pruner, "random").rows)
    assert first != second != third != first


def test_another_seed_cuts_anew_but_ranks_no_exact_chain_anew(
    data: str, pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(data, tmp_path / "first.jsonl", pruner)
    monkeypatch.setattr(prune, "prune_chain", None)
    again = pruned(str(tmp_path / "first.jsonl"), tmp_path / "again.jsonl", pruner, "exact", 0.5, 0.7, seed=3)
    assert len(again.rows) == 2


def test_words_that_are_in_the_file_are_not_struck_through(pruner: str, tmp_path: Path, browser: Any) -> None:
    data = write(tmp_path / "data.jsonl", [{"question": "Q", "answer": "First we multiply everything.\n#### 4"}])
    output = tmp_path / "out.jsonl"
    options = ["--mode", "truncation", "--granularity", "word", "--keep", "0.5"]
    assert run("prune", data, "--pruner", pruner, "--output", str(output), *options) == 0
    (row,) = read_json_lines(output)
    view = browser.new_page()
    view.goto((tmp_path / "out.html").as_uri())
    kept = view.evaluate(
        "[...document.querySelectorAll('.chain span[title]:not(.gone)')].map(s => s.textContent).join('')"
    )
    view.close()
    assert kept == row["completion"][0]["content"].removesuffix("\n#### 4") == "First we multiply"


@pytest.mark.slow
def test_how_far_a_mode_agrees_with_exact_is_said(
    data: str, pruner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    given = ["--pruner", pruner, "--output", str(output), "--mode", "surprisal", "--check", "2"]
    assert run("prune", data, *given) == 0
    exact = pruned(data, tmp_path / "exact.jsonl", pruner).rows
    rows_found = read_json_lines(output)
    each = [rank_agreement(a[COLUMN]["ranks"], b[COLUMN]["ranks"]) for a, b in zip(rows_found, exact, strict=True)]
    expected = f"Spearman {sum(each) / 2:.2f} ({min(each):.2f} to {max(each):.2f}, 2 chains)"
    assert expected in capsys.readouterr().out and expected in (tmp_path / "out.html").read_text("utf-8")


def test_names_of_the_last_version_still_prune(data: str, pruner: str, tmp_path: Path) -> None:
    from graftlm.pruning.rows import Cut, Ranking, prune_rows

    ranking = Ranking(pruner=pruner, mode="truncation", protect=("answer",))
    with pytest.warns(DeprecationWarning, match=r"prune_rows is now graftlm\.prune"):
        old = prune_rows(data, tmp_path / "old.jsonl", ranking, Cut(keep=(0.5,)), limit=1)
    assert old.rows == pruned(data, tmp_path / "new.jsonl", pruner, "truncation", protect=["answer"], limit=1).rows


def test_a_loaded_pruner_is_taken(data: str, pruner: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(pruner)
    named = pruned(data, tmp_path / "named.jsonl", pruner, "surprisal")
    for name, given in (("with.jsonl", tokenizer), ("without.jsonl", None)):
        loaded = graftlm_prune(model, data, tmp_path / name, tokenizer=given, mode="surprisal", keep=[0.5])
        assert loaded.rows == named.rows


@pytest.mark.slow
def test_a_run_yaml_repeats_it(data: str, pruner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    assert run("prune", data, "--pruner", pruner, "--output", str(output), "--mode", "truncation", "--keep", "1") == 0
    file = tmp_path / "out.run.yaml"
    assert run("prune", "--config", str(file), "--output", str(again)) == 0, capsys.readouterr().err
    assert again.read_bytes() == output.read_bytes()


def test_rank_agreement_is_spearmans() -> None:
    assert rank_agreement([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert rank_agreement([1, 1, 2], [1, 2, 3]) == pytest.approx(3**0.5 / 2)  # mean ranks 1.5, 1.5, 3


def test_the_page_shades_each_token_by_rank(data: str, pruner: str, tmp_path: Path, browser: Any) -> None:
    assert run("prune", data, "--pruner", pruner, "--output", str(tmp_path / "out.jsonl"), "--keep", "0.5") == 0
    path = tmp_path / "out.html"
    page = path.read_text("utf-8")
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    for row in read_json_lines(tmp_path / "out.jsonl"):
        count = len(row[COLUMN]["ranks"])
        assert page.count(f"of {count}, ") == len(row[COLUMN]["chain"])  # a mark for each letter's first token
    view = browser.new_page()
    view.goto(path.as_uri())
    spans = view.evaluate(
        "[...document.querySelectorAll('.chain')[0].querySelectorAll('span[title]')].map(s => "
        "[s.title, getComputedStyle(s).backgroundColor, getComputedStyle(s).textDecorationLine])"
    )
    view.close()
    ranks = {int(title.split()[1]): (colour, line) for title, colour, line in spans}
    count = len(ranks)
    assert len({colour for colour, _ in ranks.values()}) > count / 2
    assert [ranks[rank][1] for rank in (1, count)] == ["line-through", "none"]
    for scheme in ("light", "dark"):
        assert len(draw(browser, path, scheme, 360, tmp_path / f"{scheme}.png")) == 2
