"""Features of a chain's tokens from one pass: likelihood, entropy, attention, and where else each token stands."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftlm.heads.loss import rows_loss
from graftlm.models.decoder import Decoder
from graftlm.pruning.attention import pass_with_attention
from graftlm.pruning.config import Objective
from graftlm.pruning.encoding import Encoding

PER_LAYER = 6
SCALARS = 12
MOST_COPIES = 3


class ChainFeatures(NamedTuple):
    """`features`: [tokens, SCALARS + PER_LAYER * layers], float32, on the CPU. `estimates`: [tokens], float64, the
    objective in nats without each token if none but the token after it noticed. `value`: the objective, nats."""

    features: Tensor
    estimates: Tensor
    value: float


@torch.no_grad()
def chain_features(model: Any, encoding: Encoding, objective: Objective) -> ChainFeatures:
    """Compute every token's features in one pass; InputError where the model does not show its attention."""
    decoder = Decoder(model)
    ids = torch.tensor(encoding.ids)
    first, last = len(encoding.question), len(encoding.question) + len(encoding.chain)
    layers: list[Tensor] = []
    hidden = pass_with_attention(model, encoding.ids, lambda w: layers.append(_attention(w, first, last).cpu()))
    targets = ids.to(hidden.device)
    ones = hidden.new_ones(len(ids), dtype=torch.float32)
    own = rows_loss(decoder, hidden[first - 1 : -1], targets[first:], ones[first:], True)
    # What follows each token, predicted from before it.
    skipped = rows_loss(decoder, hidden[first - 1 : last - 1], targets[first + 1 : last + 1], ones[first:last])
    log_probs, entropy, following = -own.nll.cpu().double(), own.entropy.cpu().double(), -skipped.nll.cpu().double()
    count = last - first
    places = torch.arange(count, dtype=torch.float64)
    value = log_probs.sum() if objective == "joint" else log_probs[count:].sum()
    before, after = log_probs[:count], log_probs[1 : count + 1]
    if objective == "joint":
        estimates = value - before - after + following
    else:
        estimates = torch.where(places == count - 1, value - after + following, value)
    scalars = torch.stack(
        [before, after, following, entropy[:count], entropy[1 : count + 1], places / count, (count - places).log(),
         torch.full_like(places, count).log(), *_copies(ids, first, last)],
        dim=1,
    )  # fmt: skip
    return ChainFeatures(torch.cat([scalars.float(), *layers], dim=1), estimates, float(value))


def _attention(weights: Tensor, first: int, last: int) -> Tensor:
    """[chain, PER_LAYER] of a layer's weights [heads, queries, keys]: what each token gets from the chain, from the
    answer, from the token after it, from itself and from the head that looks at it most; and the entropy of where it
    looks, nats."""
    chain = slice(first, last)
    later = torch.tril(weights[:, chain, chain], diagonal=-1).sum(1)  # [heads, chain]
    answered = weights[:, last:, chain].sum(1)
    places = torch.arange(first, last, device=weights.device)
    following = weights[:, (places + 1).clamp(max=weights.shape[1] - 1), places].mean(0)
    itself = weights[:, places, places].mean(0)
    looks = -torch.xlogy(weights[:, chain], weights[:, chain]).sum(-1).mean(0)
    return torch.stack([later.mean(0), answered.mean(0), following, itself, (later + answered).amax(0), looks], dim=1)


def _copies(ids: Tensor, first: int, last: int) -> list[Tensor]:
    """Count each token, up to MOST_COPIES, in the question, earlier and later in the chain, and in the answer."""
    chain = ids[first:last]
    same = chain[:, None] == chain[None, :]
    counts = [
        (chain[:, None] == ids[None, :first]).sum(1), torch.tril(same, -1).sum(1), torch.triu(same, 1).sum(1),
        (chain[:, None] == ids[None, last:]).sum(1),
    ]  # fmt: skip
    return [each.clamp(max=MOST_COPIES).double() for each in counts]
