"""A worker process: connects to the controller, loads the evaluation, runs trial after trial until the connection ends.

python -m synaptune.search.workers.process PLACE SOCKET     with the key in SYNAPTUNE_KEY
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Client, Connection
from typing import Any

KEY = "SYNAPTUNE_KEY"
_GONE = 3  # exit code of a worker whose controller is gone


def serve(address: Any, key: bytes, place: int) -> None:
    """Work for the pool at an address until it closes the connection; ends the process when the controller dies."""
    import cloudpickle

    from synaptune.search.trial import Trial
    from synaptune.search.workers.base import attempt
    from synaptune.search.workers.pool import Ready, Unfit

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller says what Ctrl-C means
    link = _Link(Client(address, authkey=key))
    link.send(place)
    payload = link.receive()
    threading.Thread(target=link.beat, daemon=True).start()
    try:
        evaluate = cloudpickle.loads(payload)
    except Exception:  # unpickling runs whatever the evaluation is made of
        link.send(Unfit(traceback.format_exc()))
        return
    link.send(Ready())
    from synaptune.search.workers.reporting import reporting

    while True:
        trial = link.receive()
        assert isinstance(trial, Trial)
        with reporting(link.report):
            result = attempt(evaluate, trial)
        link.send(result)


class _Link:
    """The connection, shared by the work and its signs of life."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Send; without a controller there is nothing left to do."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(_GONE)

    def receive(self) -> Any:
        """The next message."""
        try:
            return self._connection.recv()
        except (OSError, EOFError):
            os._exit(0)

    def report(self, step: int, value: float) -> bool:
        """Hand a value to the controller; its answer."""
        from synaptune.search.workers.pool import Reported

        self.send(Reported(step, value))
        return self.receive()

    def beat(self) -> None:
        """Signs of life, which also notice a controller that is gone."""
        from synaptune.search.workers.pool import BEAT, Beat

        while True:
            self.send(Beat())
            time.sleep(BEAT)


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent (Linux); elsewhere the next beat notices."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


if __name__ == "__main__":
    _die_with_parent()
    serve(sys.argv[2], bytes.fromhex(os.environ.pop(KEY)), int(sys.argv[1]))
