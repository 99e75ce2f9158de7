"""Make a cache for a model, and tell whether rows and tokens can be taken out of it.

transformers (5.23) crops and selects rows of keys and values. The states of a convolution or a recurrence stay as they
were, and so the model goes on from other rows than the keys and values say.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from graftlm.errors import InputError
from graftlm.models.decoder import text_config


def new_cache(model: Any, **options: Any) -> DynamicCache:
    """An empty cache for `model`. InputError for a model that takes none, and so would forget what it has read."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "past_key_values" not in inspect.signature(plain.forward).parameters:
        raise InputError(f"{type(plain).__name__} takes no past_key_values and would forget: give use_cache=False")
    return DynamicCache(config=text_config(plain), **options)


def keeps_only_keys_and_values(cache: Any) -> bool:
    """Whether `cache` has plain layers only; a subclass may keep more. Sliding windows are among the plain ones."""
    return isinstance(cache, DynamicCache) and layer_kinds(cache) <= {DynamicLayer, DynamicSlidingWindowLayer}


def layer_kinds(cache: DynamicCache) -> set[type]:
    """The classes of the cache's layers, and of those of the caches that it takes along (a proxy-tuned model's)."""
    along = (layer_kinds(each) for each in getattr(cache, "others", ()))
    return {type(layer) for layer in cache.layers}.union(*along)
