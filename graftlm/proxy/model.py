"""A large model steered by the difference of two small ones: proxy-tuning (arXiv 2401.08565, eq. 1 and section 6.2):

    logits(x_t | x_<t) = s_M + alpha (s_M+ - s_M-)

of the raw logits of the base model M, a small tuned expert M+ and the same small model untuned, M-. No weight of M
changes. Processors, temperature and top-p act on the sum, as in the paper.

Where this differs from the authors' code:

1. The composition is a model: it generates, batches, searches beams, streams and is evaluated as any other.
2. Where expert and anti-expert are one small model with and without a LoRA adapter, both run in one batched forward
   pass and share its weights; the authors run three models one after another.
3. alpha may be a function of the three models' logits; alpha = 0 runs no expert.
4. The vocabularies are compared token by token; an expert's further entries are cropped, as there, and entries of the
   base model's that are no token get no chance.
5. The expert's own prompt is its tokenizer's chat template on the user's text, not a [INST] written by hand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from graftlm.decoding.generation import named_arguments, setting
from graftlm.errors import InputError
from graftlm.models.caches import new_cache
from graftlm.models.decoder import context_length, end_tokens, text_config
from graftlm.proxy.alpha import Alpha, check_alpha
from graftlm.proxy.cache import ProxyCache, columns
from graftlm.proxy.experts import Inputs, run, with_own_prompt
from graftlm.proxy.opening import Parts, open_parts

LEAST = -1e30
"""A logit that gives no chance."""
COPIED = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
          "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
OUTPUTS = ("output_attentions", "output_hidden_states")
OF_LOSS = ("num_items_in_batch", "shift_labels")
OF_GENERATE = ("tokenizer", "assistant_tokenizer")
"""Arguments that `generate` hands on to every forward, though no model reads them."""


class ProxyTunedConfig(PreTrainedConfig):
    """Names and revisions of the models, and alpha.

    The settings that generation reads are the base model's, but the length of a text is the least of all models'.
    """

    model_type = "proxy-tuned"

    def __init__(
        self,
        base: str | None = None,
        expert: str | None = None,
        antiexpert: str | None = None,
        alpha: float | None = 1.0,
        base_revision: str | None = None,
        expert_revision: str | None = None,
        antiexpert_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.base, self.expert, self.antiexpert, self.alpha = base, expert, antiexpert, alpha
        self.base_revision, self.expert_revision = base_revision, expert_revision
        self.antiexpert_revision = antiexpert_revision


class ProxyTunedModel(PreTrainedModel, GenerationMixin):
    """`base` steered by `expert` - `antiexpert`.

    Args:
        base, expert, antiexpert: models, or names as `load_model` takes them. An expert that is an adapter on the
            anti-expert, or a PeftModel given without an anti-expert, shares its weights. Models stay on their devices
            and in their dtypes; the logits are added in float32 (or better) on the base model's device.
        alpha: a finite number, or a function of the three logits (graftlm.proxy.disagreement_above is one). With 0 the
            experts are neither loaded nor run.

        tokenizer: the base model's, where that is given loaded; without it only the vocabularies' sizes are compared.
        revisions: of base, expert and anti-expert on the hub.

    `tokenizer` and `expert_tokenizer` are there where the models were given by name.

    Raises InputError for vocabularies that differ (the first differing token is shown), an alpha that is not finite,
    and whatever `load_model` refuses.
    """

    config_class = ProxyTunedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = True

    def __init__(
        self,
        base: str | os.PathLike[str] | PreTrainedModel,
        expert: str | os.PathLike[str] | PreTrainedModel | None = None,
        antiexpert: str | os.PathLike[str] | PreTrainedModel | None = None,
        alpha: Alpha = 1.0,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revisions: Sequence[str | None] = (None, None, None),
    ) -> None:
        alpha = check_alpha(alpha)
        parts = open_parts(base, expert, antiexpert, tokenizer, wanted=alpha != 0, revisions=revisions)
        super().__init__(_config(parts, alpha))
        self.base = parts.base
        self.experts = parts.experts
        self.alpha = alpha
        self.tokenizer, self.expert_tokenizer = parts.tokenizer, parts.expert_tokenizer
        self.generation_config = GenerationConfig(**parts.base.generation_config.to_diff_dict())
        if self.experts is not None:  # a chat expert ends its turn with a token of its own
            own, further = end_tokens(self.base), end_tokens(self.experts.expert_model, self.expert_tokenizer)
            if extra := [token for token in further if token not in own]:
                self.generation_config.eos_token_id = [*own, *extra]
        self.loss_type = "ForCausalLM"
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The base model's."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def get_input_embeddings(self) -> Any:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.base.get_output_embeddings()

    def expert_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The arguments of `generate` and `forward` that give the expert its own chat template around each prompt.

        Returns expert_input_ids and expert_attention_mask, [batch, time] int64, padded on the left. InputError where
        the expert's tokenizer is not known or has no chat template.
        """
        tokenizer = self.expert_tokenizer
        if tokenizer is None or tokenizer.chat_template is None:
            raise InputError("the expert's tokenizer has no chat template, so it has no prompt of its own")
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )  # fmt: skip
        return {
            "expert_input_ids": encoded["input_ids"].to(self.device),
            "expert_attention_mask": encoded["attention_mask"].to(self.device),
        }

    def generate(self, *args: Any, speculative: bool | None = None, **kwargs: Any) -> Any:
        """Generate as any model does. `speculative` is ignored; it goes in the next release.

        InputError for caches that hold the states of one model only.
        """
        if speculative is not None:
            message = "speculative is ignored: drafts by the expert made proxy-tuned decoding slower (docs/proxy.md)"
            warnings.warn(f"{message}; leave it out", FutureWarning, stacklevel=2)
        arguments = named_arguments(args, kwargs)
        return super().generate(**arguments | self._cache_arguments(arguments))

    def _cache_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A cache of all models from the start: what `generate` makes of it before the first pass is made of all."""
        own_config = self.generation_config
        kind, given = setting("cache_implementation", arguments, own_config), arguments.get("past_key_values")
        if kind not in (None, "dynamic", "offloaded"):
            raise InputError(f"cache_implementation={kind!r} is for one model, and these are several: leave it out")
        if arguments.get("expert_input_ids") is not None and setting("prefill_chunk_size", arguments, own_config):
            raise InputError("a prompt of the expert's own is read in one pass: leave out prefill_chunk_size")
        if setting("use_cache", arguments, own_config) is False or (given is not None and kind is not None):
            return {}
        if kind == "offloaded":
            given = new_cache(self.base, offloading=True)
        cache = ProxyCache.of(given, self.base, self.experts)
        if setting("is_assistant", arguments, own_config):
            cache.activate_past_recording()
        return {"past_key_values": cache} | ({} if kind is None else {"cache_implementation": None})

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        expert_input_ids: Tensor | None = None,
        expert_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Combined logits [batch, kept, vocabulary], float32 or better; hidden states and attentions are the base
        model's.

        All arguments as of any causal language model, but for `inputs_embeds`, and past_key_values is a DynamicCache.
        Besides, `expert_input_ids` [batch, time] int64, with its mask: the expert's own prompt, padded on the left,
        which the expert reads in the first call with a cache instead of all of `input_ids`.

        InputError for what cannot be honoured.
        """
        options = _options(self.config, kwargs)
        if input_ids is None or inputs_embeds is not None:
            raise InputError("the models of a proxy-tuned one read tokens: give input_ids, and no inputs_embeds")
        use_cache = getattr(self.config, "use_cache", True) if use_cache is None else use_cache
        cache = None
        if use_cache or past_key_values is not None:
            cache = ProxyCache.of(past_key_values, self.base, self.experts)
        inputs = Inputs(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        own = (inputs, inputs)
        if expert_input_ids is not None:
            logits_to_keep = _last_only(logits_to_keep, labels, cache)
        if cache is not None:
            rows, time = input_ids.shape
            cache.begin(rows, time, None if expert_input_ids is None else expert_input_ids.shape[1])
            if expert_input_ids is not None:
                own = with_own_prompt(inputs, cache, expert_input_ids, expert_attention_mask)
        base = run(self.base, inputs, cache, logits_to_keep, **options)
        logits = self._steered(base.logits, own, cache, logits_to_keep)
        if cache is not None:
            cache.end()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache else None,
            hidden_states=base.hidden_states,
            attentions=getattr(base, "attentions", None),  # Mamba has none
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _steered(
        self, base: Tensor, inputs: tuple[Inputs, Inputs], cache: ProxyCache | None, logits_to_keep: int | Tensor
    ) -> Tensor:
        """The base model's logits [batch, kept, vocabulary] and what the experts add to them."""
        logits = base if base.dtype == torch.float64 else base.float()
        if self.experts is None:
            return logits
        given = (*inputs, cache.others if cache else None, logits_to_keep)
        if callable(self.alpha):
            parts = (logits, *self.experts.logits(*given))
            width = min(part.shape[-1] for part in parts)
            own, plus, minus = (part[..., :width].to(logits.device, logits.dtype) for part in parts)
            return _added(logits, plus - minus, self.alpha(own, plus, minus))
        return _added(logits, self.experts.offset(*given), self.alpha)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Names, revisions and alpha, no weights: config.json and generation_config.json.

        InputError where a model was not loaded by name, or alpha is a function.
        """
        if callable(self.alpha):
            raise InputError("alpha is a function, which cannot be saved: give a number, or save the models themselves")
        experts, config = self.experts, self.config
        unnamed = experts is not None and (not config.expert or (not experts.shared and not config.antiexpert))
        if not config.base or unnamed:
            raise InputError("a model without a name cannot be saved by name: load base and experts by name")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> ProxyTunedModel:
        """The composition that `save_pretrained` wrote; each model is loaded by its name. `kwargs`: another `alpha`.

        `AutoModelForCausalLM.from_pretrained` does the same. InputError for a folder without one, and for settings of
        loading, which `load_model` chooses for each of the models.
        """
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"{folder} holds no proxy-tuned model: config.json is missing")
        config = kwargs.pop("config", None) or ProxyTunedConfig.from_pretrained(folder)
        if config.base is None:
            raise InputError(f"{folder} holds no proxy-tuned model: its config.json names no base model")
        revisions = (config.base_revision, config.expert_revision, config.antiexpert_revision)
        alpha = kwargs.pop("alpha", config.alpha)
        for name, value in kwargs.items():  # the Auto class gives some of its own
            if name != "adapter_kwargs" and value not in (None, False, "auto"):
                raise InputError(
                    f"loading a proxy-tuned model takes no {name}: load base and experts with it, and give "
                    "ProxyTunedModel the models"
                )
        return cls(config.base, config.expert, config.antiexpert, alpha, revisions=revisions)


AutoConfig.register(ProxyTunedConfig.model_type, ProxyTunedConfig, exist_ok=True)
AutoModelForCausalLM.register(ProxyTunedConfig, ProxyTunedModel, exist_ok=True)


def _options(config: Any, given: Mapping[str, Any]) -> dict[str, bool]:
    """The outputs asked of the base model besides logits. InputError for arguments that nothing here makes use of."""
    for name, value in given.items():
        if name not in (*OUTPUTS, *OF_LOSS, *OF_GENERATE) and value is not None and value is not False:
            raise InputError(f"a proxy-tuned model does not take {name}: leave it out")
    asked = {name: getattr(config, name) if given.get(name) is None else given[name] for name in OUTPUTS}
    return {name: True for name, value in asked.items() if value}


def _added(logits: Tensor, offset: Tensor, strength: Tensor | float) -> Tensor:
    """logits + strength · offset [..., vocabulary], on the device of `logits`; further entries of `offset` are cropped,
    and those that only `logits` has, which are no tokens, get no chance."""
    width, missing = offset.shape[-1], max(0, logits.shape[-1] - offset.shape[-1])
    own, offset = logits[..., :width], offset[..., : logits.shape[-1]].to(logits.device, logits.dtype)
    if isinstance(strength, Tensor):
        combined = torch.addcmul(own, offset, strength)
    else:
        combined = torch.add(own, offset, alpha=strength)
    return nn.functional.pad(combined, (0, missing), value=LEAST) if missing else combined


def _last_only(logits_to_keep: int | Tensor, labels: Tensor | None, cache: ProxyCache | None) -> int | Tensor:
    """1, the only position where the models' texts meet after an expert's own prompt; InputError for others."""
    if cache is None:
        raise InputError("a prompt of the expert's own needs a cache: leave out use_cache=False")
    if labels is not None:
        raise InputError("labels have no place beside a prompt of the expert's own: leave out expert_input_ids")
    first = not columns(cache)
    if first and (not isinstance(logits_to_keep, int) or logits_to_keep > 1):
        raise InputError("after the expert's own prompt only the last position has logits: give logits_to_keep=1")
    return 1 if isinstance(logits_to_keep, int) and logits_to_keep == 0 else logits_to_keep


def _config(parts: Parts, alpha: Alpha) -> ProxyTunedConfig:
    base = text_config(parts.base)
    shared = {name: getattr(base, name) for name in COPIED if getattr(base, name, None) is not None}
    experts = [] if parts.experts is None else parts.experts.models()
    lengths = [context_length(model) for model in (parts.base, *experts)]
    if known := [length for length in lengths if length is not None]:
        shared["max_position_embeddings"] = min(known)  # all of them read the text
    return ProxyTunedConfig(**parts.names, alpha=None if callable(alpha) else alpha, **shared)
