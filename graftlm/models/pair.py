"""A base model and one tuned from it, of which neither is ever copied.

An adapter on the base model is switched off and on; of two whole models, a layer is restored by letting the tuned
model's parameters share the base model's storage for a while.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

from graftlm.errors import InputError
from graftlm.models.adapters import lasting_alteration
from graftlm.models.decoder import acts_in_forward, decoder_layers
from graftlm.models.finite import not_finite


@dataclass(frozen=True)
class WeightPair:
    """One weight of both models, on loan until the next one is asked for; shapes and dtypes agree."""

    name: str
    base: Tensor
    tuned: Tensor


class ModelPair(ABC):
    """`group(name)` of a parameter: "embedding", "layer 7", "final norm", "unembedding" or "other"."""

    def __init__(self, model: PreTrainedModel) -> None:
        names = {id(module): name for name, module in model.named_modules()}
        layers = decoder_layers(model)
        self.layers = len(layers)
        self._layers_prefix = f"{names[id(layers)]}."
        self._backbone_prefix = self._layers_prefix.rsplit(".", 2)[0]
        self._embedding = names[id(model.get_input_embeddings())]
        unembedding: Any = model.get_output_embeddings()
        self._unembedding = names.get(id(unembedding))

    def group(self, name: str) -> str:
        """The group of the parameter or module called `name` in the base model."""
        if name.startswith(self._layers_prefix):
            return f"layer {name.removeprefix(self._layers_prefix).split('.')[0]}"
        if _within(name, self._embedding):
            return "embedding"
        if self._unembedding is not None and _within(name, self._unembedding):
            return "unembedding"
        rest = name.removeprefix(f"{self._backbone_prefix}.")
        return "final norm" if "norm" in rest.lower() or rest.startswith("ln") else "other"

    def module(self, name: str) -> str:
        """Name within its group: "self_attn.q_proj" for "model.layers.3.self_attn.q_proj.weight"."""
        inner = name.removeprefix(self._layers_prefix)
        if inner != name:
            inner = inner.split(".", 1)[1]
        return inner.removesuffix(".weight")

    @abstractmethod
    def base(self) -> AbstractContextManager[Any]:
        """The base model."""

    @abstractmethod
    def tuned(self, restored: Collection[str] = ()) -> AbstractContextManager[Any]:
        """The tuned model, with the base model's weights in the groups `restored`."""

    @abstractmethod
    def weights(self) -> Iterator[WeightPair]:
        """Each weight that may differ, one at a time, names as in the base model; none where all are the same."""


class WholePair(ModelPair):
    """Two whole models in memory. Raises InputError where their parameters differ in names or shapes."""

    def __init__(self, base: PreTrainedModel, tuned: PreTrainedModel) -> None:
        super().__init__(base)
        ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
        if ours.keys() < theirs.keys():  # embeddings that were tied until an adapter on one of them was merged
            shared = dict(base.named_parameters(remove_duplicate=False))
            ours = {name: shared[name] for name in theirs if name in shared}
        if type(base) is not type(tuned) or (odd := sorted(ours.keys() ^ theirs.keys())):
            missing = "" if type(base) is not type(tuned) else f" (first differing parameter: {odd[0]})"
            raise InputError(
                f"the models are of different architecture: {type(base).__name__} and {type(tuned).__name__}{missing}"
            )
        for name, parameter in ours.items():
            if parameter.shape != theirs[name].shape:
                shapes = f"{tuple(parameter.shape)} and {tuple(theirs[name].shape)}"
                raise InputError(f"the models are of different size: {name} is {shapes}")
        self._base, self._tuned = base, tuned
        self._parameters = [(name, parameter, theirs[name]) for name, parameter in ours.items()]

    def base(self) -> AbstractContextManager[Any]:
        return nullcontext(self._base)

    @contextmanager
    def tuned(self, restored: Collection[str] = ()) -> Iterator[PreTrainedModel]:
        replaced = [
            (theirs, theirs.data, ours) for name, ours, theirs in self._parameters if self.group(name) in restored
        ]
        try:
            for theirs, _, ours in replaced:
                theirs.data = ours.data
            yield self._tuned
        finally:
            for theirs, data, _ in replaced:
                theirs.data = data

    def weights(self) -> Iterator[WeightPair]:
        for name, ours, theirs in self._parameters:
            yield WeightPair(name, ours.detach(), theirs.detach())


class SteeredPair(WholePair):
    """The base model, and a model that steers it while decoding (ProxyTunedModel): no weight of it differs."""

    def __init__(self, base: PreTrainedModel, steered: PreTrainedModel) -> None:
        ModelPair.__init__(self, base)
        self._base, self._tuned, self._parameters = base, steered, []


class AdapterPair(ModelPair):
    """A PEFT model: tuned with its adapter, the base model without.

    Raises InputError for a tensor of the adapter that is not finite, and for an adapter that acts elsewhere than in the
    base model's weights (prompt tuning), or that leaves something of itself when it is switched off.
    """

    def __init__(self, model: PeftModel) -> None:
        config: Any = model.active_peft_config
        kind = config.peft_type.value
        if acts_in_forward(config):
            raise InputError(f"the adapter is {kind} and does not act by changing weights: it cannot be audited")
        if (altered := lasting_alteration(model)) is not None:
            raise InputError(f"the adapter has {altered}, which switching it off does not undo: give two models")
        self._model = model
        base: Any = model.get_base_model()
        super().__init__(base)
        check_finite(model.named_parameters())
        self._adapted: dict[str, Any] = {
            name: module
            for name, module in base.named_modules()
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        }
        first: Any = self.weights()
        try:
            if next(first, None) is None:  # adaption prompt has modules of its own kind
                raise InputError(f"the adapter is {kind}, whose weights are in no layer of the base model")
        except NotImplementedError as error:
            raise InputError(f"the adapter cannot be audited: {error}") from error
        first.close()

    def base(self) -> AbstractContextManager[Any]:
        return self.tuned({self.group(name) for name in self._adapted})

    @contextmanager
    def tuned(self, restored: Collection[str] = ()) -> Iterator[PeftModel]:
        switched = [module for name, module in self._adapted.items() if self.group(name) in restored]
        try:
            for module in switched:
                module.enable_adapters(False)
            yield self._model
        finally:
            for module in switched:
                module.enable_adapters(True)
            self._model.requires_grad_(False)  # PEFT makes an adapter trainable that it switches on

    @torch.no_grad()
    def weights(self) -> Iterator[WeightPair]:
        """Each adapted weight is merged by PEFT itself, so that every kind of adapter is seen as it acts; copies of the
        layer's weights put them back bit for bit."""
        for name, module in self._adapted.items():
            if isinstance(module, AuxiliaryTrainingWrapper):
                yield from _saved_module(name, module)
                continue
            if getattr(module, "tied_adapter", None) is not None:  # rows of tokens in a weight that two layers share
                continue
            layer, place = module.get_base_layer(), name.removesuffix(".token_adapter")
            before = {inner: weight.detach().clone() for inner, weight in layer.named_parameters(recurse=False)}
            module.merge()
            after = dict(module.get_base_layer().named_parameters(recurse=False))
            try:
                for inner, weight in after.items():
                    if inner == "weight" or not torch.equal(weight, before[inner]):  # of a bias or an expert
                        yield WeightPair(f"{place}.{inner}", before[inner], weight.detach())
            finally:
                module.unmerge()
                for inner, weight in layer.named_parameters(recurse=False):
                    weight.copy_(before[inner])


def _saved_module(name: str, module: Any) -> Iterator[WeightPair]:
    """The parameters of a module that was trained whole beside the adapter (modules_to_save)."""
    saved = getattr(module, "modules_to_save", None)
    if saved is None:
        return
    theirs = dict(saved[module.active_adapter].named_parameters())
    for inner, ours in module.original_module.named_parameters():
        yield WeightPair(f"{name}.{inner}", ours.detach(), theirs[inner].detach())


def check_finite(parameters: Any) -> None:
    """InputError that names the first tensor with a NaN or an infinity."""
    if (odd := not_finite(parameters)) is not None:
        raise InputError(f"the tuned model has a NaN or an infinity in {odd}: its training diverged")


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
