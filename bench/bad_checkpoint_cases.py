"""Bad inputs in what a model's folder holds, for bench/bad_inputs.py: weights, configs, adapters, heads, tokenizers."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

from bad_input_cases import Case, base_command

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
NUMBERS = ("max_position_embeddings", "rms_norm_eps", "attention_dropout", "initializer_range", "pretraining_tp")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
WRONG: tuple[Any, ...] = ("x", [], {}, [1, "x"], {"a": 1}, "10")


def checkpoints(rng: Random, good: Path, case: Path) -> Case:
    """A model whose config or weights are damaged, or contradict each other."""
    folder = shutil.copytree(good / "model", case / "model")
    command = ["generate", str(folder), "--prompt", "a", "--max-new-tokens", "2"]
    if rng.random() < 0.35:
        return Case(
            f"weights: {damage_weights(rng, folder / 'model.safetensors')}", command, ("model.safetensors", str(folder))
        )
    if rng.random() < 0.15:
        return Case(f"config.json: {damage_json(rng, folder / 'config.json')}", command, ("config.json", str(folder)))
    choices: list[tuple[str, Any]] = [
        (rng.choice(SIZES), rng.choice([*WRONG, -1, 0, 10**12, 10**30, 2.5, None, 7, 13])),
        (rng.choice(NUMBERS[:4]), rng.choice(WRONG)), ("max_position_embeddings", rng.choice([0, -1, 2.5])),
        ("rms_norm_eps", rng.choice([-1, float("nan")])), (rng.choice(IDS), rng.choice(["x", {}, 2.5])),
        ("model_type", rng.choice(["lama", "", 3, None, [], "bert"])),
        ("hidden_act", rng.choice(["x", "", 3, [], None])),
        ("rope_parameters", rng.choice(["x", 3, [], {"rope_type": "x"}, {"rope_type": "linear"},
            {"rope_theta": "x", "rope_type": "default"}])),
        ("dtype", rng.choice(["float7", 3, [], {}])), ("head_dim", rng.choice([*WRONG, -1, 0, 3, 10**12])),
        ("attention_bias", rng.choice(["x", [], True])), ("mlp_bias", rng.choice(["x", {}, True])),
        ("quantization_config", rng.choice([{"quant_method": "x"}, "x", [1]])),
        ("tie_word_embeddings", rng.choice(["x", [], {}])),
    ]  # fmt: skip
    key, value = rng.choice(choices)
    change_json(folder / "config.json", key, value)
    return Case(f"config.json {key}", command, ("config.json", str(folder)))


def generation_configs(rng: Random, good: Path, case: Path) -> Case:
    """A generation_config.json that cannot be, or says what generation refuses."""
    folder = shutil.copytree(good / "model", case / "model")
    command = [
        "generate",
        str(folder),
        "--prompt",
        "a",
        "--max-new-tokens",
        "2",
        *rng.choice([[], ["--temperature", "1"]]),
    ]
    file = folder / "generation_config.json"
    if rng.random() < 0.2:
        return Case(f"generation_config.json: {damage_json(rng, file)}", command, ("generation_config.json",))
    numbers = (
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "num_beams",
        "max_length",
        "min_length",
        "length_penalty",
    )
    choices: list[tuple[str, Any]] = [
        (rng.choice(numbers), rng.choice(WRONG)), (rng.choice(numbers[:5]), rng.choice([-1, -5])),
        ("num_beams", 0), ("top_p", 2),
        ("repetition_penalty", 0), (rng.choice(IDS), rng.choice(["x", {}, 2.5, ["x"]])), ("eos_token_id", [[1]]),
        ("do_sample", rng.choice(["x", [], {}])), ("num_return_sequences", rng.choice([0, -1, "x"])),
        ("max_new_tokens", rng.choice([-1, 0, "x"])),
        ("suppress_tokens", rng.choice(["x", ["a"], 3])), ("bad_words_ids", rng.choice(["x", [], [1], [["x"]]])),
        ("early_stopping", rng.choice([3, "x"])), ("cache_implementation", rng.choice(["x", 3])),
        ("pad_token_id", "x"),
    ]  # fmt: skip
    key, value = rng.choice(choices)
    change_json(file, key, value)
    return Case(f"generation_config.json {key}", command, ("generation_config.json", f"`{key}`"))


def adapters(rng: Random, good: Path, case: Path) -> Case:
    """An adapter whose config or weights are damaged, or that does not fit its model."""
    folder = shutil.copytree(good / "adapter", case / "adapter")
    command = ["generate", str(folder), "--prompt", "a", "--max-new-tokens", "2"]
    if (draw := rng.random()) < 0.35:
        file = folder / "adapter_model.safetensors"
        return Case(f"weights: {damage_weights(rng, file)}", command, ("adapter_model.safetensors", str(folder)))
    if draw < 0.45:
        kind = damage_json(rng, folder / "adapter_config.json")
        return Case(f"adapter_config.json: {kind}", command, ("adapter_config.json", str(folder)))
    choices: list[tuple[str, Any]] = [
        ("r", rng.choice([*WRONG, 0, -1, 3, 10**12, 2.5, None])), ("lora_alpha", rng.choice([*WRONG, None])),
        ("lora_dropout", rng.choice([*WRONG, -1, 1.5, 2])),
        ("target_modules", rng.choice(["nothing", [], ["x"], 3, {"a": 1}])),
        ("peft_type", rng.choice(["x", "", 3, None, [], "PREFIX_TUNING", "IA3"])),
        ("base_model_name_or_path", rng.choice(["", None, 3, "no/such-model", "/nowhere", []])),
        ("bias", rng.choice(["x", 3, []])), ("task_type", rng.choice(["x", 3])),
        ("modules_to_save", rng.choice([[3], 3, "lm_head"])),
        ("layers_to_transform", rng.choice(["x", ["y"], {}])),
        ("rank_pattern", rng.choice(["x", 3, {"q_proj": "x"}])),
        ("use_rslora", rng.choice(["x", []])), ("inference_mode", rng.choice(["x", []])),
        ("fan_in_fan_out", rng.choice([{}, "x"])),
    ]  # fmt: skip
    key, value = rng.choice(choices)
    change_json(folder / "adapter_config.json", key, value)
    return Case(f"adapter_config.json {key}", command, ("adapter_config.json", str(folder)))


def heads(rng: Random, good: Path, case: Path) -> Case:
    """Heads whose config or weights are damaged, or that are of another model."""
    folder = shutil.copytree(good / "heads", case / "heads")
    command = rng.choice([
        ["generate", str(good / "model"), "--prompt", "a", "--max-new-tokens", "4", "--heads", str(folder)],
        [*base_command("tune", good, case), "--heads", str(folder)],
    ])  # fmt: skip
    if (draw := rng.random()) < 0.4:
        return Case(f"weights: {damage_weights(rng, folder / 'model.safetensors')}", command, (str(folder),))
    if draw < 0.55:
        return Case(f"config.json: {damage_json(rng, folder / 'config.json')}", command, (str(folder),))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    key = rng.choice([name for name in config if name not in ("base_model", "base_revision")])
    wrong: list[Any] = [*WRONG, -1, 10**9, 2.5, None] if isinstance(config[key], int) else ["x", "", 3, [], None]
    if key != "copy_layer":  # heads may be copied from layer 0
        wrong.append(0)
    change_json(folder / "config.json", key, rng.choice(wrong))
    return Case(f"config.json {key}", command, (str(folder),))


def tokenizers(rng: Random, good: Path, case: Path) -> Case:
    """A tokenizer that cannot be read, or that the model cannot follow."""
    folder = shutil.copytree(good / "model", case / "model")
    command = ["generate", str(folder), "--prompt", "a", "--max-new-tokens", "2"]
    file = folder / rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    if rng.random() < 0.25:
        return Case(f"{file.name}: {damage_json(rng, file)}", command, (file.name, str(folder)))
    if file.name == "tokenizer.json":
        content = json.loads(file.read_text("utf-8"))
        part = rng.choice(
            ["model", "added_tokens", "pre_tokenizer", "decoder", "post_processor", "truncation", "padding"]
        )
        if part == "model" and rng.random() < 0.7:
            inner = rng.choice(["type", "vocab", "merges"])
            content["model"][inner] = rng.choice([3, "x", {"a": "b"}, [["a"]], [3]])
            part = f"model.{inner}"
        else:
            content[part] = rng.choice(["x", 3, [3], {"type": "Nothing"}])
        file.write_text(json.dumps(content), "utf-8")
        return Case(f"tokenizer.json {part}", command, (file.name, str(folder)))
    broken = rng.choice(
        ["{% for m in messages %}", "{{ 1 / 0 }}", "{{ nothing() }}", "{% if %}", 3, "{{ raise_exception('no') }}"]
    )
    choices: list[tuple[str, Any]] = [
        ("eos_token", rng.choice([3, [], {}])), ("pad_token", rng.choice([3, ["x"]])),
        ("model_max_length", rng.choice(["x", [], {}])), ("chat_template", broken),
        ("bos_token", rng.choice([3, {"a": 1}])),
    ]  # fmt: skip
    key, value = rng.choice(choices)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change_json(file, key, value)
    return Case(f"tokenizer_config.json {key}", command, (file.name, str(folder), "chat template"))


def change_json(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_text("utf-8"))
    content[key] = value
    file.write_text(json.dumps(content), "utf-8")


def damage_json(rng: Random, file: Path) -> str:
    """What was done to the file."""
    text = file.read_text("utf-8").strip()
    kind = rng.choice(["cut", "empty", "a list", "a word", "bytes", "a folder", "twice"])
    if kind == "cut":
        file.write_text(text[: rng.randrange(1, len(text) - 1)], "utf-8")
    elif kind == "bytes":
        file.write_bytes(b"\xff\xfe\x00" + text.encode())
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_text({"empty": "", "a list": "[1, 2]", "a word": '"x"', "twice": text + text}[kind], "utf-8")
    return kind


def damage_weights(rng: Random, file: Path) -> str:
    """What was done to a safetensors file."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    kind = rng.choice(
        [
            "cut",
            "empty",
            "no header",
            "long header",
            "a folder",
            "tensor left out",
            "shape",
            "dtype",
            "offsets",
            "not a number",
            "a pickle",
        ]
    )
    if kind in ("cut", "empty", "no header", "long header", "a pickle"):
        file.write_bytes({
            "cut": data[: rng.randrange(1, len(data) - 1)], "empty": b"", "no header": bytes(200),
            "long header": struct.pack("<Q", 2**rng.choice([30, 40, 62])) + data[8:], "a pickle": b"\x80\x02}q\x00.",
        }[kind])  # fmt: skip
        return kind
    if kind == "a folder":
        file.unlink()
        file.mkdir()
        return kind
    if kind == "not a number":
        start, stop = header[name]["data_offsets"]
        body = body[:start] + struct.pack("<f", float("nan")) * ((stop - start) // 4) + body[stop:]
    elif kind == "tensor left out":
        entries = {each: body[slice(*header[each]["data_offsets"])] for each in names if each != name}
        del header[name]
        body, start = b"", 0
        for each, piece in entries.items():
            header[each]["data_offsets"] = [start, start + len(piece)]
            body, start = body + piece, start + len(piece)
    else:
        field, value = {
            "shape": ("shape", rng.choice([[1], [], [10**9, 10**9], [*header[name]["shape"][::-1], 2]])),
            "dtype": ("dtype", rng.choice(["F7", "F64", 3])),
            "offsets": ("data_offsets", rng.choice([[0, 10**12], [5, 2], [0, 0], "x"])),
        }[kind]  # fmt: skip
        header[name][field] = value
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return kind
