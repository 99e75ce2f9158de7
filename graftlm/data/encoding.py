"""Turns text into the token ids that a model is to read: prompts, alone or with their completions.

Two things that tokenizers add are left out: the end token after each text (`add_eos_token`, or a post-processor of that
effect), which would end a prompt before the model answers; and a second beginning where the text spells its own.
"""

from __future__ import annotations

import copy
import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from graftlm.errors import InputError, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_ERRORS = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError)
"""Exceptions of a chat template that refuses some messages."""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text`, after whatever special tokens the tokenizer puts first. InputError: half a character."""
    return list(_encode(tokenizer, text)["input_ids"])


def encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, **options: Any
) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode_text`, and the characters of each token; the tokenizer has to be a fast one."""
    encoded = _encode(tokenizer, text, return_offsets_mapping=True, **options)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """`encode_text`; InputError where there is not one token."""
    ids = encode_text(tokenizer, prompt)
    if not ids:
        raise InputError(f"the prompt {prompt!r} has no tokens: give at least one word")
    return ids


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt and completion with the boundary of TRL's training: the joint text is tokenised, and the
    completion is what follows the prompt's own tokens. Where tokens merge across the boundary the two are tokenised
    apart, so that each completion is scored after exactly the prompt that generation sees."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    joint = encode_text(tokenizer, prompt + completion)
    if joint[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, joint[len(prompt_ids) :]
    return prompt_ids, list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of `render_messages`."""
    return list(tokenizer(render_messages(tokenizer, messages), add_special_tokens=False)["input_ids"])


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    """A chat in the tokenizer's template, up to where the answer begins.

    InputError where there is no template, or one that refuses a message or leaves it out.
    """
    name = tokenizer.name_or_path
    if tokenizer.chat_template is None:
        raise InputError(
            f"the rows are conversations, but tokenizer {name!r} has no chat template; use an instruction-tuned model, "
            "or rows with prompt and completion as text"
        )

    def render(given: Sequence[Mapping[str, Any]]) -> str:
        turns = [dict(message) for message in given]
        try:
            return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the chat template of {name!r} refuses the messages: {reason}") from error

    rendered = render(messages)
    others = [message for message in messages if message["role"] not in ("user", "assistant")]  # all know these two
    if others and (lost := left_out(messages, render)):
        raise InputError(
            f"the chat template of {name!r} leaves out {lost}, so the model would not read it: use a role that the "
            f"template knows (here is {', '.join(sorted({message['role'] for message in others}))}), or remove it"
        )
    return rendered


def left_out(messages: Sequence[Mapping[str, Any]], render: Callable[[list[dict[str, Any]]], str]) -> str | None:
    """The first content or name that a chat template leaves out ("messages.2.content"), found by numbers in the place
    of the texts; `render` gives the text of messages."""
    fields = [(number, key) for number, message in enumerate(messages) for key in message if key != "role"]
    run = f"{secrets.randbits(96):030d}"
    marked = [dict(message) for message in messages]
    for place, (number, key) in enumerate(fields):
        marked[number][key] = f"{run}{place:09d}"
    rendered = set(map(int, re.findall(rf"{run}(\d{{9}})", render(marked))))
    lost = [f"messages.{number}.{key}" for place, (number, key) in enumerate(fields) if place not in rendered]
    return lost[0] if lost else None


def without_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or where it ends each text a copy that does not, for libraries that encode prompts themselves.

    InputError where its end token cannot be switched off.
    """
    if not ends_texts(tokenizer):
        return tokenizer
    opened: Any = copy.deepcopy(tokenizer)
    sample = _sample(tokenizer)
    ids = encode_text(tokenizer, sample)
    opened.add_eos_token = False
    # The line above builds the special tokens anew, from these two settings alone.
    opened.add_bos_token = ids[0] == tokenizer.bos_token_id and _added(tokenizer, sample)[0] == 1
    if list(opened(sample)["input_ids"]) != ids:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} ends each text, prompts too, so that the model would never answer: "
            "take the end token out of the post_processor in its tokenizer.json"
        )
    return opened


def check_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError where the tokenizer ends each text: a library that encodes with it ends prompts, and answers twice."""
    if ends_texts(tokenizer):
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} ends each text, prompts too: give the trainer "
            "processing_class=graftlm.data.encoding.without_end(tokenizer)"
        )


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the tokenizer puts before each text (its beginning-of-sequence token), or ""."""
    sample = _sample(tokenizer)
    count = _added(tokenizer, sample).index(0)
    return str(tokenizer.decode(tokenizer(sample)["input_ids"][:count])) if count else ""


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a token after each text."""
    return bool(_added(tokenizer, _sample(tokenizer))[-1:] == [1])


def _sample(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text of ordinary tokens."""
    texts = itertools.chain("aC0", tokenizer.get_vocab())
    return next(text for text in texts if 0 in _added(tokenizer, text))


def _added(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """1 for each token that the tokenizer puts before or after the text, 0 for those of the text."""
    return list(tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> dict[str, list[Any]]:
    check_whole(text, "the text")
    encoded = tokenizer(text, return_special_tokens_mask=True, **options)
    ids, added = encoded["input_ids"], encoded["special_tokens_mask"]
    own = [place for place, each in enumerate(added) if not each]
    first, end = (own[0], own[-1] + 1) if own else (0, int(ids[:1] == [tokenizer.bos_token_id]))
    start = first if first and ids[first : 2 * first] == ids[:first] else 0
    return {name: list(values[start:end]) for name, values in encoded.items()}
