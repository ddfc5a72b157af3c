"""Pool of long-lived worker processes; a worker imports its modules once and runs many trials.

A spawner starts a worker process on this machine, on Ray or on Slurm. The worker connects to the
controller, receives the evaluation once, and then one batch of trials after another: a single
trial, or the share of a worker that trains several as one program. The controller observes the
connection. A closed connection means that the worker died. Silence beyond HEARTBEAT_TIMEOUT means
that its machine is lost. A trial that exceeds its time limit is ended together with its worker.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
    wait,
)
from typing import Any, Protocol

import cloudpickle

from synaptune.core.errors import user_error
from synaptune.search.trial import Failure, Result, Trial
from synaptune.search.workers.base import (
    EvaluateBatch,
    FinishedTrial,
    OnReport,
    make_timeout_failure,
)
from synaptune.search.workers.messages import (
    HEARTBEAT_INTERVAL,
    HEARTBEAT_TIMEOUT,
    EndedTrial,
    LoadFailure,
    Ready,
    ReportedValue,
)

_HANDSHAKE_TIMEOUT = 30.0  # [s], limit for authentication; a worker authenticates at once
# Limit of consecutive workers that die before their first trial; the cause then is not a trial.
_MAX_FAILED_STARTS = 3


class WorkerHandle(Protocol):
    """Handle of a started worker."""

    def poll(self) -> str | None:
        """Return how the worker ended, or None while it may still run or wait in a queue."""
        ...

    def kill(self) -> None:
        """Kill the worker and all processes that it started."""
        ...


class Spawner(Protocol):
    """Starts workers.

    Attributes:
        remote: whether workers can run on other machines.
    """

    remote: bool

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start the worker of a slot.

        Args:
            address: address that the worker connects to.
            authkey: key that authenticates the connection.
            slot: number of the slot (0, 1, ...).
        """
        ...

    def close(self) -> None:
        """Release the resources that the workers used."""
        ...


@dataclass
class _Slot:
    """A slot of the pool: its worker, if there is one, and by number the trials that it runs."""

    number: int
    handle: WorkerHandle | None = None
    connection: Connection | None = None
    ready: bool = False
    trials: dict[int, Trial] = field(default_factory=dict)
    started_at: float = 0.0
    last_heard: float = 0.0
    failed_starts: int = 0


class Pool:
    """Runs up to `count` trials concurrently in worker processes, each of which runs its share.

    A trial whose worker died runs alone when it is started again: one trial that ends its process
    then ends no other.

    Args:
        evaluate: the evaluation of the trials of a worker; cloudpickle must be able to pickle it.
        spawner: starts the workers.
        count: number of concurrent trials.
        timeout: time limit of a trial [s], after which its worker is ended; None means no limit.
        processes: number of worker processes; None means one for each trial.
    """

    def __init__(
        self,
        evaluate: EvaluateBatch,
        spawner: Spawner,
        count: int,
        timeout: float | None = None,
        *,
        processes: int | None = None,
    ) -> None:
        self.count, self._spawner, self._timeout = count, spawner, timeout
        self._pickle_evaluation = _pickle_evaluation(evaluate, spawner)
        self._key = os.urandom(32)
        self._slots = [_Slot(number) for number in range(processes or count)]
        self._share = math.ceil(count / len(self._slots))
        self._waiting: list[Trial] = []
        self._lost: set[int] = set()  # numbers of trials whose worker died
        self._open_listener, self._address = _open_listener(spawner.remote)
        self._new_connections: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = os.pipe()
        # Guards the pipe: after it is closed, its file descriptor can belong to another file.
        self._pipe_lock = threading.Lock()
        self._open = True
        threading.Thread(target=self._accept_connections, daemon=True).start()

    def _accept_connections(self) -> None:
        """Accept connections until the pool is closed.

        Each connection is authenticated in a separate thread, so that a silent one blocks no
        worker.
        """
        while self._open:
            with contextlib.suppress(OSError):  # raised when the pool closes the listener
                threading.Thread(
                    target=self._admit, args=(self._open_listener.accept(),), daemon=True
                ).start()

    def _admit(self, connection: Connection) -> None:
        """Accept the connection of a worker and close any other."""
        number = _authenticate(connection, self._key)
        with self._pipe_lock:
            if number is None or not self._open:
                connection.close()
                return
            self._new_connections.put((number, connection))
            os.write(self._wake_writer, b".")

    @property
    def processes(self) -> int:
        """Number of worker processes."""
        return len(self._slots)

    def start(self, trial: Trial) -> None:
        """Store a trial until `wait_for_trials` gives it to a worker."""
        self._waiting.append(trial)

    def _assign_waiting(self) -> None:
        """Assign the waiting trials to the free slots, and start the workers that are missing."""
        free = [slot for slot in self._slots if not slot.trials]
        free.sort(key=lambda slot: not slot.ready)
        for position, slot in enumerate(free):
            batch = self._take_batch(len(free) - position)
            if not batch:
                return
            slot.trials, slot.started_at = {t.number: t for t in batch}, time.monotonic()
            if slot.handle is None:
                self._spawn_worker(slot)
            elif slot.ready:
                self._send(slot, batch)

    def _take_batch(self, slots: int) -> list[Trial]:
        """Remove the next batch from the waiting trials, of which as many slots get equal parts."""
        count = min(self._share, math.ceil(len(self._waiting) / slots))
        batch = [trial for trial in self._waiting if trial.number in self._lost][:1]
        batch = batch or self._waiting[:count]
        taken = {trial.number for trial in batch}
        self._waiting = [trial for trial in self._waiting if trial.number not in taken]
        return batch

    def _spawn_worker(self, slot: _Slot) -> None:
        slot.handle, slot.last_heard = (
            self._spawner.spawn(self._address, self._key, slot.number),
            time.monotonic(),
        )

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Wait for trials to end. The trial of a worker that died ends with a `worker` failure."""
        self._assign_waiting()
        while True:
            finished: list[FinishedTrial] = []
            connections = {
                slot.connection: slot for slot in self._slots if slot.connection is not None
            }
            for source in wait([self._wake_reader, *connections], self._get_wait_time()):
                if source == self._wake_reader:
                    self._accept_worker()
                else:
                    finished += self._read_message(connections[source], on_report)  # type: ignore[index]
            finished += self._end_overdue()
            if finished:
                return finished
            if not any(slot.trials for slot in self._slots):
                return ()

    def _get_wait_time(self) -> float:
        """Return the time until the next trial or worker can be overdue [s]."""
        times = [HEARTBEAT_INTERVAL]
        if self._timeout is not None:
            now = time.monotonic()
            times += [
                slot.started_at + self._timeout - now
                for slot in self._slots
                if slot.trials and slot.ready
            ]
        return max(0.0, min(times))

    def _accept_worker(self) -> None:
        os.read(self._wake_reader, 1)
        number, connection = self._new_connections.get()
        slot = self._slots[number]
        slot.connection, slot.last_heard = connection, time.monotonic()
        self._send(slot, self._pickle_evaluation)

    def _send(self, slot: _Slot, message: Any) -> None:
        assert slot.connection is not None
        with contextlib.suppress(OSError):  # the next read of the connection reports the death
            slot.connection.send(message)

    def _read_message(self, slot: _Slot, on_report: OnReport) -> list[FinishedTrial]:
        assert slot.connection is not None
        try:
            message = slot.connection.recv()
        except (OSError, EOFError):
            return self._handle_death(slot)
        slot.last_heard = time.monotonic()
        match message:
            case Ready():
                slot.ready, slot.started_at, slot.failed_starts = True, time.monotonic(), 0
                if slot.trials:
                    self._send(slot, list(slot.trials.values()))
            case LoadFailure(trace):
                raise user_error(
                    got=f"an evaluation that a worker cannot load\n{trace}",
                    expected="a function and arguments that another process can import or unpickle",
                    do="define it in a module the workers can import, or run it in this process",
                )
            case ReportedValue(number, step, value):
                self._send(slot, on_report(slot.trials[number], step, value))
            case EndedTrial(number, result):
                return self._handle_result(slot, number, result)
        return []

    def _handle_result(self, slot: _Slot, number: int, result: Result) -> list[FinishedTrial]:
        failure = result.failure
        if failure is not None and failure.kind == "device":
            # A broken device context cannot be repaired within its process.
            self._stop_worker(slot)
            if len(slot.trials) > 1:  # any of them can be the cause
                return self._lose_trials(slot, f"its worker was ended ({failure.reason})")
        return [FinishedTrial(slot.trials.pop(number), result)]

    def _end_overdue(self) -> list[FinishedTrial]:
        """End trials that exceed their time limit, and workers that are silent or gone."""
        finished, now = [], time.monotonic()
        for slot in self._slots:
            if (
                slot.ready
                and slot.trials
                and self._timeout is not None
                and now - slot.started_at >= self._timeout
            ):
                self._stop_worker(slot)
                finished += self._end_trials(slot, make_timeout_failure(self._timeout))
            elif slot.connection is None and slot.handle is not None:
                finished += self._handle_death(slot) if slot.handle.poll() is not None else []
            elif slot.connection is not None and now - slot.last_heard > HEARTBEAT_TIMEOUT:
                finished += self._handle_death(slot)
        return finished

    def _handle_death(self, slot: _Slot) -> list[FinishedTrial]:
        """Remove a dead worker.

        Trials that had started fail. Trials that had not started get another worker.
        """
        cause, started = self._describe_exit(slot), slot.ready
        self._stop_worker(slot)
        if not slot.trials:
            return []
        if started:
            return self._lose_trials(slot, f"its worker died ({cause})")
        slot.failed_starts += 1
        if slot.failed_starts >= _MAX_FAILED_STARTS:
            raise user_error(
                got=f"{slot.failed_starts} workers in a row that died before their first trial "
                f"({cause})",
                expected="workers that start",
                do="read their output above and correct the cause; the same command then continues",
            )
        self._spawn_worker(slot)
        return []

    def _lose_trials(self, slot: _Slot, reason: str) -> list[FinishedTrial]:
        self._lost.update(slot.trials)
        return self._end_trials(slot, Failure("worker", reason))

    def _end_trials(self, slot: _Slot, failure: Failure) -> list[FinishedTrial]:
        """Return the trials of a slot as failed."""
        trials, slot.trials = slot.trials.values(), {}
        result = Result(None, time.monotonic() - slot.started_at, failure=failure)
        return [FinishedTrial(trial, result) for trial in trials]

    def _describe_exit(self, slot: _Slot) -> str:
        """Describe how a worker ended; its connection closes before its exit code is known."""
        assert slot.handle is not None
        for _ in range(50):
            cause = slot.handle.poll()
            if cause is not None:
                return cause
            time.sleep(0.02)
        return (
            "connection lost"
            if time.monotonic() - slot.last_heard <= HEARTBEAT_TIMEOUT
            else f"silent for {HEARTBEAT_TIMEOUT:g} s"
        )

    def _stop_worker(self, slot: _Slot) -> None:
        if slot.handle is not None:
            slot.handle.kill()
        if slot.connection is not None:
            slot.connection.close()
        slot.handle, slot.connection, slot.ready = None, None, False

    def close(self) -> None:
        """End every worker."""
        if not self._open:
            return
        with self._pipe_lock:
            self._open = False
        for slot in self._slots:
            self._stop_worker(slot)
        _wake_listener(self._open_listener)
        self._open_listener.close()
        self._spawner.close()
        os.close(self._wake_writer)
        os.close(self._wake_reader)


def _pickle_evaluation(evaluate: EvaluateBatch, spawner: Spawner) -> bytes:
    """Pickle an evaluation for the workers.

    Raises:
        UserError: the evaluation cannot be pickled; the spawner is closed.
    """
    try:
        return cloudpickle.dumps(evaluate)
    except Exception as error:  # pickling runs code of the evaluation
        spawner.close()
        reason = f"{type(error).__name__}: {str(error).strip()}"
        raise user_error(
            got=f"an evaluation that cannot be sent to a worker ({reason})",
            expected="a function that uses only objects that can be pickled",
            do="open files, locks and connections inside the function, "
            "or run one trial at a time in this process (one worker)",
        ) from error


def _open_listener(remote: bool) -> tuple[Listener, Any]:
    """Return the listener for workers and its address.

    It is a socket file for workers on this machine, or a port of this host for remote workers. A
    socket file needs a short path; where TMPDIR has none, a port of the loopback interface serves.
    """
    if remote:
        listener = Listener(("0.0.0.0", 0))
        port = listener.address[1]
        return listener, (socket.gethostname(), port)
    try:
        listener = Listener(family="AF_UNIX")
    except OSError:
        listener = Listener(("127.0.0.1", 0))
    return listener, listener.address


def _authenticate(connection: Connection, authkey: bytes) -> int | None:
    """Authenticate the peer of a connection with the key.

    Returns:
        The slot number of the worker; None if the peer does not know the key, died, or took longer
        than _HANDSHAKE_TIMEOUT.
    """
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        limit = threading.Timer(_HANDSHAKE_TIMEOUT, _shut_down_socket, (line,))
        limit.daemon = True
        limit.start()
        try:
            deliver_challenge(connection, authkey)
            answer_challenge(connection, authkey)
            return connection.recv()
        # AssertionError is raised for an invalid message.
        except (OSError, EOFError, AuthenticationError, AssertionError):
            return None
        finally:
            limit.cancel()


def _shut_down_socket(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _wake_listener(listener: Listener) -> None:
    """Connect once to the listener, so that the thread that accepts connections returns."""
    address = listener.address
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as client:
        client.connect(address)
