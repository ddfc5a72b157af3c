"""Calls with a time limit, and the reachability of a server."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


def run_with_timeout(seconds: float, work: Callable[[], Any]) -> tuple[bool, Any]:
    """Call `work` in a daemon thread and wait for it at most `seconds`.

    Returns:
        Whether it finished in time, and its result. Otherwise it continues in the thread.
    """
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(results), results[0] if results else None


def is_reachable(url: str, seconds: float) -> bool:
    """Return whether a server sends an HTTP answer in time; an error status is an answer too."""

    def send_request() -> bool:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
        except urllib.error.HTTPError:
            return True
        except (OSError, ValueError):
            return False
        return True

    # The time limit of a socket does not cover the name lookup, so the request runs in a thread.
    return bool(run_with_timeout(seconds, send_request)[1])
