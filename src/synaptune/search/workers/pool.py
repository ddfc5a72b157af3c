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
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge, wait
from typing import Any, NamedTuple, Protocol

import cloudpickle

from synaptune.core.errors import mistake
from synaptune.core.parameters import constant
from synaptune.search.trial import Failure, Result, Trial
from synaptune.search.workers.base import Ended, Evaluate, Hear, out_of_time

BEAT = constant("pool.beat", 5.0, unit="s", meaning="time between two signs of life of a worker", source="chosen: cheap, and soon enough")
SILENCE = constant(
    "pool.silence",
    120.0,
    unit="s",
    meaning="silence after which a worker counts as dead",
    source="chosen: longer than any pause of a network",
)
_HANDSHAKE = 30.0  # s, after which who has connected and not said who it is has to go; a worker does so at once
_DEATHS = 3  # of workers in a row before their first trial: what kills them is not a trial


class Beat(NamedTuple):
    """A sign of life."""


class Ready(NamedTuple):
    """A worker has loaded the evaluation."""


class Unfit(NamedTuple):
    """A worker could not load the evaluation."""

    trace: str


class Reported(NamedTuple):
    """A value of the trial under way; the answer is whether it should stop."""

    step: int
    value: float


class Handle(Protocol):
    """A started worker, as its spawner sees it."""

    def dead(self) -> str | None:
        """How it ended; null while it may still run (or wait in a queue)."""
        ...

    def kill(self) -> None:
        """End it at once, with everything it started."""
        ...


class Spawner(Protocol):
    """Starts workers somewhere."""

    remote: bool

    def spawn(self, address: Any, key: bytes, place: int) -> Handle:
        """Start the worker of a place (0, 1, ...), which connects to address with the key."""
        ...

    def close(self) -> None:
        """Let go of what the workers ran on."""
        ...


@dataclass
class _Place:
    """One of the pool's places: its worker, if there is one, and the trial it runs."""

    number: int
    handle: Handle | None = None
    connection: Connection | None = None
    ready: bool = False
    trial: Trial | None = None
    began: float = 0.0
    heard: float = 0.0
    deaths: int = 0
    lost: list[Ended] = field(default_factory=list)


class Pool:
    """Up to `count` trials at a time, each in a worker process of its own."""

    def __init__(self, evaluate: Evaluate, spawner: Spawner, count: int, timeout: float | None = None) -> None:
        """evaluate: anything cloudpickle takes; timeout: most seconds of a trial, whose worker ends with it."""
        self.count, self._spawner, self._timeout = count, spawner, timeout
        self._payload = _payload(evaluate, spawner)
        self._key = os.urandom(32)
        self._places = [_Place(number) for number in range(count)]
        self._listener, self._address = _listener(spawner.remote)
        self._arrived: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._bell, self._ring = os.pipe()
        self._door = threading.Lock()  # nothing is written to the pipe once it is closed: its number may be another file's by then
        self._open = True
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        """Take connections, until the pool is closed; each is asked who it is in a thread of its own, so that one that says nothing
        keeps no worker out."""
        while self._open:
            with contextlib.suppress(OSError):  # the end of the pool
                threading.Thread(target=self._admit, args=(self._listener.accept(),), daemon=True).start()

    def _admit(self, connection: Connection) -> None:
        """Let a worker in, and turn anyone else away."""
        place = _greeted(connection, self._key)
        with self._door:
            if place is None or not self._open:
                connection.close()
                return
            self._arrived.put((place, connection))
            os.write(self._ring, b".")

    def start(self, trial: Trial) -> None:
        """Give a trial to a free place, and the place a worker if it has none."""
        place = min((place for place in self._places if place.trial is None), key=lambda place: not place.ready)
        place.trial, place.began = trial, time.monotonic()
        if place.handle is None:
            self._hire(place)
        elif place.ready:
            self._send(place, trial)

    def _hire(self, place: _Place) -> None:
        place.handle, place.heard = self._spawner.spawn(self._address, self._key, place.number), time.monotonic()

    def ended(self, hear: Hear) -> Sequence[Ended]:
        """Wait for trials to end; a worker that died ends its trial with a failure of kind `worker`."""
        while True:
            found: list[Ended] = []
            connections = {place.connection: place for place in self._places if place.connection is not None}
            for source in wait([self._bell, *connections], self._patience()):
                if source == self._bell:
                    self._welcome()
                else:
                    found += self._take(connections[source], hear)  # type: ignore[index]
            found += self._overdue()
            if found:
                return found
            if all(place.trial is None for place in self._places):
                return ()

    def _patience(self) -> float:
        """Seconds until something may be overdue [s]."""
        left = BEAT
        if self._timeout is not None:
            now = time.monotonic()
            left = min([left, *(place.began + self._timeout - now for place in self._places if place.trial is not None and place.ready)])
        return max(0.0, left)

    def _welcome(self) -> None:
        os.read(self._bell, 1)
        number, connection = self._arrived.get()
        place = self._places[number]
        place.connection, place.heard = connection, time.monotonic()
        self._send(place, self._payload)

    def _send(self, place: _Place, message: Any) -> None:
        assert place.connection is not None
        with contextlib.suppress(OSError):  # its end is read from the connection
            place.connection.send(message)

    def _take(self, place: _Place, hear: Hear) -> list[Ended]:
        assert place.connection is not None
        try:
            message = place.connection.recv()
        except (OSError, EOFError):
            return self._bury(place)
        place.heard = time.monotonic()
        match message:
            case Ready():
                place.ready, place.began, place.deaths = True, time.monotonic(), 0
                if place.trial is not None:
                    self._send(place, place.trial)
            case Unfit(trace):
                raise mistake(
                    got=f"an evaluation that a worker cannot load\n{trace}",
                    expected="a function and arguments that another process can import or unpickle",
                    do="define it in a module the workers can import, or run it in this process",
                )
            case Reported(step, value):
                assert place.trial is not None
                self._send(place, hear(place.trial, step, value))
            case Result():
                trial, place.trial = place.trial, None
                assert trial is not None
                if message.failure is not None and message.failure.kind == "device":
                    self._dismiss(place)  # a broken device context stays broken for the life of its process
                return [Ended(trial, message)]
        return []

    def _overdue(self) -> list[Ended]:
        """Places whose trial ran out of time, whose worker fell silent, or never came."""
        found, now = [], time.monotonic()
        for place in self._places:
            if place.ready and place.trial is not None and self._timeout is not None and now - place.began >= self._timeout:
                trial, place.trial = place.trial, None
                self._dismiss(place)
                found.append(Ended(trial, Result(None, now - place.began, failure=out_of_time(self._timeout))))
            elif place.connection is None and place.handle is not None:
                found += self._bury(place) if place.handle.dead() is not None else []
            elif place.connection is not None and now - place.heard > SILENCE:
                found += self._bury(place)
        return found

    def _bury(self, place: _Place) -> list[Ended]:
        """Take leave of a worker; its trial, once it had begun, failed with it. One that never began gets another worker."""
        how = self._how(place)
        begun, trial, seconds = place.ready, place.trial, time.monotonic() - place.began
        self._dismiss(place)
        if trial is None:
            return []
        if begun:
            place.trial = None
            return [Ended(trial, Result(None, seconds, failure=Failure("worker", f"its worker died ({how})")))]
        place.deaths += 1
        if place.deaths >= _DEATHS:
            raise mistake(
                got=f"{place.deaths} workers in a row that died before their first trial ({how})",
                expected="workers that start",
                do="see what they wrote above, and mend it; the same command goes on",
            )
        self._hire(place)
        return []

    def _how(self, place: _Place) -> str:
        """How a worker ended; a closed connection comes a moment before the exit code."""
        assert place.handle is not None
        for _ in range(50):
            how = place.handle.dead()
            if how is not None:
                return how
            time.sleep(0.02)
        return "connection lost" if time.monotonic() - place.heard <= SILENCE else f"silent for {SILENCE:g} s"

    def _dismiss(self, place: _Place) -> None:
        if place.handle is not None:
            place.handle.kill()
        if place.connection is not None:
            place.connection.close()
        place.handle, place.connection, place.ready = None, None, False

    def close(self) -> None:
        """End every worker."""
        if not self._open:
            return
        with self._door:
            self._open = False
        for place in self._places:
            self._dismiss(place)
        _knock(self._listener)
        self._listener.close()
        self._spawner.close()
        os.close(self._ring)
        os.close(self._bell)


def _payload(evaluate: Evaluate, spawner: Spawner) -> bytes:
    """An evaluation as it is sent to workers; raises UserError for one that cannot be, and lets go of the spawner."""
    try:
        return cloudpickle.dumps(evaluate)
    except Exception as error:  # pickling runs whatever the evaluation is made of
        spawner.close()
        raise mistake(
            got=f"an evaluation that cannot be sent to a worker ({type(error).__name__}: {str(error).strip()})",
            expected="a function that uses only what can be pickled",
            do="open files, locks and connections inside the function, or run one trial at a time in this process (one worker)",
        ) from error


def _listener(remote: bool) -> tuple[Listener, Any]:
    """Where workers connect, and its address: a socket file here, or a port of this host for workers elsewhere."""
    if remote:
        listener = Listener(("0.0.0.0", 0))
        port = listener.address[1]
        return listener, (socket.gethostname(), port)
    listener = Listener(family="AF_UNIX")
    return listener, listener.address


def _greeted(connection: Connection, key: bytes) -> int | None:
    """The place of the worker at the other end, which knows the key as we do; null for a stranger, a worker that died at the door,
    and one that takes longer than _HANDSHAKE."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        limit = threading.Timer(_HANDSHAKE, _hang_up, (line,))
        limit.daemon = True
        limit.start()
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            return connection.recv()
        except (OSError, EOFError, AuthenticationError, AssertionError):  # the last: an answer that is none
            return None
        finally:
            limit.cancel()


def _hang_up(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _knock(listener: Listener) -> None:
    """Wake the thread that waits for workers."""
    address = listener.address
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as door:
        door.connect(address)
