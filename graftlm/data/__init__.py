"""Any source of data -> rows, and the texts that a model wrote itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.data.load import general_prompts, general_text, load_rows, prompt_tokens
    from graftlm.data.written_text import WrittenText, write_texts

__all__ = ["WrittenText", "general_prompts", "general_text", "load_rows", "prompt_tokens", "write_texts"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "WrittenText": "graftlm.data.written_text",
        "general_prompts": "graftlm.data.load",
        "general_text": "graftlm.data.load",
        "load_rows": "graftlm.data.load",
        "prompt_tokens": "graftlm.data.load",
        "write_texts": "graftlm.data.written_text",
    },
)
