"""Is the Hugging Face hub in reach? Asked once, with a short limit: the libraries retry for over a minute."""

from __future__ import annotations

import contextlib
import functools
import threading

HUB_TIMEOUT = 5.0  # seconds


@functools.cache
def hub_reachable() -> bool:
    """Whether the hub answers at all within `HUB_TIMEOUT` seconds (False under HF_HUB_OFFLINE=1).

    Any HTTP answer counts, an error page included: what is asked is only whether a request gets out. The
    answer is kept for the life of the process.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever the HTTP library calls it, no request got out
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
            answered.set()

    # In a thread, since no HTTP time limit covers a name server that does not answer.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    return answered.is_set()
