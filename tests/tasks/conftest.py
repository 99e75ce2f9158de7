"""A byte-level tokenizer and tiny random models, made in code: nothing is read from disk or network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 258  # 256 bytes, end of sequence, padding
SIZES = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                 "num_attention_heads": 4},
    "mistral": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "sliding_window": 8},
    "granite": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "logits_scaling": 0.5},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "falcon_h1": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 4,
                  "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8},
    "lfm2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                     "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                     "layer_types": ["linear_attention", "full_attention"]},
}  # fmt: skip


def tiny_model(kind: str = "llama") -> PreTrainedModel:
    """A random causal LM in float64 and eval mode, with weights large enough for peaked predictions."""
    torch.manual_seed(0)
    special = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, initializer_range=0.3, **special, **SIZES[kind])
    # Eager attention takes the softmax in float32, where float64's mask overflows.
    attention = {} if kind == "mamba" else {"attn_implementation": "sdpa"}
    return AutoModelForCausalLM.from_config(config, **attention).double().eval()


def successor_model(successors: dict[str, str], otherwise: str) -> PreTrainedModel:
    """A Llama whose greedy next byte depends on the last byte alone: `successors[it]`, or `otherwise`; ""
    ends."""
    size = VOCABULARY + 2
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=size, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, tie_word_embeddings=False,
        bos_token_id=256, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = byte_ids()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, size))
        model.lm_head.weight.zero_()
        for character, token_id in ids.items():
            follower = successors.get(character, otherwise)
            model.lm_head.weight[ids[follower] if follower else 256, token_id] = 1.0
    return model


def byte_ids() -> dict[str, int]:
    """Character of one byte below 128 -> token id."""
    tokenizer = byte_tokenizer()
    return {chr(code): tokenizer(chr(code))["input_ids"][0] for code in range(128)}


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """One token per byte, but for the merges."""
    words = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "<|end|>",
        "<|pad|>",
        *("".join(pair) for pair in merges),
    ]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return byte_tokenizer


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def make_successor_model() -> Callable[..., PreTrainedModel]:
    return successor_model


@pytest.fixture
def load_tool() -> Callable[[str], ModuleType]:
    """A script of tools/ as a module."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).resolve().parents[2] / "tools" / f"{name}.py"
        spec: Any = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
