"""Worker process: connects to the controller, loads the evaluation and runs batches of trials.

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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synaptune.search.trial import Trial

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

    from synaptune.search.trial import make_error_result
    from synaptune.search.workers.messages import EndedTrial, LoadFailure, Ready

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
    while True:
        batch = link.receive()
        running = [trial.number for trial in batch]
        try:
            for trial, result in evaluate(batch, link.report):
                running.remove(trial.number)
                link.send(EndedTrial(trial.number, result))
        # of what the trials share, or of an objective; signals are ignored here
        except (Exception, KeyboardInterrupt) as error:
            for number in running:
                link.send(EndedTrial(number, make_error_result(error, 0.0)))


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

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Send a value of a trial to the controller and return its answer."""
        from synaptune.search.workers.messages import ReportedValue

        self.send(ReportedValue(trial.number, step, value))
        return self.receive()

    def send_heartbeats(self) -> None:
        """Send heartbeats. A failed heartbeat ends the process after the controller is gone."""
        from synaptune.search.workers.messages import HEARTBEAT_INTERVAL, Heartbeat

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
