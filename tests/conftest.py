"""Tiny random models of every architecture that heads are proved on, a byte-level tokenizer, a browser; no network."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "GRAFTLM_TEST_DEVICE" not in os.environ:  # tiny models, whose tensors the tests make on the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 259  # 256 bytes and three special tokens
ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "mistral", "phi3", "olmo2", "gpt_neox", "gpt2")


def tiny_model(architecture: str = "llama", *, layers: int = 2, seed: int = 0, **settings: object) -> PreTrainedModel:
    """A random model of `architecture` with hidden size 32 and 4 attention heads, in eval mode, float32."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "head_dim": 8,
        "tie_word_embeddings": False,
    }
    if architecture == "gpt2":
        sizes = {**sizes, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 256, "n_inner": 64}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "max_position_embeddings"):
            sizes.pop(name)
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if architecture in ("gpt2", "gpt_neox"):
        for name in ("num_key_value_heads", "head_dim"):
            sizes.pop(name, None)
    torch.manual_seed(seed)
    attention = settings.pop("attention", "sdpa")
    config = AutoConfig.for_model(architecture, **{**sizes, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return fast


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium; where none is installed these tests cannot run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


def pytest_collection_finish() -> None:
    """What the libraries made when they were imported stays; a collection need not look through it each time."""
    gc.collect()
    gc.freeze()
