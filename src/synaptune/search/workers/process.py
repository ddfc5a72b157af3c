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

KEY_VARIABLE = "SYNAPTUNE_KEY"
_EXIT_NO_CONTROLLER = 3  # exit code of a worker whose controller is gone


def run_worker(address: Any, authkey: bytes, slot: int) -> None:
    """Work for the pool at an address until it closes the connection; ends the process when the controller dies."""
    import cloudpickle

    from synaptune.search.trial import Trial
    from synaptune.search.workers.base import run_trial
    from synaptune.search.workers.pool import LoadFailure, Ready

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller says what Ctrl-C means
    link = _ControllerLink(Client(address, authkey=authkey))
    link.send(slot)
    payload = link.receive()
    threading.Thread(target=link.send_heartbeats, daemon=True).start()
    try:
        evaluate = cloudpickle.loads(payload)
    except Exception:  # unpickling runs whatever the evaluation is made of
        link.send(LoadFailure(traceback.format_exc()))
        return
    link.send(Ready())
    from synaptune.search.workers.reporting import handle_reports

    while True:
        trial = link.receive()
        assert isinstance(trial, Trial)
        with handle_reports(link.report):
            result = run_trial(evaluate, trial)
        link.send(result)


class _ControllerLink:
    """The connection, shared by the work and its signs of life."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Send; without a controller there is nothing left to do."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(_EXIT_NO_CONTROLLER)

    def receive(self) -> Any:
        """The next message."""
        try:
            return self._connection.recv()
        except (OSError, EOFError):
            os._exit(0)

    def report(self, step: int, value: float) -> bool:
        """Hand a value to the controller; its answer."""
        from synaptune.search.workers.pool import ReportedValue

        self.send(ReportedValue(step, value))
        return self.receive()

    def send_heartbeats(self) -> None:
        """Signs of life, which also notice a controller that is gone."""
        from synaptune.search.workers.pool import HEARTBEAT_INTERVAL, Heartbeat

        while True:
            self.send(Heartbeat())
            time.sleep(HEARTBEAT_INTERVAL)


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent (Linux); elsewhere the next beat notices."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


if __name__ == "__main__":
    _die_with_parent()
    run_worker(sys.argv[2], bytes.fromhex(os.environ.pop(KEY_VARIABLE)), int(sys.argv[1]))
