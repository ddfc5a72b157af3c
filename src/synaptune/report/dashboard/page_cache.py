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
from synaptune.report.dashboard.study_index import StudyEntry
from synaptune.report.dashboard.study_status import StudyStatus
from synaptune.study.reader import StudySnapshot, read_study

REST_FACTOR = 8.0  # times the cost of a value
REANALYSE_GROWTH = (
    1.1  # growth of a study after which its slow analyses are made again while it runs
)
RETRY_SECONDS = 5.0  # s until what failed is tried again
MAX_STUDIES = 8  # studies held in memory
READ_TIMEOUT = 30.0  # s
_SLOW_FIELDS = (
    "effects",
    "effects_note",
    "importances",
    "hypotheses",
)  # fields of the evidence that the slow analyses fill
_SEPARATE_PAGES = ("trials",)  # sections that have a page of their own here
_NICENESS = 5  # steps of priority
T = TypeVar("T")


class Versioned(NamedTuple, Generic[T]):
    """A value and the version of the study that it is made of, or an earlier one."""

    version: str
    value: T


class PagePart(NamedTuple):
    """A piece of a page that is replaced when it changes; digest: of its text."""

    key: str
    title: str
    html: str

    @property
    def digest(self) -> str:
        """Names the content."""
        return hashlib.sha256(f"{self.title}\0{self.html}".encode()).hexdigest()[:16]


class BackgroundValue(Generic[T]):
    """One value of a study, made in a thread of its own."""

    def __init__(self, low_priority: bool = False) -> None:
        """later: nobody waits for it, so that it gives way to others even the first time."""
        self._low_priority = low_priority
        self._condition = threading.Condition()
        self._value: Versioned[T] | None = None
        self._error: Exception | None = None
        self._tried_version: str | None = None
        self._busy = False
        self._cost, self._finished_at = 0.0, float("-inf")

    def get(
        self, version: str, make: Callable[[], Versioned[T]], timeout: float | None = READ_TIMEOUT
    ) -> Versioned[T] | None:
        """The value for a version, or an earlier one while it rests; null when it takes longer than patience [s].

        make stamps its value itself: what it reads may be older than the version, and then it is called again after the rest.
        Raises what make raised.
        """
        with self._condition:
            rested = time.monotonic() - self._finished_at >= REST_FACTOR * self._cost
            stale = self._tried_version != version and (rested or self._value is None)
            if not self._busy and (
                stale
                or (
                    self._error is not None
                    and time.monotonic() - self._finished_at >= RETRY_SECONDS
                )
            ):
                self._busy = True
                threading.Thread(target=self._run, args=(version, make), daemon=True).start()
            self._condition.wait_for(lambda: not self._busy, timeout)
            if self._error is not None:
                raise self._error
            return self._value

    @property
    def latest(self) -> Versioned[T] | None:
        """What was made last; null when nothing was."""
        return self._value

    def start(self, version: str, make: Callable[[], Versioned[T]]) -> None:
        """Make it in the background, unless it is being made or is there."""
        with contextlib.suppress(Exception):
            self.get(version, make, timeout=0.0)

    def _run(self, version: str, make: Callable[[], Versioned[T]]) -> None:
        if self._low_priority:
            lower_priority()
        began = time.monotonic()
        made: Versioned[T] | None = None
        fault: Exception | None = None
        try:
            made = make()
        except (
            Exception
        ) as error:  # whatever it was belongs to the page that asked, and must not end the server
            fault = error
            if not isinstance(error, UserError):
                traceback.print_exception(error, file=sys.stderr)
        with self._condition:
            self._tried_version, self._error = version if made is None else made.version, fault
            self._value = made or self._value
            self._finished_at = time.monotonic()
            self._cost = self._finished_at - began
            self._busy, self._low_priority = False, True
            self._condition.notify_all()


def lower_priority() -> None:
    """Lower the priority of this thread, where threads have one of their own (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _StudyCache:
    """What is kept of one study."""

    def __init__(self) -> None:
        self.record: BackgroundValue[StudySnapshot] = BackgroundValue()
        self.evidence: BackgroundValue[Evidence] = BackgroundValue()
        self.parts: BackgroundValue[list[PagePart]] = BackgroundValue()
        self.slow: BackgroundValue[Evidence] = BackgroundValue(low_priority=True)
        self.slow_ended = 0


class PageCache:
    """The values of all studies that somebody looks at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches: OrderedDict[str, _StudyCache] = OrderedDict()

    def _get_cache(self, entry: StudyEntry, study: StudyStatus) -> _StudyCache:
        key = f"{entry.url}\0{entry.name}\0{study.origin}"  # a study begun anew under its name has nothing of the old one
        with self._lock:
            desk = self._caches.setdefault(key, _StudyCache())
            self._caches.move_to_end(key)
            while len(self._caches) > MAX_STUDIES:
                self._caches.popitem(last=False)
            return desk

    def get_snapshot(
        self, entry: StudyEntry, study: StudyStatus, timeout: float = READ_TIMEOUT
    ) -> Versioned[StudySnapshot] | None:
        """The study read whole; null when reading takes longer than patience [s]. Raises UserError."""
        return self._get_cache(entry, study).record.get(
            study.version, lambda: _read_snapshot(entry, study), timeout
        )

    def get_parts(
        self, entry: StudyEntry, study: StudyStatus, timeout: float = READ_TIMEOUT
    ) -> Versioned[list[PagePart]] | None:
        """The sections of the report; null when they take longer than patience [s]. Raises UserError, and what a section raised."""
        desk = self._get_cache(entry, study)
        return desk.parts.get(
            self.get_version(entry, study), lambda: _make_parts(desk, entry, study), timeout
        )

    def get_version(self, entry: StudyEntry, study: StudyStatus) -> str:
        """What `parts` depends on. It begins the slow analyses of a study that has ended since, once they have rested."""
        desk = self._get_cache(entry, study)
        if (
            desk.parts.latest is not None
            and desk.record.latest is not None
            and not study.is_running
        ):
            _start_slow_analyses(desk, desk.record.latest, running=False)
        return _combine_versions(study.version, desk.slow.latest)

    def get_evidence(self, entry: StudyEntry, study: StudyStatus) -> Evidence:
        """What is known of the study exactly as it stands, without the slow analyses. Raises UserError."""
        from synaptune.analysis.evidence import gather_evidence

        desk = self._get_cache(entry, study)
        known, read = desk.evidence.latest, desk.record.latest
        if known is not None and known.version == study.version:
            return known.value
        return gather_evidence(
            read.value
            if read is not None and read.version == study.version
            else read_study(entry.url, entry.name),
            deep=False,
        )


def _read_snapshot(entry: StudyEntry, study: StudyStatus) -> Versioned[StudySnapshot]:
    return Versioned(study.version, read_study(entry.url, entry.name))


def _combine_versions(version: str, deep: Versioned[Evidence] | None) -> str:
    """The version of a report made of a study and of slow analyses of it."""
    return version if deep is None else f"{version}+{deep.version}"


def _make_parts(
    cache: _StudyCache, entry: StudyEntry, study: StudyStatus
) -> Versioned[list[PagePart]]:
    """The sections as the record that is kept tells them: while it rests, that is an earlier one than the study."""
    from synaptune.analysis.evidence import gather_evidence
    from synaptune.report.page import make_sections

    read = cache.record.get(study.version, lambda: _read_snapshot(entry, study), None)
    assert read is not None
    quick = cache.evidence.get(
        read.version, lambda: Versioned(read.version, gather_evidence(read.value, deep=False)), None
    )
    assert quick is not None
    deep, known = cache.slow.latest, cache.parts.latest
    version = _combine_versions(quick.version, deep)
    if known is not None and known.version == version:
        return known
    found = quick.value if deep is None else merge_slow_fields(quick.value, deep.value)
    made = [
        PagePart(section.key, section.title, section.html)
        for section in make_sections(found)
        if section.key not in _SEPARATE_PAGES
    ]
    _start_slow_analyses(cache, read, running=study.is_running)
    return Versioned(version, made)


def _start_slow_analyses(
    cache: _StudyCache, read: Versioned[StudySnapshot], *, running: bool
) -> None:
    """Begin the slow analyses when the study has grown enough since they were made, or has grown and ended."""
    from synaptune.analysis.evidence import gather_evidence

    ended = sum(trial.state != "running" for trial in read.value.trials)
    if (
        cache.slow_ended > 0
        and ended < REANALYSE_GROWTH * cache.slow_ended
        and (running or ended <= cache.slow_ended)
    ):
        return

    def make() -> Versioned[Evidence]:
        cache.slow_ended = max(1, ended)  # here, because what is busy or rests is not begun
        return Versioned(read.version, gather_evidence(read.value, deep=True))

    cache.slow.start(read.version, make)


def merge_slow_fields(found: Evidence, deep: Evidence) -> Evidence:
    """Evidence of now with what only the slow analyses know, of a moment before; as it is when the search has moved on to another space."""
    if (found.phase, found.names) != (deep.phase, deep.names):
        return found
    return dataclasses.replace(found, **{name: getattr(deep, name) for name in _SLOW_FIELDS})
