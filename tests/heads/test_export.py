"""Heads as an EAGLE-3 speculator; the layer is written plainly here after speculators 0.9.0's published one.

The real library has read such files back, with the same drafts: bench/verify_export.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from graftlm.cli import main
from graftlm.errors import InputError
from graftlm.heads.export import export_eagle3
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder
from tests.conftest import tiny_model

PARTS = {"llama": (LlamaDecoderLayer, LlamaRotaryEmbedding), "qwen3": (Qwen3DecoderLayer, Qwen3RotaryEmbedding)}


def changed_heads(model: Any, count: int = 2) -> MultiTokenHeads:
    heads = MultiTokenHeads.from_model(model, count)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return heads


def eagle3_logits(folder: Path, states: list[Tensor], embeddings: Tensor) -> Tensor:
    """[batch, time, vocabulary] of an EAGLE-3 speculator's first step.

    states: inputs [batch, time, hidden] of all layers of the model; embeddings: of the next tokens.
    """
    document, weights = json.loads((folder / "config.json").read_text("utf-8")), load_file(folder / "model.safetensors")
    settings = dict(document["transformer_layer_config"])
    layer_class, rotary_class = PARTS[settings["model_type"]]
    config = AutoConfig.for_model(**settings, attn_implementation="eager")
    layer = layer_class(config, 0)
    size = config.hidden_size
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(layer.self_attn, name, nn.Linear(2 * size, getattr(layer.self_attn, name).out_features, bias=False))
    layer.load_state_dict(
        {name.removeprefix("layers.0."): weight for name, weight in weights.items()
         if name.startswith("layers.0.") and "hidden_norm" not in name}
    )  # fmt: skip

    def norm(values: Tensor, weight: Tensor) -> Tensor:
        return values * (values.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight

    picked = torch.cat([states[number] for number in document["eagle_aux_hidden_state_layer_ids"]], dim=-1)
    hidden = picked @ weights["fc.weight"].T
    both = torch.cat(
        [norm(embeddings, weights["layers.0.input_layernorm.weight"]),
         norm(hidden, weights["layers.0.hidden_norm.weight"])], dim=-1
    )  # fmt: skip
    count = hidden.shape[1]
    positions = 1 + torch.arange(count)[None]  # as speculators counts; only distances matter
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    attended, _ = layer.self_attn(both, attention_mask=mask, position_embeddings=rotary_class(config)(both, positions))
    hidden = hidden + attended
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return norm(hidden, weights["norm.weight"]) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
@torch.no_grad()
def test_the_speculator_drafts_what_head_1_drafts(architecture: str, tmp_path: Path) -> None:
    settings = {"sliding_window": None} if architecture == "mistral" else {}
    model = tiny_model(architecture, layers=4, initializer_range=0.3, **settings)
    heads = changed_heads(model)
    export_eagle3(model, heads, tmp_path, "some/model")
    ids = torch.arange(3, 40)[None] * 7 % 250
    decoder = Decoder(model)
    _, call = decoder.run(heads.tap, input_ids=ids)
    states = list(model(input_ids=ids, output_hidden_states=True).hidden_states)
    for embeddings in (model.get_input_embeddings()(ids.roll(-1, 1)), torch.zeros(1, ids.shape[1], 32)):
        found = eagle3_logits(tmp_path, states, embeddings)
        torch.testing.assert_close(found, decoder.logits(heads.hidden_states(1, call)), atol=1e-4, rtol=1e-4)
    document = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert document["speculators_config"]["verifier"]["name_or_path"] == "some/model"
    assert document["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    layers = document["transformer_layer_config"]
    assert layers["rope_theta"] == model.config.rope_parameters["rope_theta"] and "rope_scaling" not in layers


@pytest.mark.parametrize(
    ("architecture", "settings", "depth", "message"),
    [
        ("gpt2", {}, 1, "EAGLE-3 has no GPT2Block: only heads of LlamaDecoderLayer"),
        ("mistral", {"sliding_window": 8}, 1, "only a window of it"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 1, "only a window of it"),
        ("llama", {"attention_bias": True}, 1, "has no self_attn.q_proj.bias"),
        ("llama", {}, 2, "EAGLE-3 has one layer, these heads have 2"),
    ],
)
def test_what_the_format_does_not_cover_is_said(
    architecture: str, settings: dict[str, Any], depth: int, message: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture, **settings)
    with pytest.raises(InputError, match=message):
        export_eagle3(model, MultiTokenHeads.from_model(model, 1, depth=depth), tmp_path / "out", "some/model")
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_command_writes_it_once(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    MultiTokenHeads.from_model(model, 2).save_pretrained(tmp_path / "heads")
    given = ["export", str(tmp_path / "model"), "--heads", str(tmp_path / "heads"), "--output", str(tmp_path / "out")]
    for status, message in ((0, "one token a draft"), (2, "out holds a run; give --overwrite")):
        with pytest.raises(SystemExit) as exit_:
            main(given)
        assert (exit_.value.code or 0) == status and message in capsys.readouterr().err
    document = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert document["speculators_config"]["verifier"] == {
        "name_or_path": str(tmp_path / "model"), "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip


def test_a_speculator_is_overwritten_but_no_model_and_no_heads(
    model: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, heads, output = (str(tmp_path / name) for name in ("model", "heads", "speculator"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changed_heads(model).save_pretrained(heads)
    arguments = ["export", folder, "--heads", heads, "--overwrite", "--output"]

    def status(name: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, name])
        return int(ended.value.code or 0)

    assert [status(output) for _ in range(2)] == [0, 0]
    for name in (folder, heads):
        before = (Path(name) / "config.json").read_bytes()
        assert status(name) == 2
        assert f"{name} holds other things" in capsys.readouterr().err
        assert (Path(name) / "config.json").read_bytes() == before
