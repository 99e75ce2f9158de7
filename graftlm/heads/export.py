"""`graftlm export`: heads in the format of a serving engine.

speculators' EAGLE-3 (vLLM, SGLang read it) is the published format that comes nearest: one decoder layer beside the
model, which reads a hidden state h_t of the model and the embedding e of the next token, and drafts the token after.

    EAGLE-3, first step   layer([norm(e_{t+1}); norm'(fc [h_a; h_b; h_c]_t)])        head 1   layer_1(norm'(h_t))

Head 1 is that layer exactly, where fc picks the tapped state, the norm' is the head's own, and the projections have
zeros for the embedding's half. The other heads have no place in it: EAGLE-3 drafts further tokens by feeding the layer
its own output, which head 1 has not learnt to read. So what is exported drafts one token. Medusa's format (a linear
block on the last hidden state, no attention) and the layouts of models that ship such heads (DeepSeek, Qwen3-Next: they
mix in the next token's embedding) cover none of the heads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from graftlm.errors import InputError
from graftlm.heads.config import ExportConfig
from graftlm.heads.heads import CONFIG_FILE, WEIGHTS_FILE, MultiTokenHeads
from graftlm.models.adapters import merged
from graftlm.models.decoder import Decoder
from graftlm.models.load import load_model
from graftlm.runs.files import written_together
from graftlm.runs.run import Run

LAYERS = {"LlamaDecoderLayer": "llama", "MistralDecoderLayer": "llama", "Qwen3DecoderLayer": "qwen3"}
"""Class of the head's layer -> model type of speculators' layer with the same parameters."""
COPIED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps",
    "vocab_size", "max_position_embeddings", "rope_parameters",
)  # fmt: skip
VERSION = "0.9.0"
"""Version of speculators, whose format this is."""


def run_export(config: ExportConfig, run: Run) -> str:
    """Write the first head of `config.heads` into the run's folder; returns the name of the model it drafts for."""
    model, _ = load_model(config.model, trust_remote_code=config.trust_remote_code)
    if hasattr(model, "merge_and_unload") and config.verifier is None:
        raise InputError(
            f"{config.model} is an adapter, which engines do not draft for: merge it, and give the result as --verifier"
        )
    model, verifier = merged(model), config.verifier or config.model
    export_eagle3(model, MultiTokenHeads.from_pretrained(config.heads, model), run.folder, verifier)
    return verifier


def export_eagle3(model: Any, heads: MultiTokenHeads, folder: Path, verifier: str) -> None:
    """Write head 1 as an EAGLE-3 speculator of one token into `folder`: config.json and model.safetensors.

    `verifier`: where an engine finds the model itself. InputError where the format does not cover the head.
    """
    decoder = Decoder(model)
    config = decoder.config
    kind = LAYERS.get(heads.config.layer_class)
    if kind is None:
        names = ", ".join(LAYERS)
        raise InputError(f"EAGLE-3 has no {heads.config.layer_class}: only heads of {names} can be exported")
    if heads.config.depth != 1:
        raise InputError(f"EAGLE-3 has one layer, these heads have {heads.config.depth}")
    if getattr(config, "sliding_window", None):
        raise InputError("EAGLE-3's layer sees all of the text, this model's only a window of it")
    if decoder.logit_scale != 1 or decoder.logit_softcap is not None:
        raise InputError("EAGLE-3 knows no scale or cap of the logits, which this model has")
    count = len(decoder.layers)
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") != "default"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = {
        **{name: getattr(config, name) for name in COPIED if getattr(config, name, None) is not None},
        "model_type": kind, "num_hidden_layers": 1, "head_dim": head_dim, "attention_bias": False,
        "mlp_bias": False, "sliding_window": None, "layer_types": ["full_attention"],
        **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}),  # where transformers 4 reads them
        **({"rope_scaling": rope} if scaled else {}),
    }  # fmt: skip
    document = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "transformer_layer_config": layers,
        "draft_vocab_size": config.vocab_size,
        "norm_before_residual": False,
        "target_hidden_size": None,
        # Inputs of these layers; a layer's number is as in vLLM. fc takes the last one alone.
        "eagle_aux_hidden_state_layer_ids": [max(count - 3, 0), max(count - 2, 0), count - 1],
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 1}],
            "verifier": {"name_or_path": verifier, "architectures": [type(decoder.model).__name__]},
        },
        "dtype": str(decoder.unembedding.weight.dtype).removeprefix("torch."),
    }
    with written_together(folder, (WEIGHTS_FILE, CONFIG_FILE)) as scratch:
        save_file(eagle3_weights(decoder, heads), scratch / WEIGHTS_FILE, metadata={"format": "pt"})
        (scratch / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def eagle3_weights(decoder: Decoder, heads: MultiTokenHeads) -> dict[str, Tensor]:
    """Under speculators' names. InputError for a projection with a bias, which the format does not have."""
    layer = heads.layers[0][0]  # type: ignore[index]
    own = layer.state_dict()
    if biases := [name for name in own if name.endswith(".bias")]:
        raise InputError(f"EAGLE-3's layer has no {biases[0]}: this head cannot be exported")
    size = own["input_layernorm.weight"].shape[0]
    weights: dict[str, Tensor] = {}
    for name, weight in own.items():
        if name == "input_layernorm.weight":  # norms the hidden state; in EAGLE-3 that is hidden_norm's work
            weights["layers.0.hidden_norm.weight"] = weight
            weights["layers.0.input_layernorm.weight"] = torch.ones_like(weight)
        elif name.split(".")[1] in ("q_proj", "k_proj", "v_proj"):
            weights[f"layers.0.{name}"] = torch.cat([torch.zeros_like(weight), weight], dim=1)
        else:
            weights[f"layers.0.{name}"] = weight
    nothing = torch.zeros(size, size, dtype=own["input_layernorm.weight"].dtype)
    weights["fc.weight"] = torch.cat([nothing, nothing, torch.eye(size, dtype=nothing.dtype)], dim=1)
    weights["norm.weight"] = decoder.final_norm.weight  # type: ignore[assignment]
    weights["lm_head.weight"] = decoder.unembedding.weight
    return {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
