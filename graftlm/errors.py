"""The one exception that means "what the user gave is at fault"."""

from __future__ import annotations

import re

HALF = re.compile("[\ud800-\udfff]")


class InputError(ValueError):
    """The user's input is at fault: the message is one line that names the culprit and the fix.

    The command line prints it and exits with status 2; every other exception is a failure at run time (status 1).
    """


def check_whole(text: str, what: str) -> None:
    """InputError for half a character (a lone surrogate), which no file, model or terminal takes."""
    if not text.isascii() and HALF.search(text):
        raise InputError(f"{what} has half a character (a lone surrogate, or bytes that are not UTF-8): repair it")
