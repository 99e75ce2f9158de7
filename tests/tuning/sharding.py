"""Run by torchrun: FSDP2 over gloo processes gives the gradients of one process.

The groups are those that accelerate makes: each layer, then the final norm with embedding and unembedding, then the
rest.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder
from graftlm.tuning.model import TermsModel
from graftlm.tuning.terms.base import Step
from tests.tuning.plain import terms_model
from tests.tuning.training import lora, model_and_heads


def made(*, tied: bool, adapted: bool, train_heads: bool, sharded: bool) -> TermsModel:
    model, heads = model_and_heads(tie_word_embeddings=tied)
    heads.requires_grad_(train_heads)
    torch.manual_seed(2)
    whole = get_peft_model(model, lora()) if adapted else model
    for name, parameter in whole.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return terms_model(whole, heads, sharded=sharded)


def batch(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, 250, (2, 12), generator=generator)
    labels = ids.masked_fill(torch.arange(12) < 4 + number, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def shard(whole: TermsModel) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    decoder = Decoder(whole.model)
    assert isinstance(whole.heads, MultiTokenHeads)
    for layer in (*decoder.layers, *(layer for head in whole.heads.layers for layer in head)):  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    embedding = decoder.model.get_input_embeddings()
    tail = [decoder.final_norm, decoder.unembedding]
    if embedding.weight is decoder.unembedding.weight:
        tail.insert(1, embedding)
    else:
        fully_shard(embedding, mesh=mesh)
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    fully_shard(whole, mesh=mesh)


def compare(**kind: bool) -> None:
    count = dist.get_world_size()
    plain = made(**kind, sharded=False)
    for number in range(count):
        (plain(**batch(number), step=Step()).loss / count).backward()
    expected = {name: each.grad for name, each in plain.named_parameters() if each.grad is not None}
    sharded = made(**kind, sharded=True)
    shard(sharded)
    for _ in range(2):  # what the first pass left is no hindrance to the second
        sharded.zero_grad()
        sharded(**batch(dist.get_rank()), step=Step()).loss.backward()
    found = {name: each.grad.full_tensor() for name, each in sharded.named_parameters() if each.grad is not None}
    assert found.keys() == expected.keys() and len(found) > 10, kind
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{kind} {n}: {m}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for settings in sys.argv[1:]:
        compare(**json.loads(settings))
    dist.destroy_process_group()
