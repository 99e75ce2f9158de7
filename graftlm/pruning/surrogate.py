"""A small network in place of greedy pruning: one pass of the model over a chain gives the order of its tokens.

    f(R \\ u) ≈ g(R, u) + s(φ_u)        rank(u) / n ≈ r(φ_u)

φ_u are the features of token u (graftlm/pruning/features.py), g the objective if no token but the one after u noticed
that u is gone, which the same pass tells; s and r are two outputs of a network with two hidden layers, fitted to chains
that mode exact has ranked. The order is that of r.

Source: section 5 of arXiv 2601.03066, where a two-layer network on attention features predicts the likelihood after
deletion with a correlation of 0.88. Where this differs:

1. Besides attention the network sees log-probabilities, entropies, positions, and where else the token stands.
2. It predicts what g leaves out, not the likelihood itself, of which the length of a chain decides most.
3. It predicts the rank as well: what a deletion costs in the whole chain is not what it costs when its neighbours are
   gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graftlm.errors import InputError
from graftlm.pruning.config import Objective
from graftlm.pruning.encoding import Encoding
from graftlm.pruning.features import ChainFeatures, chain_features
from graftlm.runs.files import written_together

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
HIDDEN = 64
DROPOUT = 0.1
EPOCHS, PATIENCE = 400, 40
BATCH = 256
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
VALIDATION = 5  # every fifth chain tells when to stop


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig:
    """`config.json` of a surrogate's folder. `measured`: on chains that it was not fitted to."""

    pruner: str
    objective: Objective
    features: int
    chains: int
    measured: dict[str, Any] = field(default_factory=dict)


class RankedChain(NamedTuple):
    """A chain as mode exact leaves it: `single_deletions` [tokens] in nats, `ranks` [tokens] from 1."""

    known: ChainFeatures
    single_deletions: Tensor
    ranks: Tensor


class Network(nn.Module):
    """[tokens, features] -> [tokens, 2]: what g leaves out, in nats, and the rank in (0, 1)."""

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
            nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 2),
        )  # fmt: skip
        for name, length in (("input", features), ("output", 2)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_scale", torch.ones(length))

    def normed(self, features: Tensor) -> Tensor:
        """The outputs in units of their spread."""
        return self.layers((features - self.input_mean) / self.input_scale)

    def forward(self, features: Tensor) -> Tensor:
        return self.normed(features) * self.output_scale + self.output_mean


class Surrogate:
    """A fitted network and what it was fitted to."""

    def __init__(self, network: Network, config: SurrogateConfig) -> None:
        self.network, self.config = network.eval(), config

    @torch.no_grad()
    def predict(self, known: ChainFeatures) -> tuple[Tensor, Tensor]:
        """The objective [tokens] in nats without each token, and each token's rank [tokens] in (0, 1)."""
        if known.features.shape[1] != self.config.features:
            raise InputError(
                f"the surrogate takes {self.config.features} features, this model gives {known.features.shape[1]}: it "
                f"was fitted to {self.config.pruner}; run graftlm prune fit on this model"
            )
        residual, rank = self.network(known.features).double().unbind(1)
        return known.estimates + residual, rank

    def scores(self, model: Any, encoding: Encoding, objective: Objective) -> list[float]:
        """Predict the rank of each chain token; InputError for another objective, or a model that gives other features,
        than it was fitted to."""
        if objective != self.config.objective:
            raise InputError(f"the surrogate was fitted to the objective {self.config.objective}, not {objective}")
        return self.predict(chain_features(model, encoding, objective))[1].tolist()

    def save(self, folder: Path) -> None:
        """`model.safetensors` and `config.json`, each replaced as a whole."""
        with written_together(folder, (WEIGHTS_FILE, CONFIG_FILE)) as scratch:
            save_file(self.network.state_dict(), scratch / WEIGHTS_FILE, metadata={"format": "pt"})
            (scratch / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n", "utf-8")


def load_surrogate(folder: str | os.PathLike[str]) -> Surrogate:
    """Load what `graftlm prune fit` has written; InputError for a missing, truncated or foreign file."""
    path = Path(folder)
    try:
        config = SurrogateConfig(**json.loads((path / CONFIG_FILE).read_text("utf-8")))
        network = Network(config.features)
        network.load_state_dict(load_file(path / WEIGHTS_FILE))
    except (OSError, ValueError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} holds no surrogate ({reason}); make one with graftlm prune fit") from error
    return Surrogate(network, config)


def fit_surrogate(chains: Sequence[RankedChain], pruner: str, objective: Objective, seed: int = 0) -> Surrogate:
    """Fit to chains; every fifth of them tells when to stop. The same seed gives the same network on a CPU.

    InputError for fewer than two chains.
    """
    if len(chains) < 2:
        raise InputError(f"{len(chains)} chain is too few to fit a surrogate to; give some tens at least")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checked = chains[::VALIDATION] if len(chains) >= VALIDATION else chains[:1]
        fitted = [chain for chain in chains if not any(chain is other for other in checked)]
        network = Network(chains[0].known.features.shape[1])
        inputs, outputs = _tensors(fitted)
        network.input_mean, network.input_scale = _moments(inputs)
        network.output_mean, network.output_scale = _moments(outputs)
        _descend(network, inputs, outputs, *_tensors(checked))
    config = SurrogateConfig(pruner=pruner, objective=objective, features=inputs.shape[1], chains=len(chains))
    return Surrogate(network, config)


def _descend(network: Network, inputs: Tensor, outputs: Tensor, check_inputs: Tensor, check_outputs: Tensor) -> None:
    """Until the error on the chains that are not fitted to has not fallen for PATIENCE epochs; the best counts."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def error(features: Tensor, wanted: Tensor) -> Tensor:
        normed = (wanted - network.output_mean) / network.output_scale
        return nn.functional.smooth_l1_loss(network.normed(features), normed)

    best, state, since = float("inf"), network.state_dict(), 0
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            error(inputs[rows], outputs[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            now = float(error(check_inputs, check_outputs))
        since += 1
        if now < best:
            best, since = now, 0
            state = {name: value.clone() for name, value in network.state_dict().items()}
        if since >= PATIENCE:
            break
    network.load_state_dict(state)


def _tensors(chains: Sequence[RankedChain]) -> tuple[Tensor, Tensor]:
    inputs = torch.cat([chain.known.features for chain in chains])
    residuals = torch.cat([chain.single_deletions - chain.known.estimates for chain in chains])
    ranks = torch.cat([(chain.ranks.double() - 0.5) / len(chain.ranks) for chain in chains])
    return inputs, torch.stack([residuals, ranks], dim=1).float()


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column; one that never changes has spread 1."""
    spread = values.std(0)
    return values.mean(0), torch.where(spread > 1e-6, spread, torch.ones_like(spread))
