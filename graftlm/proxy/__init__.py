"""Proxy-tuning: a small tuned model steers a large one while decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.proxy.alpha import disagreement_above
    from graftlm.proxy.model import ProxyTunedConfig, ProxyTunedModel

__all__ = ["ProxyTunedConfig", "ProxyTunedModel", "disagreement_above"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ProxyTunedConfig": "graftlm.proxy.model",
        "ProxyTunedModel": "graftlm.proxy.model",
        "disagreement_above": "graftlm.proxy.alpha",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
