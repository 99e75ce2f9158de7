"""Is the Hugging Face hub in reach? Asked once, with a short limit: the libraries retry for over a minute."""

from __future__ import annotations

import functools
import queue
import threading

HUB_TIMEOUT = 5.0  # seconds


@functools.cache
def hub_reachable() -> bool:
    """Whether the hub answers at all within `HUB_TIMEOUT` seconds (False under HF_HUB_OFFLINE=1).

    Any HTTP answer counts, an error page included: what is asked is only whether a request gets out. The
    answer is kept for the life of the process.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: queue.Queue[bool] = queue.Queue()
    # In a thread, since no HTTP time limit covers a name server that does not answer.
    threading.Thread(target=lambda: answers.put(_answers(constants.ENDPOINT)), daemon=True).start()
    try:
        return answers.get(timeout=HUB_TIMEOUT)
    except queue.Empty:
        return False


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=HUB_TIMEOUT)
    except Exception:  # whatever the HTTP library calls it, no request got out
        return False
    return True
