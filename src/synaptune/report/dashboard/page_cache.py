"""What the pages are made of, computed behind them: once for each state of a study, by one thread at a time, kept while it is good.

A study that is being searched changes with every trial. So that looking at it does not take the cores from the search, a value
is made anew only after a rest of REST times what making it took; until then the last one is shown. What nobody has to wait for
is computed at a lower priority.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from synaptune.analysis.results import Evidence
from synaptune.core.errors import UserError
from synaptune.report.dashboard.study_index import Place
from synaptune.report.dashboard.study_status import Glance
from synaptune.study.reader import Record, read_study

REST = 8.0  # times the cost of a value
DEEPER = 1.1  # growth of a study after which its slow analyses are made again while it runs
AGAIN = 5.0  # s until what failed is tried again
KEPT = 8  # studies held in memory
PATIENCE = 30.0  # s
_SLOW = ("effects", "effects_note", "importances", "hypotheses")  # fields of the evidence that the slow analyses fill
_ELSEWHERE = ("trials",)  # sections that have a page of their own here
_LOWER = 5  # steps of priority
T = TypeVar("T")


class Stamped(NamedTuple, Generic[T]):
    """A value and the version of the study that it is made of, or an earlier one."""

    version: str
    value: T


class Part(NamedTuple):
    """A piece of a page that is replaced when it changes; digest: of its text."""

    key: str
    title: str
    html: str

    @property
    def digest(self) -> str:
        """Names the content."""
        return hashlib.sha256(f"{self.title}\0{self.html}".encode()).hexdigest()[:16]


class Once(Generic[T]):
    """One value of a study, made in a thread of its own."""

    def __init__(self, later: bool = False) -> None:
        """later: nobody waits for it, so that it gives way to others even the first time."""
        self._later = later
        self._change = threading.Condition()
        self._made: Stamped[T] | None = None
        self._fault: Exception | None = None
        self._tried: str | None = None
        self._busy = False
        self._cost, self._at = 0.0, float("-inf")

    def get(self, version: str, make: Callable[[], Stamped[T]], patience: float | None = PATIENCE) -> Stamped[T] | None:
        """The value for a version, or an earlier one while it rests; null when it takes longer than patience [s].

        make stamps its value itself: what it reads may be older than the version, and then it is called again after the rest.
        Raises what make raised.
        """
        with self._change:
            rested = time.monotonic() - self._at >= REST * self._cost
            stale = self._tried != version and (rested or self._made is None)
            if not self._busy and (stale or (self._fault is not None and time.monotonic() - self._at >= AGAIN)):
                self._busy = True
                threading.Thread(target=self._run, args=(version, make), daemon=True).start()
            self._change.wait_for(lambda: not self._busy, patience)
            if self._fault is not None:
                raise self._fault
            return self._made

    @property
    def latest(self) -> Stamped[T] | None:
        """What was made last; null when nothing was."""
        return self._made

    def begin(self, version: str, make: Callable[[], Stamped[T]]) -> None:
        """Make it in the background, unless it is being made or is there."""
        with contextlib.suppress(Exception):
            self.get(version, make, patience=0.0)

    def _run(self, version: str, make: Callable[[], Stamped[T]]) -> None:
        if self._later:
            yield_cores()
        began = time.monotonic()
        made: Stamped[T] | None = None
        fault: Exception | None = None
        try:
            made = make()
        except Exception as error:  # whatever it was belongs to the page that asked, and must not end the server
            fault = error
            if not isinstance(error, UserError):
                traceback.print_exception(error, file=sys.stderr)
        with self._change:
            self._tried, self._fault = version if made is None else made.version, fault
            self._made = made or self._made
            self._at = time.monotonic()
            self._cost = self._at - began
            self._busy, self._later = False, True
            self._change.notify_all()


def yield_cores() -> None:
    """Lower the priority of this thread, where threads have one of their own (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER)


class _Desk:
    """What is kept of one study."""

    def __init__(self) -> None:
        self.record: Once[Record] = Once()
        self.evidence: Once[Evidence] = Once()
        self.parts: Once[list[Part]] = Once()
        self.deep: Once[Evidence] = Once(later=True)
        self.deep_ended = 0


class Desks:
    """The values of all studies that somebody looks at."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._desks: OrderedDict[str, _Desk] = OrderedDict()

    def _desk(self, place: Place, glance: Glance) -> _Desk:
        key = f"{place.url}\0{place.name}\0{glance.origin}"  # a study begun anew under its name has nothing of the old one
        with self._guard:
            desk = self._desks.setdefault(key, _Desk())
            self._desks.move_to_end(key)
            while len(self._desks) > KEPT:
                self._desks.popitem(last=False)
            return desk

    def record(self, place: Place, glance: Glance, patience: float = PATIENCE) -> Stamped[Record] | None:
        """The study read whole; null when reading takes longer than patience [s]. Raises UserError."""
        return self._desk(place, glance).record.get(glance.version, lambda: _read(place, glance), patience)

    def parts(self, place: Place, glance: Glance, patience: float = PATIENCE) -> Stamped[list[Part]] | None:
        """The sections of the report; null when they take longer than patience [s]. Raises UserError, and what a section raised."""
        desk = self._desk(place, glance)
        return desk.parts.get(self.version(place, glance), lambda: _make_parts(desk, place, glance), patience)

    def version(self, place: Place, glance: Glance) -> str:
        """What `parts` depends on. It begins the slow analyses of a study that has ended since, once they have rested."""
        desk = self._desk(place, glance)
        if desk.parts.latest is not None and desk.record.latest is not None and not glance.running:
            _deepen(desk, desk.record.latest, running=False)
        return _combined(glance.version, desk.deep.latest)

    def evidence(self, place: Place, glance: Glance) -> Evidence:
        """What is known of the study exactly as it stands, without the slow analyses. Raises UserError."""
        from synaptune.analysis.evidence import evidence

        desk = self._desk(place, glance)
        known, read = desk.evidence.latest, desk.record.latest
        if known is not None and known.version == glance.version:
            return known.value
        return evidence(
            read.value if read is not None and read.version == glance.version else read_study(place.url, place.name), deep=False
        )


def _read(place: Place, glance: Glance) -> Stamped[Record]:
    return Stamped(glance.version, read_study(place.url, place.name))


def _combined(version: str, deep: Stamped[Evidence] | None) -> str:
    """The version of a report made of a study and of slow analyses of it."""
    return version if deep is None else f"{version}+{deep.version}"


def _make_parts(desk: _Desk, place: Place, glance: Glance) -> Stamped[list[Part]]:
    """The sections as the record that is kept tells them: while it rests, that is an earlier one than the study."""
    from synaptune.analysis.evidence import evidence
    from synaptune.report.page import sections

    read = desk.record.get(glance.version, lambda: _read(place, glance), None)
    assert read is not None
    quick = desk.evidence.get(read.version, lambda: Stamped(read.version, evidence(read.value, deep=False)), None)
    assert quick is not None
    deep, known = desk.deep.latest, desk.parts.latest
    version = _combined(quick.version, deep)
    if known is not None and known.version == version:
        return known
    found = quick.value if deep is None else completed(quick.value, deep.value)
    made = [Part(section.key, section.title, section.html) for section in sections(found) if section.key not in _ELSEWHERE]
    _deepen(desk, read, running=glance.running)
    return Stamped(version, made)


def _deepen(desk: _Desk, read: Stamped[Record], *, running: bool) -> None:
    """Begin the slow analyses when the study has grown enough since they were made, or has grown and ended."""
    from synaptune.analysis.evidence import evidence

    ended = sum(trial.state != "running" for trial in read.value.trials)
    if desk.deep_ended > 0 and ended < DEEPER * desk.deep_ended and (running or ended <= desk.deep_ended):
        return

    def make() -> Stamped[Evidence]:
        desk.deep_ended = max(1, ended)  # here, because what is busy or rests is not begun
        return Stamped(read.version, evidence(read.value, deep=True))

    desk.deep.begin(read.version, make)


def completed(found: Evidence, deep: Evidence) -> Evidence:
    """Evidence of now with what only the slow analyses know, of a moment before; as it is when the search has moved on to another space."""
    if (found.phase, found.names) != (deep.phase, deep.names):
        return found
    return dataclasses.replace(found, **{name: getattr(deep, name) for name in _SLOW})
