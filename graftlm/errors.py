"""The one exception that means "what the user gave is at fault"."""

from __future__ import annotations


class InputError(ValueError):
    """The user's input is at fault: the message is one line that names the culprit and the fix.

    The command line prints it and exits with status 2; every other exception is a failure at run time (status 1).
    """
