"""The settings of a model's own generation config that the server honours: those that act on each sequence alone.

Beams, drafts and several outputs are left out, since the engine writes one token of each sequence at a time; so is
whatever counts from the beginning or the end of a call of `generate`, since the engine leaves `generate` and enters it
again in the middle of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graftlm.errors import InputError

TAKEN = frozenset(
    {"repetition_penalty", "no_repeat_ngram_size", "sequence_bias", "bad_words_ids", "suppress_tokens"}
    | {"remove_invalid_values", "bos_token_id", "eos_token_id", "pad_token_id"}
    | {"use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile"}
)
REPLACED = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    | {"max_length", "max_new_tokens", "stop_strings", "renormalize_logits", "transformers_version"}
)
"""Settings that a request's own replace; the stop strings are added to a request's."""
WITHOUT_EFFECT = frozenset(
    {"early_stopping", "length_penalty", "max_matching_ngram_size", "decoder_start_token_id", "max_cache_len"}
    | {"assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"}
    | {"num_assistant_tokens", "num_assistant_tokens_schedule", "continuous_batching_config", "low_memory"}
    | {"output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"}
)
"""Settings that do nothing to the text, or nothing without others that are left out."""
NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
}
"""Values without effect, where these are not 0, false or empty."""


def left_out(config: Any) -> dict[str, Any]:
    """The settings that would change a text and are not honoured."""
    known = vars(type(config)()).keys() - TAKEN - REPLACED - WITHOUT_EFFECT
    values = {name: getattr(config, name, None) for name in sorted(known) if not name.startswith("_")}
    acting = {name: value for name, value in values.items() if value or (value == 0 and name.endswith("token_id"))}
    return {name: value for name, value in acting.items() if value != NEUTRAL.get(name)}


def stop_strings(config: Any) -> tuple[str, ...]:
    """The model's own stop texts. Raises InputError where they are no texts."""
    own = getattr(config, "stop_strings", None) or ()
    texts = (own,) if isinstance(own, str) else tuple(own)
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"the model's generation config has stop_strings {own!r}, which are not texts")
    return texts


@contextmanager
def set_aside(config: Any) -> Iterator[None]:
    """Clear the settings that are not honoured while `generate` runs, which would fall back on them."""
    before = {name: value for name, value in vars(config).items() if not (name in TAKEN or name.startswith("_"))}
    vars(config).update(dict.fromkeys(before))
    try:
        yield
    finally:
        vars(config).update(before)
