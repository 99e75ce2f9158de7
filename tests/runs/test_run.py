"""A run folder can be repeated, resumed, and is never lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from graftlm.errors import InputError
from graftlm.runs.config import option
from graftlm.runs.files import append_line, dump_json, read_json_lines
from graftlm.runs.files import write_text as write_file
from graftlm.runs.output import Output
from graftlm.runs.run import Run, call_verb
from graftlm.runs.yaml_text import parse_yaml

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Settings:
    output: str = "run"
    rank: int = 8
    seed: int = 5


def create(folder: Path, *, config: Settings | None = None, command: str = "tune", **how: bool) -> Run:
    config = config or Settings()
    return Run.create(folder, command, config, {"output": "flag", "rank": "default"}, **how)


def finished_run(folder: Path) -> Path:
    with create(folder) as run:
        run.log({"step": 1, "loss": 2.5})
        run.write_text("weights.txt", "precious")
    return folder


def in_subprocess(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = "import sys, os, signal\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", start + code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_run_yaml_says_what_ran_with_what_and_where_each_value_came_from(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.record(data_fingerprint="abc", path=tmp_path)
        run.record(rows=3)
    document = parse_yaml((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert document["command"] == "tune"
    assert document["config"] == {"output": "run", "rank": 8, "seed": 5}
    assert document["sources"] == {"output": "flag", "rank": "default"}
    assert document["seed"] == 5
    assert document["facts"] == {"data_fingerprint": "abc", "path": str(tmp_path), "rows": 3}
    assert {"graftlm", "python", "torch", "transformers", "trl", "peft"} <= set(document["versions"])
    assert {"command_line", "git_commit", "started", "finished"} <= set(document)


def test_metrics_come_back_as_they_were_logged(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.log({"step": 1, "loss": 2.5})
        run.log({"step": 2, "loss": float("nan")})
        assert run.metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


def test_a_non_empty_folder_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="holds a run; give --resume, --overwrite or another --output"):
        create(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_other_things_is_never_touched(tmp_path: Path, how: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other things \(thesis\.tex\)"):
        create(tmp_path, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        create(tmp_path / "run")


def test_overwrite_replaces_the_old_run_once_the_new_one_has_logged(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    with create(folder, overwrite=True) as run:
        assert (folder / ".previous" / "weights.txt").read_text() == "precious"
        assert run.metrics() == []
        run.log({"step": 1})
        assert not (folder / ".previous").exists()
    assert not (folder / "weights.txt").exists()


def test_bad_input_after_something_was_kept_loses_nothing(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    with pytest.raises(InputError), create(folder, overwrite=True) as run:
        run.write_text("result.json", "hours of work")
        run.keep()
        raise InputError("the next one is impossible")
    assert (folder / "result.json").exists() and not (folder / "weights.txt").exists()
    with create(folder, resume=True) as run:
        assert run.resumed


def test_overwrite_with_bad_input_gives_the_old_run_back(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError), create(folder, config=Settings(rank=1), overwrite=True) as run:
        run.write_text("new.txt", "half made")
        raise InputError("unknown model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_overwriting_run_killed_before_it_logged_leaves_the_old_one_restorable(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    with pytest.raises(RuntimeError), create(folder, overwrite=True):
        raise RuntimeError("as good as killed")
    (folder / "run.yaml").unlink()  # killed even before it wrote this
    with pytest.raises(InputError, match="holds a run"):
        create(folder)
    assert (folder / "weights.txt").read_text() == "precious"
    assert not (folder / ".previous").exists()


def test_a_kill_at_the_first_write_of_run_yaml_blocks_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.yaml.tmp").write_text("comma")
    (tmp_path / "run" / ".lock").write_text("")
    with create(tmp_path / "run") as run:
        assert not run.resumed
    assert not (tmp_path / "run" / ".run.yaml.tmp").exists()


def test_what_a_kill_left_of_a_replaced_run_is_no_run(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    (folder / ".previous").mkdir()  # half deleted
    (folder / ".previous" / "old.txt").write_text("of the run before")
    with pytest.raises(InputError), create(folder, overwrite=True):
        raise InputError("unknown model")
    assert (folder / "weights.txt").read_text() == "precious"
    assert not (folder / "old.txt").exists()


def test_bad_input_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError), create(tmp_path / "run"):
        raise InputError("unknown model")
    assert not (tmp_path / "run").exists()


def test_a_failure_keeps_what_was_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), create(tmp_path / "run") as run:
        run.write_text("text.jsonl", "{}\n")
        raise RuntimeError("out of memory")
    assert (tmp_path / "run" / "text.jsonl").exists()


def test_a_folder_in_use_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    with create(tmp_path / "run"):
        code = (
            "from tests.runs.test_run import create\nfrom graftlm.errors import InputError\n"
            "try:\n    create(folder, overwrite=True)\nexcept InputError as error:\n    print(error)\n"
        )
        assert "is in use by another process" in in_subprocess(code, tmp_path / "run").stdout
    create(tmp_path / "run", resume=True).close()


def test_resume_continues_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "from tests.runs.test_run import create\n"
        "run = create(folder)\nrun.log({'step': 1})\n"
        "(folder / 'metrics.jsonl').open('a').write('{\"step\": 2, \"lo')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert in_subprocess(code, folder).returncode == -signal.SIGKILL
    assert read_json_lines(folder / "metrics.jsonl") == [{"step": 1}]
    with create(folder, resume=True) as run:
        assert run.resumed
        run.log({"step": 2})
        assert run.metrics() == [{"step": 1}, {"step": 2}]
    document = parse_yaml((folder / "run.yaml").read_text(encoding="utf-8"))
    assert len(document["resumed"]) == 1
    assert "finished" in document


def test_resume_with_another_config_names_what_differs(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    other = Settings(rank=16, seed=6, output="elsewhere")
    with pytest.raises(InputError, match=r"rank \(8 then, 16 now\), seed \(5 then, 6 now\)$"):
        create(folder, config=other, resume=True)
    with pytest.raises(InputError, match="is of a `graftlm tune` run, not of `graftlm distill`"):
        create(folder, command="distill", resume=True)
    with pytest.raises(InputError, match="exclude each other"):
        create(folder, resume=True, overwrite=True)


def test_resume_where_nothing_is_starts_a_run(tmp_path: Path) -> None:
    with create(tmp_path / "run", resume=True) as run:
        assert not run.resumed


def test_rewind_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for step in range(1, 5):
            run.log({"step": step})
        run.rewind(2)
        run.log({"step": 3})
        assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "run") as first:
        monkeypatch.setenv("RANK", "1")
        with create(tmp_path / "run") as second:
            second.log({"step": 1})
            second.record(a=1)
            second.write_json("a.json", {})
            assert not second.is_main
        monkeypatch.delenv("RANK")
        assert first.metrics() == []
        assert not (tmp_path / "run" / "a.json").exists()


def test_a_check_touches_nothing(tmp_path: Path) -> None:
    Output(tmp_path / "run", Settings()).check("tune", Settings(), resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class Table:
    model: str = "small"
    output: str | None = option("table", "Folder, or file.", files=(".json",), resumable=False)


def make_table(config: Table, run: Run) -> str:
    run.write_json(run.file or "results.json", {"model": config.model})
    return config.model


def test_a_run_of_one_file_leaves_its_run_yaml_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "made" / "table.json"
    settings = {"output": file, "model": "large"}
    assert call_verb("table", Table, make_table, settings) == "large"
    assert sorted(path.name for path in file.parent.iterdir()) == ["table.json", "table.run.yaml"]
    document = parse_yaml((tmp_path / "made" / "table.run.yaml").read_text())
    assert document["config"] == {"model": "large", "output": str(file)} and document["sources"]["model"] == "argument"
    with pytest.raises(InputError, match=r"table\.json holds a run; give --overwrite or another --output"):
        call_verb("table", Table, make_table, settings)
    assert call_verb("table", Table, make_table, {**settings, "model": "other"}, overwrite=True) == "other"
    assert json.loads(file.read_text()) == {"model": "other"}


def test_bad_input_leaves_nothing_of_a_run_of_one_file(tmp_path: Path) -> None:
    def fail(config: Table, run: Run) -> None:
        raise InputError("unknown model")

    with pytest.raises(InputError, match="unknown model"):
        call_verb("table", Table, fail, {"output": tmp_path / "new" / "table.json"})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "table.json").mkdir()
    with pytest.raises(InputError, match="is a folder; give a file"):
        call_verb("table", Table, fail, {"output": tmp_path / "table.json"})


def test_a_file_is_written_by_one_process_at_a_time_and_its_lock_goes(tmp_path: Path) -> None:
    file = tmp_path / "new" / "table.json"
    code = (
        "from tests.runs.test_run import Table, make_table, call_verb\n"
        "try:\n    call_verb('table', Table, make_table, {'output': folder})\n"
        "except Exception as error:\n    print(error)\n"
    )
    with Run.create(file, "table", Table(output=str(file)), {}):
        assert [path.name for path in file.parent.iterdir()] == [".table.json.lock"]
        assert "table.json is in use by another process" in in_subprocess(code, file).stdout
    assert [path.name for path in file.parent.iterdir()] == ["table.run.yaml"]
    with pytest.raises(InputError, match=r"table\.json cannot be written"):
        call_verb("table", Table, make_table, {"output": tmp_path / "new" / "table.run.yaml" / "table.json"})


def test_a_run_without_an_output_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_verb("table", Table, make_table, {"output": None}) == "small"
    assert list(tmp_path.iterdir()) == []


def test_what_the_new_run_reads_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    call_verb("table", Table, make_table, {"output": folder})
    with pytest.raises(InputError, match=r"results\.json, which is read; give another --output"):
        call_verb("table", Table, make_table, {"output": folder, "model": folder / "results.json"}, overwrite=True)
    assert (folder / "results.json").exists()


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "old")
    append_line(tmp_path / "b.jsonl", "1")
    code = (
        "import resource\nfrom graftlm.runs.files import append_line, write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for write, name in ((write_text, 'a.txt'), (append_line, 'b.jsonl')):\n"
        "    try:\n        write(folder / name, 'x' * 2000)\n"
        "    except OSError as error:\n        print(error)\n"
    )
    output = in_subprocess(code, tmp_path).stdout.splitlines()
    assert len(output) == 2
    assert all("cannot be written" in line and "untouched" in line for line in output)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "b.jsonl").read_text() == "1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.jsonl"]


def test_json_takes_numbers_of_torch_and_refuses_what_it_cannot_say() -> None:
    import torch

    value = {"a": torch.tensor(0.5), "b": torch.arange(2), "c": (1, Path("x")), "d": float("inf")}
    assert json.loads(dump_json(value)) == {"a": 0.5, "b": [0, 1], "c": [1, "x"], "d": None}
    with pytest.raises(TypeError, match="object has no JSON form"):
        dump_json({"a": object()})
