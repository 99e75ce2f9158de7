"""The parts of a Hugging Face causal LM, and the facts that each family of models states in its own way.

A causal LM is embedding -> decoder layers -> final norm -> unembedding (-> scale -> soft cap). transformers has a
public accessor for the unembedding only. `Decoder` finds the other parts by structure, and `Decoder.verify` runs them
once to prove that they compose to the model.

A new family of models needs a change in this file alone. `context_length`, `end_tokens`, `logit_scale` and
`logit_softcap` read nothing but configs, so they also answer for models that no `Decoder` can be built of.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from graftlm.errors import InputError


@dataclass
class LayerCall:
    """The arguments of a decoder layer in one forward pass.

    `following`: those of the layers after it, without hidden states. Their masks and rotary embeddings differ where
    sliding and full attention alternate.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    following: tuple[LayerCall, ...] = ()

    @property
    def hidden_states(self) -> Tensor:
        """[batch, time, hidden]"""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def apply(self, layer: nn.Module, hidden_states: Tensor, cache: Cache | None = None) -> Tensor:
        """Output [batch, time, hidden] of `layer`, called with the same arguments but these hidden states, and with
        `cache` where there was one."""
        kwargs = {name: value for name, value in self.kwargs.items() if name not in ("hidden_states", *_CACHES)}
        args = [cache if isinstance(value, Cache) else value for value in self.args[1:]]
        if cache is not None:
            kwargs |= {name: cache for name, value in self.kwargs.items() if isinstance(value, Cache)}
        output = layer(hidden_states, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def through(self, layers: Iterable[nn.Module], hidden_states: Tensor, cache: Cache | None = None) -> Tensor:
        """Output [batch, time, hidden] of `layers`, called in the place of this layer and those after it."""
        for layer, call in zip(layers, (self, *self.following), strict=False):
            hidden_states = call.apply(layer, hidden_states, cache)
        return hidden_states

    def followed_by(self, others: Iterable[LayerCall]) -> LayerCall:
        """This call with `others` after it, whose hidden states it lets go."""
        following = tuple(
            LayerCall((None, *each.args[1:]) if each.args else (), each.kwargs | {"hidden_states": None})
            for each in others
        )
        return replace(self, following=following)


# A head keeps no cache while it is trained, and one of its own while it drafts.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_position", "use_cache")

# Names in the configs of transformers 5.23. GPT-2, DBRX, RWKV and others map their own name to the first one.
_CONTEXT_LENGTHS = ("max_position_embeddings", "max_seq_len")  # the second: MPT
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # Granite and MiniCPM3, Inkling
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


def text_config(model: Any) -> Any:
    """The config of the model that reads text, which a model of pictures and text nests in its own."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_length(model: Any) -> int | None:
    """The most tokens that `model` reads at once; None where nothing limits them (ALiBi, state-space models).

    A sliding window is no limit. The virtual tokens of prompt or prefix tuning take up positions, too.
    """
    length = _first(text_config(model), _CONTEXT_LENGTHS)
    if not isinstance(length, int):
        return None
    adapter: Any = getattr(model, "active_peft_config", None)
    return length - (adapter.num_virtual_tokens or 0) if getattr(adapter, "is_prompt_learning", False) else length


def end_tokens(model: Any, tokenizer: Any = None) -> list[int]:
    """The tokens that end a text, each once.

    First come those of the model's generation config, in its order (those of its config where that names none), then
    the tokenizer's. A chat model may name several; a model that was tuned with another chat template has the new one in
    its tokenizer only.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if named is None:
        named = getattr(text_config(model), "eos_token_id", None)
    own = getattr(tokenizer, "eos_token_id", None)
    tokens = [*(named if isinstance(named, (list, tuple)) else [named]), own]
    return list(dict.fromkeys(token for token in tokens if token is not None))


def logit_scale(config: Any) -> float:
    """The factor between the unembedding's products and the logits of a model with this text config."""
    if config.model_type == "mpt":  # whose logit_scale transformers does not read
        return 1.0
    if (factor := _first(config, _FACTORS)) is not None:
        return float(factor)
    scaling = _first(config, _DIVISORS)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def logit_softcap(config: Any) -> float | None:
    """c where the logits of a model with this text config are c · tanh(logits / c)."""
    cap = _first(config, _SOFT_CAPS)
    return None if cap is None else float(cap)


def _first(config: Any, names: Iterable[str]) -> Any:
    """The first of these settings that the config has; None without any."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be a PEFT model (whose adapters stay in place)."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM, or of the one inside a PEFT model. InputError where it has no list of
    them."""
    plain = plain_model(model)
    count = getattr(text_config(plain), "num_hidden_layers", None)
    for module in chain(plain.get_decoder().modules(), plain.modules()):  # a vision tower may have as many
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"{type(plain).__name__} is not supported: it has no list of {count} decoder layers")


def backbone_of(model: nn.Module) -> Any:
    """The part of a causal LM that returns the final hidden states: all but its unembedding."""
    plain = plain_model(model)
    inner: Any = plain.base_model
    if inner is plain:  # as Llama4ForCausalLM and Llama4ForConditionalGeneration call themselves
        layers = decoder_layers(plain)
        inner = next(child for child in plain.children() if any(module is layers for module in child.modules()))
    has_unembedding = isinstance(inner, PreTrainedModel) and inner.get_output_embeddings() is not None
    return backbone_of(inner) if has_unembedding else inner


def acts_in_forward(adapter: PeftConfig) -> bool:
    """Whether an adapter needs `PeftModel.forward`: virtual tokens, an activated LoRA, or what routes among several."""
    routed = adapter.peft_type in (PeftType.XLORA, PeftType.SHADOW, PeftType.POLY)
    return adapter.is_prompt_learning or routed or bool(getattr(adapter, "alora_invocation_tokens", None))


class Decoder:
    """The parts of a causal LM, by reference, and its facts.

    It takes 0.1 ms to build, and is to be built anew after an adapter was put on the model or merged into it.

    Raises InputError where the architecture has no decoder layers, final norm or unembedding that can be found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = plain_model(model)
        self.config = text_config(self.model)
        self.logit_scale, self.logit_softcap = logit_scale(self.config), logit_softcap(self.config)
        self.context_length = context_length(model)
        self.layers = decoder_layers(self.model)
        self.trunk = backbone_of(self.model)
        self.backbone = next(m for m in self.model.modules() if any(c is self.layers for c in m.children()))
        if isinstance(model, PeftModel) and acts_in_forward(model.active_peft_config):
            kind = model.active_peft_config.peft_type.value
            raise self._unsupported(f"has a {kind} adapter, which acts in the PEFT model's own forward pass only")
        unembedding = self.model.get_output_embeddings()
        if unembedding is None:
            raise self._unsupported("has no output embedding")
        if isinstance(unembedding, BaseTunerLayer):
            raise self._unsupported(
                "has an adapter on its unembedding; leave that out of target_modules (modules_to_save trains it whole)"
            )
        self.unembedding: Any = unembedding

    def _unsupported(self, why: str) -> InputError:
        return InputError(f"heads cannot be grown on {type(self.model).__name__}: it {why}")

    @cached_property
    def final_norm(self) -> nn.Module:
        """The normalisation before the unembedding. Raises InputError where there is none.

        `verify` notices what lies there besides, such as OPT's projection.
        """
        children = list(self.backbone.named_children())
        last = next(i for i, (_, child) in enumerate(children) if child is self.layers)
        # OPT defines it before its layers.
        for _, child in [*children[last:], *(each for each in children[:last] if "final" in each[0])]:
            name = type(child).__name__.lower()
            if "norm" in name or name.endswith("ln"):
                return child
        raise self._unsupported("has no normalisation after its last decoder layer")

    @cached_property
    def takes_positions(self) -> bool:
        """Whether a pass takes positions, or counts the columns of its rows."""
        return "position_ids" in inspect.signature(self.trunk.forward).parameters

    def logits(self, hidden_states: Tensor) -> Tensor:
        """The model's logits [..., vocabulary] of last-layer outputs [..., hidden], before the final norm."""
        return self.logits_of_normed(self.final_norm(hidden_states))

    def logits_of_normed(self, hidden_states: Tensor) -> Tensor:
        """The model's logits [..., vocabulary] of final hidden states [..., hidden]."""
        return self.scaled(self.unembedding(hidden_states))

    def scaled(self, products: Tensor) -> Tensor:
        """The logits [..., words] of products [..., words] of hidden states and rows of the unembedding."""
        logits = products if self.logit_scale == 1 else products * self.logit_scale
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @contextmanager
    def capture(self, layer: int) -> Iterator[list[LayerCall]]:
        """Collect the calls of `layers[layer]` and those after it (recomputation aside)."""
        calls: list[LayerCall] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(LayerCall(args, kwargs))

        handles = [each.register_forward_pre_hook(hook, with_kwargs=True) for each in self.layers[layer:]]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def run(self, layer: int, cache: Cache | None = None, **inputs: Any) -> tuple[Tensor, LayerCall]:
        """Run one pass through the backbone, without the unembedding; `cache` grows by the new tokens.

        Returns the final (normed) hidden states [batch, time, hidden] and the call of `layers[layer]`.
        """
        with self.capture(layer) as calls:
            output = self.trunk(**inputs, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state, calls[0].followed_by(calls[1:])

    def run_with_routers(self, model: nn.Module, layer: int, **inputs: Any) -> tuple[Tensor, LayerCall, Tensor]:
        """Results of `run` through `model` itself, a mixture of experts, and its routers' balancing loss; unembeds one
        row."""
        outputs: list[Any] = []
        handle = self.trunk.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            with self.capture(layer) as calls:
                whole = model(**inputs, use_cache=False, output_router_logits=True, logits_to_keep=1)
        finally:
            handle.remove()
        return outputs[0].last_hidden_state, calls[0].followed_by(calls[1:]), whole.aux_loss

    @torch.no_grad()
    def verify(self) -> None:
        """Prove on four tokens that the parts compose to the model. Raises InputError where they don't."""
        device = self.unembedding.weight.device
        tokens = torch.arange(4, device=device)[None] % int(self.config.vocab_size)
        was_training = self.model.training
        self.model.eval()
        try:
            with self.capture(-1) as calls:
                expected = self.model(input_ids=tokens, use_cache=False).logits
            composed = self.logits(calls[0].apply(self.layers[-1], calls[0].hidden_states))
        finally:
            self.model.train(was_training)
        expected = expected.to(composed.dtype)
        if composed.shape != expected.shape or not torch.allclose(composed, expected, rtol=1e-3, atol=1e-3):
            raise self._unsupported("does something between its last layer and its logits that graftlm does not know")
