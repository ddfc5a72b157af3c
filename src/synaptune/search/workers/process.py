"""Worker process: connects to the controller, loads the evaluation and runs trials.

It runs until the controller closes the connection.

    python -m synaptune.search.workers.process SLOT ADDRESS     with the key in SYNAPTUNE_KEY

ADDRESS is the path of a socket, or HOST:PORT.
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
    """Run trials for the pool at an address until it closes the connection.

    The process ends when the controller dies.

    Args:
        address: address of the pool.
        authkey: key that authenticates the connection.
        slot: number of the slot of this worker.
    """
    import cloudpickle

    from synaptune.search.trial import Trial, make_error_result
    from synaptune.search.workers.base import run_trial
    from synaptune.search.workers.pool import LoadFailure, Ready

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller handles Ctrl-C
    link = _ControllerLink(Client(address, authkey=authkey))
    link.send(slot)
    payload = link.receive()
    threading.Thread(target=link.send_heartbeats, daemon=True).start()
    try:
        evaluate = cloudpickle.loads(payload)
    except Exception:  # unpickling runs code of the evaluation
        link.send(LoadFailure(traceback.format_exc()))
        return
    link.send(Ready())
    from synaptune.search.workers.reporting import handle_reports

    while True:
        trial = link.receive()
        assert isinstance(trial, Trial)
        with handle_reports(link.report):
            try:
                result = run_trial(evaluate, trial)
            except KeyboardInterrupt as error:  # of the objective; signals are ignored here
                result = make_error_result(error, 0.0)
        link.send(result)


class _ControllerLink:
    """The connection to the controller, shared by the trials and the heartbeat thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message. The process ends if the controller is gone."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(_EXIT_NO_CONTROLLER)

    def receive(self) -> Any:
        """Return the next message. The process ends if the connection is closed."""
        try:
            return self._connection.recv()
        except (OSError, EOFError):
            os._exit(0)

    def report(self, step: int, value: float) -> bool:
        """Send a value to the controller and return its answer."""
        from synaptune.search.workers.pool import ReportedValue

        self.send(ReportedValue(step, value))
        return self.receive()

    def send_heartbeats(self) -> None:
        """Send heartbeats. A failed heartbeat ends the process after the controller is gone."""
        from synaptune.search.workers.pool import HEARTBEAT_INTERVAL, Heartbeat

        while True:
            self.send(Heartbeat())
            time.sleep(HEARTBEAT_INTERVAL)


def _die_with_parent() -> None:
    """Let the kernel end this process with its parent (Linux).

    On other systems the next heartbeat fails and ends the process.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


if __name__ == "__main__":
    _die_with_parent()
    host, _, port = sys.argv[2].rpartition(":")
    own_address = (host, int(port)) if host and port.isdigit() else sys.argv[2]
    run_worker(own_address, bytes.fromhex(os.environ.pop(KEY_VARIABLE)), int(sys.argv[1]))
