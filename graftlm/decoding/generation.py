"""Text from a prompt, handed over while it is being written."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftlm.data.encoding import encode_messages, encode_prompt
from graftlm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def stream_completion(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    write: Callable[[str], None],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    chat: bool | None = None,
) -> Written:
    """Continue `prompt`, or answer it, and give each piece of text to `write` as it comes.

    Args:
        model: or whatever has its `generate`, `device`, `config` and `generation_config`.
        temperature: 0 takes the likeliest token each time.
        chat: put the prompt into the tokenizer's chat template; None does so where it has one.

    Raises:
        InputError: an empty prompt, one too long for the model, or no chat template where one is asked for.
    """
    import torch
    from transformers import TextStreamer

    from graftlm.models.decoder import end_tokens

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text)

    ids = prompt_ids(tokenizer, prompt, chat)
    check_length(model, len(ids), max_new_tokens)
    inputs = torch.tensor([ids], device=model.device)
    config = copy.deepcopy(model.generation_config)
    config.update(max_new_tokens=max_new_tokens, do_sample=temperature > 0, pad_token_id=tokenizer.pad_token_id)
    config.update(max_length=None, temperature=temperature or None, eos_token_id=end_tokens(model, tokenizer) or None)
    if temperature == 0:
        config.update(top_k=None, top_p=None)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate: Any = model.generate
    begun = time.perf_counter()
    output = generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config, streamer=streamer,
        return_dict_in_generate=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    return Written(ids=output.sequences[0, len(ids) :].tolist(), seconds=seconds, output=output)


@dataclass(frozen=True, kw_only=True)
class Written:
    """New tokens and the seconds that they took, the prompt's included; `output`: what `generate` gave."""

    ids: list[int]
    seconds: float
    output: Any


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool | None) -> list[int]:
    """Token ids of the prompt, in the chat template where `chat` says so."""
    if not prompt.strip():
        raise InputError("the prompt is empty; give --prompt TEXT or --file FILE")
    if chat is None:
        chat = tokenizer.chat_template is not None
    if not chat:
        return encode_prompt(tokenizer, prompt)
    if tokenizer.chat_template is None:
        raise InputError("this model's tokenizer has no chat template; give --no-chat")
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}])


def check_length(model: PreTrainedModel | PeftModel, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise InputError where prompt and answer do not fit the model."""
    from graftlm.models.decoder import context_length

    limit = context_length(model)
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {max_new_tokens}, but at least 1 is needed")
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens, and with {max_new_tokens} new ones that is more than "
            f"the model's {limit}; shorten it or lower --max-new-tokens"
        )


def named_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `generate`, all by their names."""
    from transformers import GenerationMixin

    named = inspect.signature(GenerationMixin.generate).bind_partial(None, *args, **kwargs).arguments
    return {name: value for name, value in named.items() if name not in ("self", "kwargs")} | named.get("kwargs", {})


def setting(name: str, arguments: Mapping[str, Any], own_config: GenerationConfig) -> Any:
    """The value of a setting in a call of `generate`: the argument, else the generation_config's, else the model's."""
    if name in arguments:
        return arguments[name]
    configs = (arguments.get("generation_config"), own_config)
    return next((value for each in configs if (value := getattr(each, name, None)) is not None), None)
