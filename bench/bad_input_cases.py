"""The bad inputs of bench/bad_inputs.py: each generator draws one command with one fault, and says who must be named.

Every fault is one that no reading can take for meant: a number out of its range, a word that is no choice, a file cut
short, a size that the weights contradict. The good files beside it are made by `make_good`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, SFTConfig

from graftlm.experiments.config import StudyConfig
from graftlm.heads.config import DistillConfig
from graftlm.heads.heads import MultiTokenHeads
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.config import split_optional, typed_fields
from graftlm.runs.ranges import Range, range_of
from graftlm.runs.yaml_text import dump_yaml
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.trainer_settings import RANGE_OF

WORDLESS = ("", " ", "x", "one", "0x10", "--", "null null", "[1]", "{}", "é", "1e", "∞")


@dataclass(frozen=True)
class Case:
    """A command that must end with status 2 and one line that holds one of `culprits`."""

    kind: str
    arguments: list[str]
    culprits: tuple[str, ...]


Generator = Callable[[Random, Path, Path], Case]  # what is drawn, the good files, the case's own folder


def make_good(folder: Path) -> None:
    """model/, adapter/, heads/ and rows.jsonl: tiny, random, and usable."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model.name_or_path = str(folder / "model")
    MultiTokenHeads.from_model(model, 2).save_pretrained(folder / "heads")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder / "adapter")
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "prompts.txt").write_text("one\ntwo\n", "utf-8")


# -- settings ---------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, type] = {
    "distill": DistillConfig,
    "tune": TuneConfig,
    "reinforce": ReinforceConfig,
    "study": StudyConfig,
}
FLAGS: dict[tuple[str, ...], dict[str, Range]] = {
    ("evaluate", "MODEL", "--task", "ROWS"): {
        "--limit": Range(at_least=1), "--shots": Range(at_least=0), "--batch-size": Range(at_least=1),
        "--seed": Range(at_least=0, at_most=2**32 - 1), "--alpha": Range(above=1, below=1),
    },
    ("audit", "MODEL", "ADAPTER", "--probe", "ROWS", "--output", "CASE/a"): {
        "--limit": Range(at_least=2), "--layer-groups": Range(at_least=1), "--batch-size": Range(at_least=1),
        "--seed": Range(at_least=0, at_most=2**32 - 1),
    },
    ("generate", "MODEL", "--prompt", "a"): {
        "--max-new-tokens": Range(at_least=1), "--temperature": Range(at_least=0),
        "--seed": Range(at_least=0, at_most=2**32 - 1),
    },
    ("restore", "ADAPTER", "--layers", "0", "--output", "CASE/r"): {"--scale": Range(at_least=0, at_most=1)},
    ("prune", "ROWS", "--pruner", "MODEL", "--output", "CASE/p.jsonl"): {
        "--keep": Range(above=0, at_most=1), "--check": Range(at_least=0), "--limit": Range(at_least=1),
        "--batch-tokens": Range(at_least=1), "--seed": Range(at_least=0, at_most=2**32 - 1),
    },
    ("serve", "MODEL"): {
        "--port": Range(at_least=0, at_most=65535), "--max-batch-size": Range(at_least=1),
        "--max-queue": Range(at_least=1), "--max-tokens-limit": Range(at_least=1),
        "--max-body-bytes": Range(at_least=1),
        "--request-seconds": Range(above=0), "--grace-seconds": Range(above=0),
    },
    ("proxy", "sweep", "MODEL", "--expert", "ADAPTER", "--task", "ROWS", "--output", "CASE/s"): {
        "--alphas": Range(above=1, below=1), "--limit": Range(at_least=2), "--batch-size": Range(at_least=1),
    },
}  # fmt: skip
WORDS: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    ("prune", "ROWS", "--pruner", "MODEL", "--output", "CASE/p.jsonl"): {
        "--mode": ("best", "Exact", ""), "--objective": ("all", ""), "--granularity": ("line", "tokens"),
        "--protect": ("(", "[a", "*", "(?P<", "a{9999999999}", "\\"), "--answer-start": ("(", "[a", "+", "(?<"),
        "--surrogate": ("nowhere", "."), "--split": ("test", ""),
    },
    ("audit", "MODEL", "ADAPTER", "--probe", "ROWS", "--output", "CASE/a"): {
        "--format": ("a", "=x", "a=", "a=(", "other=x"), "--task": ("nothing", "lm-eval:no-such-task-at-all", ""),
        "--fail-if": ("retention", "retention=1", "<1", "nothing<1", "retention<x", "retention.nothing<1", ""),
    },
    ("restore", "ADAPTER", "--output", "CASE/r"): {"--layers": ("x", "5", "1-0", "", "-1", "0-99", "0,,1", "1.5")},
    ("evaluate", "MODEL"): {"--task": ("nothing", "", "capitols", "nowhere.jsonl"), "--output": ("/",
    "/dev/null/no.json")},
    ("generate",): {"--file": ("nowhere.txt", "."), "--heads": ("nowhere", "."), "--expert": ("nowhere",)},
    ("serve", "MODEL"): {"--host": ("0.0.0.0", "::"), "--api-key": ("", " ")},
}  # fmt: skip


def settings(rng: Random, good: Path, case: Path) -> Case:
    """A field of a config as a flag or in a file, a field of the trainer, or a flag of another verb."""
    draw = rng.random()
    if draw < 0.55:
        return config_field(rng, good, case)
    if draw < 0.75:
        return trainer_field(rng, good, case)
    table: Any = FLAGS if draw < 0.92 else WORDS
    command = rng.choice(list(table))
    flag, allowed = rng.choice(list(table[command].items()))
    if isinstance(allowed, Range):
        whole = flag not in (
            "--temperature",
            "--scale",
            "--keep",
            "--alphas",
            "--alpha",
            "--request-seconds",
            "--grace-seconds",
        )
        value = rng.choice(
            [*WORDLESS[2:], "nan", "inf", *([] if allowed.above == 1 else map(repr, beyond(rng, allowed, whole)))]
        )
    else:
        value = rng.choice(allowed)
    arguments = [place(word, good, case) for word in command]
    if command == ("generate",):
        arguments += [str(good / "model"), *(["--prompt", "a"] if flag != "--file" else [])]
    return Case(f"{command[0]} {flag}", [*arguments, f"{flag}={value}"], (flag, flag.removeprefix("--"), value))


def config_field(rng: Random, good: Path, case: Path) -> Case:
    verb = rng.choice(list(CONFIGS))
    field, annotation = rng.choice(typed_fields(CONFIGS[verb]))
    inner, optional = split_optional(annotation)
    while inner is str or field.name in ("trainer", "data_options", "formats"):
        field, annotation = rng.choice(typed_fields(CONFIGS[verb]))
        inner, optional = split_optional(annotation)
    in_file = inner is bool or rng.random() < 0.5
    wrong: list[Any] = ["x", "", "true-ish"] if inner is bool else [*WORDLESS]
    allowed = range_of(field)
    if inner in (int, float):
        wrong += [float("nan"), float("inf"), -float("inf")]
        wrong += beyond(rng, allowed, inner is int) if allowed else []
        wrong += [10**30, 2.5] if inner is int else [10**400 if in_file else "1e999"]
    if get_origin(inner) is Literal:
        wrong += [get_args(inner)[0].upper(), "nothing"]
    if in_file:
        wrong += [[1], {"a": 1}, *([] if optional else [None]), *([] if inner is bool else [True])]
    value = rng.choice(wrong)
    flag = f"--{field.name.replace('_', '-')}"
    arguments = base_command(verb, good, case)
    if flag in arguments:  # the bad one stands alone
        at = arguments.index(flag)
        arguments[at : at + 2] = []
    if in_file:
        text = dump_yaml({field.name: value}) if value != 10**400 else f"{field.name}: 1{'0' * 400}\n"
        (case / "settings.yaml").write_text(text, "utf-8")
        return Case(f"{verb} {field.name}: in a file", [*arguments, str(case / "settings.yaml")], (field.name, flag))
    return Case(f"{verb} {flag}", [*arguments, f"{flag}={value}"], (flag,))


def trainer_field(rng: Random, good: Path, case: Path) -> Case:
    cls, verb = rng.choice([(SFTConfig, "tune"), (GRPOConfig, "reinforce")])
    names = [field.name for field in fields(cls) if field.name in RANGE_OF]
    name = rng.choice(names)
    allowed = RANGE_OF[name]
    value = rng.choice(["x", "[]", "{a: 1}", ".nan", ".inf", "true", "''", *map(repr, beyond(rng, allowed, False))])
    if rng.random() < 0.1:
        name, value = name + rng.choice("xyz"), "1"
    return Case(f"{verb} --trainer {name}", [*base_command(verb, good, case), "--trainer", f"{name}={value}"], (name,))


def base_command(verb: str, good: Path, case: Path) -> list[str]:
    """The verb on the good files, ended before it trains where it can be."""
    arguments = [
        verb,
        "--model",
        str(good / "model"),
        "--data",
        str(good / "rows.jsonl"),
        "--output",
        str(case / "run"),
    ]
    if verb == "distill":
        return [*arguments, "--domain-tokens", "40", "--general-tokens", "0", "--max-new-tokens", "8"]
    if verb == "tune":
        return [*arguments, "--heads", "cold", "--num-heads", "2", "--dry-run"]
    if verb == "reinforce":
        return [*arguments, "--reward", "answer", "--dry-run"]
    return [*arguments, "--dry-run"]


def beyond(rng: Random, allowed: Range, whole: bool) -> list[float]:
    """Numbers outside the range: just so, far, and farther."""
    step = 1 if whole else rng.choice([1e-6, 0.5, 1])
    kind: Any = int if whole else float
    low = allowed.above if allowed.above is not None else None if allowed.at_least is None else allowed.at_least - step
    high = allowed.below if allowed.below is not None else None if allowed.at_most is None else allowed.at_most + step
    found = [] if low is None else [kind(low), kind(low) - rng.randrange(1, 100), -(10**9)]
    return found + ([] if high is None else [kind(high), kind(high) + rng.randrange(1, 100), 10**12])


def place(word: str, good: Path, case: Path) -> str:
    names = {"MODEL": good / "model", "ADAPTER": good / "adapter", "ROWS": good / "rows.jsonl"}
    return str(names[word]) if word in names else word.replace("CASE", str(case))


# -- YAML and data ----------------------------------------------------------------------------------------------------

BROKEN_YAML = (
    "a: [", "a: {", "a: 'x", 'a: "x', "a: b: c", "- 1\n- 2", "text", "3", "a: &a {b: *a}", "a: *b",
    "a: !!python/name:os.system",
    "epochs: 1\nepochs: 2", "? [a]\n: 1", "epochs: 2020-13-45", "a: \x07", "\ta: 1", "<<: 3",
    "<<: {epochs: 1}\n<<: {epochs: 2}",
    "a: !!int x", "a: !!bool x", "--- {}\n--- {}", "%YAML 9.0\n---\na: 1", "a: " + "[" * 3000, "a: !!timestamp x",
    "[]", "null: 1",
    "trainer: &t {a: &u [*t]}", "epochs: !!float x", "a: @b", "a: `b`", "a: |\n x\n y: |3", "config: 3",
)  # fmt: skip


def yaml_files(rng: Random, good: Path, case: Path) -> Case:
    """A config file that cannot be read, or holds what no config has."""
    verb, file = rng.choice(list(CONFIGS)), case / "settings.yaml"
    lines = [
        f"{name}: {rng.choice(['1', 'x', '[1]'])}"
        for name in ("seeds_", "mdel", "lorarank", "Epochs", "num-head", "x" * 50)
    ]
    text = rng.choice([rng.choice(BROKEN_YAML), rng.choice(lines), rng.choice(BROKEN_YAML) + "\n" + rng.choice(lines)])
    kind, data = "text", text.encode()
    if (draw := rng.random()) < 0.1:
        kind, data = "bytes", bytes(rng.randrange(128, 256) for _ in range(rng.randrange(1, 40)))
    elif draw < 0.2:
        kind, data = "utf-16", "epochs: 1".encode("utf-16")
    file.write_bytes(data)
    return Case(f"{verb} file of {kind}", [*base_command(verb, good, case), str(file)], ("settings.yaml",))


def data_files(rng: Random, good: Path, case: Path) -> Case:
    """Rows that are damaged, empty, or of no known form."""
    lines = (good / "rows.jsonl").read_text("utf-8").splitlines()
    at = rng.randrange(len(lines))
    file, row = case / "rows.jsonl", json.loads(lines[at])
    forms: list[Any] = [
        {**row, "prompt": None}, {**row, "completion": 3}, {**row, "prompt": [1]}, {**row,
        "completion": ""}, {"prompt": "a"},
        {"text": 3}, {"text": None}, {"messages": "x"}, {"messages": []}, {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]}, {"messages": [{"role": "wizard",
        "content": "x"}]}, {"messages": [3]}, [1, 2], 3, "x", None, {},
        {"messages": [{"role": "user", "content": 3}]}, {"anything": "else"}, {**row, "prompt": {"a": 1}}, {**row,
        "completion": True},
    ]  # fmt: skip
    broken = [
        lines[at][: rng.randrange(1, len(lines[at]))],
        "{'prompt': 'a'}",
        "}",
        lines[at] + lines[at],
        '{"a": NaNa}',
        "\x00\x01",
    ]
    kind = rng.choice(
        ["form", "line", "empty", "blank", "bytes", "gzip", "parquet", "csv", "ending", "folder", "absent"]
    )
    if kind == "form":
        every = [json.dumps(form) for form in [rng.choice(forms)] * len(lines)]
        file.write_text(
            "\n".join(every if rng.random() < 0.5 else [*lines[:at], every[0], *lines[at + 1 :]]) + "\n", "utf-8"
        )
    elif kind == "line":
        file.write_text("\n".join([*lines[:at], rng.choice(broken), *lines[at + 1 :]]) + "\n", "utf-8")
    elif kind in ("empty", "blank"):
        file.write_text("" if kind == "empty" else "\n \n\n", "utf-8")
    elif kind == "bytes":
        file.write_bytes("\n".join(lines[:at]).encode() + b'\n{"prompt": "\xff\xfe", "completion": "a"}\n')
    elif kind == "gzip":
        file = case / "rows.jsonl.gz"
        whole = gzip.compress("\n".join(lines).encode())
        file.write_bytes(rng.choice([whole[: rng.randrange(1, len(whole) - 8)], b"no gzip", b""]))
    elif kind == "parquet":
        file = case / "rows.parquet"
        file.write_bytes(
            rng.choice([b"", b"PAR1", b"PAR1" + bytes(rng.randrange(256) for _ in range(50)) + b"PAR1", b"x" * 100])
        )
    elif kind == "csv":
        file = case / "rows.csv"
        file.write_text(
            rng.choice(["", "prompt,completion\n", "a,b\n1,2\n", 'prompt,completion\n"a,b\n', "prompt,prompt\na,b\n"]),
            "utf-8",
        )
    elif kind == "ending":
        file = case / f"rows.{rng.choice(['exe', 'doc', 'pkl', 'jsonx'])}"
        file.write_text("\n".join(lines), "utf-8")
    elif kind == "folder":
        file = case / "rows"
        file.mkdir()
    verbs = {
        "tune": [*base_command("tune", good, case)],
        "evaluate": ["evaluate", str(good / "model"), "--task", str(file)],
        "prune": ["prune", str(file), "--pruner", str(good / "model"), "--output", str(case / "out.jsonl")],
        "audit": [
            "audit",
            str(good / "model"),
            str(good / "adapter"),
            "--probe",
            str(file),
            "--output",
            str(case / "audit"),
        ],
    }
    verb = rng.choice(list(verbs) if file.suffix != ".exe" else ["tune", "prune"])
    arguments = verbs[verb]
    if verb == "tune":
        arguments[arguments.index("--data") + 1] = str(file)
    return Case(f"{verb}: {kind}", arguments, (file.name, file.stem))
