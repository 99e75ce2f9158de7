"""An OpenAI-compatible HTTP server for one loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.serve.app import create_app
    from graftlm.serve.server import serve
    from graftlm.serve.settings import ServeSettings

__all__ = ["ServeSettings", "create_app", "serve"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ServeSettings": "graftlm.serve.settings",
        "create_app": "graftlm.serve.app",
        "serve": "graftlm.serve.server",
    },
)
