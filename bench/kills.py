"""Kill every verb that writes, again and again, resume it, and hold what it leaves against a run without a break.

    .venv/bin/python bench/kills.py --folder /tmp/kills --output bench/results/kills.json

Each trial kills one verb with SIGKILL once or twice: at one of its writes, chosen by chance (an open for writing, a
rename, a removal, a new folder), half of what was written before it cut off now and then, or at a moment of its running
time; the second kill is one of the resumed run. Then it is resumed to its end. Right is a trial whose files are those
of the run without a break: the same names, and the same content but for times, versions and command lines; and that
leaves no process behind. Models are tiny and random, made in FOLDER. A bench that is cut off goes on where it was,
with the trials that ended wrong first.

The libraries are imported once, and each run is a fork: a tenth of the time of a new process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from graftlm.runs.console import say
from graftlm.runs.files import append_line, dump_json, read_json_lines, remove, write_text

ROOT = Path(__file__).resolve().parents[1]
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
LONGEST = 300.0
"""Seconds of one run; one that takes longer hangs."""
OF_TIME = ("seconds", "runtime", "per_second", "step_time", "Time", "started", "finished", "at",
           "resumed", "versions", "command_line", "git_commit")  # fmt: skip


class Verb(NamedTuple):
    """`begin`: arguments of the first run; `again`: what is added to resume; `old`: what lies there before.

    `over`: what a resumed run says that has nothing left to do, at exit 2.
    """

    begin: list[str]
    again: list[str]
    old: str | None = None
    over: str | None = None


class Ended(NamedTuple):
    """How one run ended: its exit status, negative after a signal, its writes, its seconds, the last write."""

    status: int
    writes: int
    seconds: float
    last: str
    left_process: bool


def verbs(made: Path) -> dict[str, Verb]:
    model, adapter, rows, heads = (str(made / name) for name in ("model", "adapter", "rows", "heads"))
    tune = ["tune", "--model", model, "--data", rows, "--epochs", "2", "--batch-size", "4", "--save-steps", "2",
            "--max-length", "64", "--lora-dropout", "0.1", "--trainer", "logging_steps=3"]  # fmt: skip
    tune += ["--output", "out"]
    next_token = [*tune, "--objective", "next-token", "--eval-split", "validation"]
    full = [*tune, "--heads", "cold", "--num-heads", "2", "--method", "full", "--train-heads"]
    prune = ["prune", str(made / "solutions.jsonl"), "--pruner", model]
    task = ["--task", str(made / "rows" / "train.jsonl"), "--probe", "capitals", "--limit", "4"]
    distill = ["distill", "--model", model, "--data", rows, "--num-heads", "2", "--domain-tokens", "200",
               "--general-tokens", "100", "--max-new-tokens", "12", "--sampling-batch-size", "6", "--epochs", "2",
               "--tokens-per-batch", "64", "--candidates", "64", "--output", "out"]  # fmt: skip
    study = ["study", "--model", model, "--data", rows, "--arms", "next-token-full,next-token-lora", "--seeds", "1",
             "--max-steps", "2", "--tasks", "capitals", "--probes", "elements", "--limit", "2"]  # fmt: skip
    study += ["--output", "out"]
    fit = ["prune", "fit", *prune[1:], "--chains", "4", "--output", "out"]
    restore = ["restore", adapter, "--layers", "0", "--output", "out", "--overwrite"]
    sweep = ["proxy", "sweep", model, "--expert", adapter, *task, "--alphas", "0,1", "--output", "out", "--overwrite"]
    return {
        "tune": Verb(next_token, ["--resume"]),
        "tune, full with heads": Verb(full, ["--resume"]),
        "tune --overwrite": Verb([*next_token, "--overwrite"], [], old="tune, full with heads"),
        "distill": Verb(distill, ["--resume"]),
        "reinforce": Verb(["reinforce", str(made / "reinforce.yaml"), "--output", "out"], ["--resume"]),
        "study": Verb(study, ["--resume"]),
        "prune": Verb([*prune, "--output", "out.jsonl"], ["--resume"], over="nothing beside it to resume"),
        "prune fit": Verb(fit, ["--resume"]),
        "restore --overwrite": Verb(restore, [], old="adapter"),
        "export": Verb(["export", model, "--heads", heads, "--output", "out", "--overwrite"], []),
        "audit": Verb(["audit", model, adapter, *task, "--layer-groups", "1", "--output", "out", "--overwrite"], []),
        "proxy sweep": Verb(sweep, []),
        "evaluate": Verb(["evaluate", model, "--task", "capitals", "--limit", "4", "--output", "out.json"], []),
    }


def make(folder: Path) -> None:
    """Model, adapter, heads, rows, solutions and settings; in a process of its own."""
    import torch
    from peft import LoraConfig, get_peft_model

    from graftlm.heads.heads import MultiTokenHeads
    from graftlm.models.load import load_model
    from tests.conftest import byte_tokenizer, tiny_model

    model = tiny_model()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    MultiTokenHeads.from_model(model, 1).save_pretrained(folder / "heads")
    torch.manual_seed(2)
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    loaded, tokenizer = load_model(str(folder / "model"))
    get_peft_model(loaded, settings).save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    draw = random.Random(0)
    for name, count in (("train", 18), ("validation", 4)):
        rows = [{"prompt": f"{i}:", "completion": " " + "abc " * draw.randrange(1, 9)} for i in range(count)]
        write_text(folder / "rows" / f"{name}.jsonl", "".join(f"{dump_json(row)}\n" for row in rows))
    rows = [{"question": "How many?", "answer": f"{i}+{i} is {2 * i} now.\n#### {2 * i}"} for i in range(8)]
    write_text(folder / "solutions.jsonl", "".join(f"{dump_json(row)}\n" for row in rows))
    config = {"model": str(folder / "model"), "data": str(folder / "rows" / "train.jsonl"), "reward": "regex:[a-m]",
              "max_steps": 6, "save_steps": 2, "num_generations": 4, "prompts_per_step": 2, "batch_size": 4,
              "max_completion_length": 6, "formats": {"letter": "^[a-zA-Z]"}, "guard": "divergence"}  # fmt: skip
    write_text(folder / "reinforce.yaml", dump_json(config))


def forked(folder: Path, work: Callable[[], Any], *, write: int = 0, seconds: float = LONGEST) -> Ended:
    """`work` in a child whose working folder is `folder`; killed at its write number `write`, or after `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder.with_name(f"{folder.name}.writes")
    log = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    begun = time.monotonic()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            output = os.open(folder.with_name(f"{folder.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.addaudithook(killer(folder, write, log))
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(log)
    end = begun + seconds
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)
    lasted = time.monotonic() - begun
    patience = time.monotonic() + 60  # a helper of the killed process notices once it has done its imports
    while (left := signalled(child, 0)) and time.monotonic() < patience:
        time.sleep(0.02)
    if left:
        signalled(child, signal.SIGKILL)
    lines = told.read_text().splitlines()
    return Ended(os.waitstatus_to_exitcode(done[1]), len(lines), lasted, lines[-1] if lines else "", left)


def cut_short(folder: Path) -> str:
    """Halve the file that was written last before the kill, as if it had come in the middle of that; its name."""
    for line in folder.with_name(f"{folder.name}.writes").read_text().splitlines()[-2:-1]:
        event, _, name = line.partition(" ")
        if event == "open" and (folder / name).is_file():
            os.truncate(folder / name, (folder / name).stat().st_size // 2)
            return name
    return ""


def signalled(group: int, number: int) -> bool:
    """Whether a process of the group was there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def killer(folder: Path, write: int, log: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that notes each write below `folder`, and kills this process just before number `write`."""
    inside, count = str(folder), [0]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event in WRITING
        if not writes or not isinstance(given[0], (str, os.PathLike)):
            return
        path = os.path.join(os.getcwd(), os.fspath(given[0]))
        if isinstance(path, str) and path.startswith(inside + os.sep):
            count[0] += 1
            event = "append" if event == "open" and not given[2] & os.O_TRUNC else event
            os.write(log, f"{event} {path[len(inside) + 1 :]}\n".encode())
            if count[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def command(arguments: list[str]) -> Callable[[], None]:
    from graftlm.cli import main

    def work() -> None:
        sys.argv = ["graftlm", *arguments]
        main(arguments)

    return work


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if not any(name.endswith(end) for end in OF_TIME)}
        return {name: without_times(each) for name, each in kept.items() if "Time" not in name}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What is compared of a file: all of it, but for times; of pages and pickles that they are there."""
    if path.suffix == ".yaml":
        from graftlm.runs.yaml_text import parse_yaml

        return without_times(parse_yaml(path.read_text("utf-8")))
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text("utf-8")))
    if path.suffix == ".jsonl":
        return without_times(read_json_lines(path))
    return None if path.suffix in (".html", ".pt", ".pth", ".bin") else path.read_bytes()


def differences(right: Path, found: Path) -> list[str]:
    """Names that only one has, and files whose content differs."""
    names = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (right, found)]
    told = [f"lacks {name}" for name in sorted(names[0] - names[1])]
    told += [f"left {name}" for name in sorted(names[1] - names[0])]
    files = [name for name in sorted(names[0] & names[1]) if (right / name).is_file()]
    return told + [f"differs in {name}" for name in files if content(right / name) != content(found / name)]


def begin(verb: Verb, folder: Path, base: Path) -> None:
    """An empty working folder, or one with what the verb is to replace."""
    remove(folder)
    folder.mkdir(parents=True)
    folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)
    if verb.old == "adapter":
        shutil.copytree(base / "made" / "adapter", folder / "out")
    elif verb.old is not None:
        shutil.copytree(base / "whole" / verb.old / "out", folder / "out")


def trial(number: int, name: str, verb: Verb, whole: Ended, base: Path, seed: int) -> dict[str, Any]:
    """One trial; `wrong` is empty where it ended as the run without a break."""
    draw = random.Random(f"{seed} {number}")
    folder = base / "trials" / str(number)
    begin(verb, folder, base)
    kills, wrong = [], []
    arguments = verb.begin
    for _ in range(draw.choice((1, 2))):
        if draw.random() < 0.7:
            ended = forked(folder, command(arguments), write=draw.randint(1, whole.writes))
        else:
            ended = forked(folder, command(arguments), seconds=draw.uniform(0.02, 1.0) * whole.seconds)
        if ended.left_process:
            wrong.append("left a process")
        if ended.status != -signal.SIGKILL:
            break  # it had ended before
        kills.append(ended.last)
        if draw.random() < 0.5 and (half := cut_short(folder)):
            kills[-1] = f"half of {half}"
        arguments = verb.begin + verb.again
    ended = forked(folder, command(verb.begin + verb.again))
    log = folder.with_name(f"{folder.name}.log").read_text("utf-8", "replace")
    if ended.status and not (ended.status == 2 and verb.over is not None and verb.over in log):
        wrong.append(f"exit {ended.status}: {log.strip().splitlines()[-1][:200] if log.strip() else ''}")
    wrong += differences(base / "whole" / name, folder)
    if not wrong:
        remove(folder)
    return {"trial": number, "verb": name, "kills": kills, "wrong": wrong}


def table(done: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    by_verb: dict[str, dict[str, int]] = {}
    for each in done:
        row = by_verb.setdefault(each["verb"], {"trials": 0, "kills": 0, "twice": 0, "as_without_a_break": 0})
        row["trials"] += 1
        row["kills"] += len(each["kills"])
        row["twice"] += len(each["kills"]) == 2
        row["as_without_a_break"] += not each["wrong"]
    return {
        "what": "verbs killed by SIGKILL at a write or a moment, resumed, and held against a run without a break",
        "seed": seed,
        "trials": len(done),
        "kills": sum(len(each["kills"]) for each in done),
        "as_without_a_break": sum(not each["wrong"] for each in done),
        "by_verb": by_verb,
        "wrong": [each for each in done if each["wrong"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for models and trials; holds what was done")
    parser.add_argument("--output", type=Path, help="for the table, as JSON")
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--only", help="one verb")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for module in ("tuning.tune", "heads.distill", "reinforce.reinforce", "experiments.study", "pruning.fit",
                   "auditing.audit", "models.restore", "experiments.sweep", "report", "cli"):  # fmt: skip
        __import__(f"graftlm.{module}")
    base = given.folder.resolve()
    if not (base / "made" / "reinforce.yaml").exists():
        assert forked(base / "made", lambda: make(base / "made")).status == 0, f"see {base}/made.log"
    chosen = {name: verb for name, verb in verbs(base / "made").items() if given.only in (None, name)}
    whole: dict[str, Ended] = {}
    for name, verb in chosen.items():
        begin(verb, base / "whole" / name, base)
        whole[name] = forked(base / "whole" / name, command(verb.begin))
        say(f"{name}: {whole[name].writes} writes in {whole[name].seconds:.1f} s, exit {whole[name].status}")
        assert whole[name].status == 0, f"see {base}/whole/{name}.log"
    path = base / f"trials-{given.seed}.jsonl"
    right = {each["trial"]: each for each in read_json_lines(path) if not each["wrong"]}
    done = list(right.values())
    wrong = [number for number in range(max(right, default=0)) if number not in right]
    for number in itertools.chain(wrong, itertools.count(len(right) + len(wrong))):
        if number not in wrong and sum(len(each["kills"]) for each in done) >= given.kills:
            break
        name = list(chosen)[number % len(chosen)]
        found = trial(number, name, chosen[name], whole[name], base, given.seed)
        append_line(path, dump_json(found))
        done.append(found)
        say(f"{found['trial']}: {name}, killed at {found['kills']}: {found['wrong'] or 'as without a break'}")
    if given.output is not None:
        write_text(given.output, dump_json(table(done, given.seed), indent=1) + "\n")
    say(dump_json(table(done, given.seed), indent=1))


if __name__ == "__main__":
    main()
