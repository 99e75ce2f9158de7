"""Read an exported head back with the library whose format it is, and compare its drafts with the head's own.

    python bench/verify_export.py write --folder /tmp/export                     (graftlm's environment)
    TORCHDYNAMO_DISABLE=1 python bench/verify_export.py read --folder /tmp/export       (one with speculators 0.9)

speculators 0.9 asks for older versions of transformers than graftlm is tested with, hence two environments.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODEL = "smollm2-135m"
TEXT = "Photosynthesis is the process by which plants turn light, water and carbon dioxide into sugar and oxygen."


@torch.no_grad()
def write(folder: Path) -> None:
    """The model, a speculator of a changed head, and what that head drafts at each place of a text."""
    from graftlm import MultiTokenHeads, load_model
    from graftlm.heads.export import export_eagle3
    from graftlm.models.decoder import Decoder

    model, tokenizer = load_model(MODEL)
    heads = MultiTokenHeads.from_model(model, 2)
    torch.manual_seed(0)
    for parameter in heads.parameters():  # a fresh head is a copy of the model's own layer
        if parameter.ndim > 1:
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")
    export_eagle3(model, heads, folder / "speculator", str(folder / "model"))
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    decoder = Decoder(model)
    _, call = decoder.run(heads.tap, input_ids=ids)
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    layers = json.loads((folder / "speculator" / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"]
    drafts = decoder.logits(heads.hidden_states(1, call)).argmax(-1)
    tensors = {"ids": ids, "states": torch.cat([states[number] for number in layers], dim=-1), "drafts": drafts}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


@torch.no_grad()
def read(folder: Path) -> None:
    from importlib.metadata import version

    from speculators import SpeculatorModelConfig
    from speculators.models.eagle3.core import Eagle3DraftModel

    config = SpeculatorModelConfig.from_pretrained(str(folder / "speculator"))
    config.transformer_layer_config._attn_implementation = "eager"
    speculator = Eagle3DraftModel.from_pretrained(str(folder / "speculator"), config=config).eval().float()
    expected = load_file(folder / "expected.safetensors")
    following = expected["ids"].roll(-1, 1)
    drafts = speculator(
        hidden_states=expected["states"], input_ids=following, document_ids=torch.zeros_like(following), ttt_steps=1
    )[0]
    same = int((drafts == expected["drafts"]).sum())
    print(f"speculators {version('speculators')}: {same} of {drafts.numel()} drafts are the head's own")
    raise SystemExit(same != drafts.numel())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("write", "read"))
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    {"write": write, "read": read}[given.step](given.folder)
