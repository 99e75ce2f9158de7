"""Whether rows and tokens can be taken out of a model's cache.

transformers (5.23) crops and selects rows of keys and values. The states of a convolution or a recurrence stay as they
were, and so the model goes on from other rows than the keys and values say.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def keeps_only_keys_and_values(cache: Any) -> bool:
    """Whether `cache` has plain layers only; a subclass may keep more. Sliding windows are among the plain ones."""
    return isinstance(cache, DynamicCache) and layer_kinds(cache) <= {DynamicLayer, DynamicSlidingWindowLayer}


def layer_kinds(cache: DynamicCache) -> set[type]:
    return {type(layer) for layer in cache.layers}
