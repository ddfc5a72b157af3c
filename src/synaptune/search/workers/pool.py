"""A pool of worker processes that live long and run many trials; imports are paid once for each worker, not for each trial.

A worker is a process somewhere (started by a spawner: this machine, Ray, Slurm) that connects back to the controller, is sent the
evaluation once and then trial after trial. Whatever happens to it is known from its connection: the end of it is the worker's
death, silence beyond a patience is a machine that is gone, and a trial past its time ends with its worker.

    controller -> worker   the evaluation (cloudpickle), Trial, bool (answer to a report)
    worker -> controller   Ready, Beat, Reported, Result, or Unfit: the evaluation could not be loaded
"""

from __future__ import annotations

import contextlib
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
from typing import Any, NamedTuple, Protocol

import cloudpickle

from synaptune.core.errors import user_error
from synaptune.search.trial import Failure, Result, Trial
from synaptune.search.workers.base import Evaluate, FinishedTrial, OnReport, make_timeout_failure

# Time between two signs of life of a worker [s]; chosen: cheap, and soon enough.
HEARTBEAT_INTERVAL = 5.0
# Silence after which a worker counts as dead [s]; chosen: longer than any pause of a network.
HEARTBEAT_TIMEOUT = 120.0
_HANDSHAKE_TIMEOUT = 30.0  # s, after which who has connected and not said who it is has to go; a worker does so at once
_MAX_FAILED_STARTS = (
    3  # of workers in a row before their first trial: what kills them is not a trial
)


class Heartbeat(NamedTuple):
    """A sign of life."""


class Ready(NamedTuple):
    """A worker has loaded the evaluation."""


class LoadFailure(NamedTuple):
    """A worker could not load the evaluation."""

    trace: str


class ReportedValue(NamedTuple):
    """A value of the trial under way; the answer is whether it should stop."""

    step: int
    value: float


class WorkerHandle(Protocol):
    """A started worker, as its spawner sees it."""

    def poll(self) -> str | None:
        """How it ended; null while it may still run (or wait in a queue)."""
        ...

    def kill(self) -> None:
        """End it at once, with everything it started."""
        ...


class Spawner(Protocol):
    """Starts workers somewhere."""

    remote: bool

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start the worker of a place (0, 1, ...), which connects to address with the key."""
        ...

    def close(self) -> None:
        """Let go of what the workers ran on."""
        ...


@dataclass
class _Slot:
    """One of the pool's places: its worker, if there is one, and the trial it runs."""

    number: int
    handle: WorkerHandle | None = None
    connection: Connection | None = None
    ready: bool = False
    trial: Trial | None = None
    started_at: float = 0.0
    last_heard: float = 0.0
    failed_starts: int = 0
    lost: list[FinishedTrial] = field(default_factory=list)


class Pool:
    """Up to `count` trials at a time, each in a worker process of its own."""

    def __init__(
        self, evaluate: Evaluate, spawner: Spawner, count: int, timeout: float | None = None
    ) -> None:
        """evaluate: anything cloudpickle takes; timeout: most seconds of a trial, whose worker ends with it."""
        self.count, self._spawner, self._timeout = count, spawner, timeout
        self._pickle_evaluation = _pickle_evaluation(evaluate, spawner)
        self._key = os.urandom(32)
        self._slots = [_Slot(number) for number in range(count)]
        self._open_listener, self._address = _open_listener(spawner.remote)
        self._new_connections: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = os.pipe()
        self._pipe_lock = threading.Lock()  # nothing is written to the pipe once it is closed: its number may be another file's by then
        self._open = True
        threading.Thread(target=self._accept_connections, daemon=True).start()

    def _accept_connections(self) -> None:
        """Take connections, until the pool is closed; each is asked who it is in a thread of its own, so that one that says nothing
        keeps no worker out."""
        while self._open:
            with contextlib.suppress(OSError):  # the end of the pool
                threading.Thread(
                    target=self._admit, args=(self._open_listener.accept(),), daemon=True
                ).start()

    def _admit(self, connection: Connection) -> None:
        """Let a worker in, and turn anyone else away."""
        place = _authenticate(connection, self._key)
        with self._pipe_lock:
            if place is None or not self._open:
                connection.close()
                return
            self._new_connections.put((place, connection))
            os.write(self._wake_writer, b".")

    def start(self, trial: Trial) -> None:
        """Give a trial to a free place, and the place a worker if it has none."""
        place = min(
            (place for place in self._slots if place.trial is None),
            key=lambda place: not place.ready,
        )
        place.trial, place.started_at = trial, time.monotonic()
        if place.handle is None:
            self._spawn_worker(place)
        elif place.ready:
            self._send(place, trial)

    def _spawn_worker(self, place: _Slot) -> None:
        place.handle, place.last_heard = (
            self._spawner.spawn(self._address, self._key, place.number),
            time.monotonic(),
        )

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Wait for trials to end; a worker that died ends its trial with a failure of kind `worker`."""
        while True:
            found: list[FinishedTrial] = []
            connections = {
                place.connection: place for place in self._slots if place.connection is not None
            }
            for source in wait([self._wake_reader, *connections], self._get_wait_time()):
                if source == self._wake_reader:
                    self._accept_worker()
                else:
                    found += self._read_message(connections[source], on_report)  # type: ignore[index]
            found += self._end_overdue()
            if found:
                return found
            if all(place.trial is None for place in self._slots):
                return ()

    def _get_wait_time(self) -> float:
        """Seconds until something may be overdue [s]."""
        left = HEARTBEAT_INTERVAL
        if self._timeout is not None:
            now = time.monotonic()
            left = min(
                [
                    left,
                    *(
                        place.started_at + self._timeout - now
                        for place in self._slots
                        if place.trial is not None and place.ready
                    ),
                ]
            )
        return max(0.0, left)

    def _accept_worker(self) -> None:
        os.read(self._wake_reader, 1)
        number, connection = self._new_connections.get()
        place = self._slots[number]
        place.connection, place.last_heard = connection, time.monotonic()
        self._send(place, self._pickle_evaluation)

    def _send(self, place: _Slot, message: Any) -> None:
        assert place.connection is not None
        with contextlib.suppress(OSError):  # its end is read from the connection
            place.connection.send(message)

    def _read_message(self, place: _Slot, on_report: OnReport) -> list[FinishedTrial]:
        assert place.connection is not None
        try:
            message = place.connection.recv()
        except (OSError, EOFError):
            return self._handle_death(place)
        place.last_heard = time.monotonic()
        match message:
            case Ready():
                place.ready, place.started_at, place.failed_starts = True, time.monotonic(), 0
                if place.trial is not None:
                    self._send(place, place.trial)
            case LoadFailure(trace):
                raise user_error(
                    got=f"an evaluation that a worker cannot load\n{trace}",
                    expected="a function and arguments that another process can import or unpickle",
                    do="define it in a module the workers can import, or run it in this process",
                )
            case ReportedValue(step, value):
                assert place.trial is not None
                self._send(place, on_report(place.trial, step, value))
            case Result():
                trial, place.trial = place.trial, None
                assert trial is not None
                if message.failure is not None and message.failure.kind == "device":
                    self._stop_worker(
                        place
                    )  # a broken device context stays broken for the life of its process
                return [FinishedTrial(trial, message)]
        return []

    def _end_overdue(self) -> list[FinishedTrial]:
        """Places whose trial ran out of time, whose worker fell silent, or never came."""
        found, now = [], time.monotonic()
        for place in self._slots:
            if (
                place.ready
                and place.trial is not None
                and self._timeout is not None
                and now - place.started_at >= self._timeout
            ):
                trial, place.trial = place.trial, None
                self._stop_worker(place)
                found.append(
                    FinishedTrial(
                        trial,
                        Result(
                            None,
                            now - place.started_at,
                            failure=make_timeout_failure(self._timeout),
                        ),
                    )
                )
            elif place.connection is None and place.handle is not None:
                found += self._handle_death(place) if place.handle.poll() is not None else []
            elif place.connection is not None and now - place.last_heard > HEARTBEAT_TIMEOUT:
                found += self._handle_death(place)
        return found

    def _handle_death(self, place: _Slot) -> list[FinishedTrial]:
        """Take leave of a worker; its trial, once it had begun, failed with it. One that never began gets another worker."""
        how = self._describe_exit(place)
        begun, trial, seconds = place.ready, place.trial, time.monotonic() - place.started_at
        self._stop_worker(place)
        if trial is None:
            return []
        if begun:
            place.trial = None
            return [
                FinishedTrial(
                    trial,
                    Result(None, seconds, failure=Failure("worker", f"its worker died ({how})")),
                )
            ]
        place.failed_starts += 1
        if place.failed_starts >= _MAX_FAILED_STARTS:
            raise user_error(
                got=f"{place.failed_starts} workers in a row that died before their first trial ({how})",
                expected="workers that start",
                do="see what they wrote above, and mend it; the same command goes on",
            )
        self._spawn_worker(place)
        return []

    def _describe_exit(self, place: _Slot) -> str:
        """How a worker ended; a closed connection comes a moment before the exit code."""
        assert place.handle is not None
        for _ in range(50):
            how = place.handle.poll()
            if how is not None:
                return how
            time.sleep(0.02)
        return (
            "connection lost"
            if time.monotonic() - place.last_heard <= HEARTBEAT_TIMEOUT
            else f"silent for {HEARTBEAT_TIMEOUT:g} s"
        )

    def _stop_worker(self, place: _Slot) -> None:
        if place.handle is not None:
            place.handle.kill()
        if place.connection is not None:
            place.connection.close()
        place.handle, place.connection, place.ready = None, None, False

    def close(self) -> None:
        """End every worker."""
        if not self._open:
            return
        with self._pipe_lock:
            self._open = False
        for place in self._slots:
            self._stop_worker(place)
        _wake_listener(self._open_listener)
        self._open_listener.close()
        self._spawner.close()
        os.close(self._wake_writer)
        os.close(self._wake_reader)


def _pickle_evaluation(evaluate: Evaluate, spawner: Spawner) -> bytes:
    """An evaluation as it is sent to workers; raises UserError for one that cannot be, and lets go of the spawner."""
    try:
        return cloudpickle.dumps(evaluate)
    except Exception as error:  # pickling runs whatever the evaluation is made of
        spawner.close()
        raise user_error(
            got=f"an evaluation that cannot be sent to a worker ({type(error).__name__}: {str(error).strip()})",
            expected="a function that uses only what can be pickled",
            do="open files, locks and connections inside the function, or run one trial at a time in this process (one worker)",
        ) from error


def _open_listener(remote: bool) -> tuple[Listener, Any]:
    """Where workers connect, and its address: a socket file here, or a port of this host for workers elsewhere."""
    if remote:
        listener = Listener(("0.0.0.0", 0))
        port = listener.address[1]
        return listener, (socket.gethostname(), port)
    listener = Listener(family="AF_UNIX")
    return listener, listener.address


def _authenticate(connection: Connection, authkey: bytes) -> int | None:
    """The place of the worker at the other end, which knows the key as we do; null for a stranger, a worker that died at the door,
    and one that takes longer than _HANDSHAKE."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        limit = threading.Timer(_HANDSHAKE_TIMEOUT, _shut_down_socket, (line,))
        limit.daemon = True
        limit.start()
        try:
            deliver_challenge(connection, authkey)
            answer_challenge(connection, authkey)
            return connection.recv()
        except (
            OSError,
            EOFError,
            AuthenticationError,
            AssertionError,
        ):  # the last: an answer that is none
            return None
        finally:
            limit.cancel()


def _shut_down_socket(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _wake_listener(listener: Listener) -> None:
    """Wake the thread that waits for workers."""
    address = listener.address
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as door:
        door.connect(address)
