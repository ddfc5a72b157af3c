"""Cache of the contents of the pages, computed in background threads.

A value is computed once for each state of a study, by one thread at a time. A running study changes
with every trial. To leave the cores to the search, a value is computed again only after a pause of
REST_FACTOR times its computing time; until then the earlier value is shown. Values that no page
waits for are computed at a lower priority.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from synaptune.analysis.results import Evidence
from synaptune.core.errors import UserError
from synaptune.report.dashboard.study_index import StudyEntry
from synaptune.report.dashboard.study_status import StudyStatus
from synaptune.report.figures.theme import Figure
from synaptune.study.reader import StudySnapshot, read_study

REST_FACTOR = 8.0  # pause before a value is computed again, in units of its computing time
REANALYSE_GROWTH = 1.1  # growth of a running study that starts its slow analyses again
RETRY_SECONDS = 5.0  # [s] until a failed computation is repeated
MAX_STUDIES = 8  # studies held in memory
READ_TIMEOUT = 30.0  # [s]
PUBLISH_INTERVAL = 0.7  # [s] between two versions of a page whose figures are being drawn
# Fields of the evidence that the slow analyses fill.
_SLOW_FIELDS = ("effects", "effects_note", "importances", "hypotheses")
_SEPARATE_PAGES = ("trials",)  # sections that have a page of their own
_NICENESS = 5  # steps of priority
T = TypeVar("T")


class Versioned(NamedTuple, Generic[T]):
    """A value and the version of the study from which it was computed."""

    version: str
    value: T


class PagePart(NamedTuple):
    """A part of a page, which is replaced if it changes."""

    key: str
    title: str
    html: str

    @property
    def digest(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(f"{self.title}\0{self.html}".encode()).hexdigest()[:16]


class ReportParts(NamedTuple):
    """The parts of a report page.

    Attributes:
        parts: the parts.
        ended_count: number of ended trials that they are made of.
        is_drawing: whether some figures are missing or of an earlier state, until they are drawn.
    """

    parts: list[PagePart]
    ended_count: int
    is_drawing: bool


class BackgroundValue(Generic[T]):
    """One value of a study, computed in a background thread."""

    def __init__(self, low_priority: bool = False) -> None:
        """Create the value; `low_priority` applies to its first computation as well."""
        self._low_priority = low_priority
        self._condition = threading.Condition()
        self.latest: Versioned[T] | None = None  # the last value
        self._error: Exception | None = None
        self._tried_version: str | None = None
        self._busy = False
        self._published_count = 0
        self._cost, self._finished_at = 0.0, float("-inf")

    def get(
        self, version: str, make: Callable[[], Versioned[T]], timeout: float | None = READ_TIMEOUT
    ) -> Versioned[T] | None:
        """Return the value for a version, or an earlier one during the pause.

        `make` sets the version of its value. That version may be older than the requested one; then
        `make` is called again after the pause. A call during the computation returns the next value
        that `make` publishes.

        Args:
            version: version of the study.
            make: computes the value.
            timeout: longest wait [s].

        Returns:
            The value; None if there is none within the timeout.

        Raises:
            Exception: whatever `make` raised.
        """
        with self._condition:
            rested = time.monotonic() - self._finished_at >= REST_FACTOR * self._cost
            stale = self._tried_version != version and (rested or self.latest is None)
            if not self._busy and (
                stale
                or (
                    self._error is not None
                    and time.monotonic() - self._finished_at >= RETRY_SECONDS
                )
            ):
                self._busy = True
                threading.Thread(target=self._run, args=(version, make), daemon=True).start()
            published = self._published_count
            self._condition.wait_for(
                lambda: not self._busy or self._published_count > published, timeout
            )
            if self._error is not None:
                raise self._error
            return self.latest

    def publish(self, value: Versioned[T]) -> None:
        """Make an unfinished value available during its computation."""
        with self._condition:
            self.latest = value
            self._published_count += 1
            self._condition.notify_all()

    def start(self, version: str, make: Callable[[], Versioned[T]]) -> None:
        """Start the computation, unless it is running or its value is current."""
        with contextlib.suppress(Exception):
            self.get(version, make, timeout=0.0)

    def _run(self, version: str, make: Callable[[], Versioned[T]]) -> None:
        if self._low_priority:
            lower_priority()
        started_at = time.monotonic()
        value: Versioned[T] | None = None
        failure: Exception | None = None
        try:
            value = make()
        except Exception as error:  # raised in `get`, for the page that requested the value
            failure = error
            if not isinstance(error, UserError):
                traceback.print_exception(error, file=sys.stderr)
        with self._condition:
            self._tried_version, self._error = version if value is None else value.version, failure
            self.latest = value or self.latest
            self._finished_at = time.monotonic()
            self._cost = self._finished_at - started_at
            self._busy, self._low_priority = False, True
            self._condition.notify_all()


def lower_priority() -> None:
    """Lower the priority of this thread, on systems where threads have a priority (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _StudyCache:
    """The cached values of one study."""

    def __init__(self) -> None:
        self.snapshot: BackgroundValue[StudySnapshot] = BackgroundValue()
        self.parts: BackgroundValue[ReportParts] = BackgroundValue()
        self.figures: dict[str, Figure | None] = {}  # the last ones by key
        self.slow: BackgroundValue[Evidence] = BackgroundValue(low_priority=True)
        self.slow_ended = 0


class PageCache:
    """The cached values of the studies that were viewed last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches = functools.lru_cache(MAX_STUDIES)(lambda *_: _StudyCache())

    def _get_cache(self, entry: StudyEntry, study: StudyStatus) -> _StudyCache:
        # The origin separates a study from an earlier one with the same name.
        with self._lock:
            return self._caches(entry.url, entry.name, study.origin)

    def get_snapshot(
        self, entry: StudyEntry, study: StudyStatus, timeout: float = READ_TIMEOUT
    ) -> Versioned[StudySnapshot] | None:
        """Return the complete study; None if it is not read within the timeout [s].

        Raises:
            UserError: the study cannot be read.
        """
        return self._get_cache(entry, study).snapshot.get(
            study.version, lambda: _read_snapshot(entry, study), timeout
        )

    def get_parts(
        self, entry: StudyEntry, study: StudyStatus, timeout: float = READ_TIMEOUT
    ) -> Versioned[ReportParts] | None:
        """Return the sections of the report; None if they are not ready within the timeout [s].

        Without figures they are ready first; the figures follow.

        Raises:
            UserError: the study cannot be read.
            Exception: whatever a section raised.
        """
        cache = self._get_cache(entry, study)
        return cache.parts.get(
            self.get_version(entry, study), lambda: _make_parts(cache, entry, study), timeout
        )

    def get_version(self, entry: StudyEntry, study: StudyStatus) -> str:
        """Return the version of the report.

        For a study that has ended in the meantime, this starts the slow analyses.
        """
        cache = self._get_cache(entry, study)
        if cache.parts.latest and cache.snapshot.latest and not study.is_running:
            _start_slow_analyses(cache, cache.snapshot.latest, running=False)
        return _combine_versions(study.version, cache.slow.latest)

    def get_evidence(self, entry: StudyEntry, study: StudyStatus) -> Evidence:
        """Return the evidence of the present version of the study, without the slow analyses.

        Raises:
            UserError: the study cannot be read.
        """
        from synaptune.analysis.evidence import gather_evidence

        snapshot = self._get_cache(entry, study).snapshot.latest
        if snapshot is None or snapshot.version != study.version:
            snapshot = _read_snapshot(entry, study)
        return gather_evidence(snapshot.value, deep=False)


def _read_snapshot(entry: StudyEntry, study: StudyStatus) -> Versioned[StudySnapshot]:
    return Versioned(study.version, read_study(entry.url, entry.name))


def _combine_versions(version: str, slow: Versioned[Evidence] | None) -> str:
    """Combine the versions of a study and of its slow analyses to the version of the report."""
    return version if slow is None else f"{version}+{slow.version}"


def _make_parts(
    cache: _StudyCache, entry: StudyEntry, study: StudyStatus
) -> Versioned[ReportParts]:
    """Make the sections from the cached snapshot, which may be older than the study.

    The sections are published first with the last figures, then with those that are drawn.
    """
    from synaptune.analysis.evidence import gather_evidence
    from synaptune.report.figures import FIGURE_KEYS, draw_figure
    from synaptune.report.page import make_sections

    snapshot = cache.snapshot.get(study.version, lambda: _read_snapshot(entry, study), None)
    assert snapshot is not None
    slow, latest = cache.slow.latest, cache.parts.latest
    version = _combine_versions(snapshot.version, slow)
    if latest is not None and latest.version == version:
        return latest
    evidence = gather_evidence(snapshot.value, deep=False)
    if slow is not None:
        evidence = merge_slow_fields(evidence, slow.value)
    ended_count = sum(trial.state != "running" for trial in snapshot.value.trials)

    def render(is_drawing: bool) -> ReportParts:
        known = (cache.figures.get(key) for key in FIGURE_KEYS)
        sections = make_sections(evidence, [figure for figure in known if figure is not None])
        parts = [
            PagePart(section.key, section.title, section.html)
            for section in sections
            if section.key not in _SEPARATE_PAGES
        ]
        return ReportParts(parts, ended_count, is_drawing)

    published_at = float("-inf")
    for index, key in enumerate(FIGURE_KEYS):
        if time.monotonic() - published_at > PUBLISH_INTERVAL:
            cache.parts.publish(Versioned(f"{version}~{index}", render(True)))
            published_at = time.monotonic()
        cache.figures[key] = draw_figure(key, evidence)
    report = render(False)
    _start_slow_analyses(cache, snapshot, running=study.is_running)
    return Versioned(version, report)


def _start_slow_analyses(
    cache: _StudyCache, snapshot: Versioned[StudySnapshot], *, running: bool
) -> None:
    """Start the slow analyses if the study has grown enough, or has grown at all and ended."""
    from synaptune.analysis.evidence import gather_evidence

    ended = sum(trial.state != "running" for trial in snapshot.value.trials)
    if (
        cache.slow_ended > 0
        and ended < REANALYSE_GROWTH * cache.slow_ended
        and (running or ended <= cache.slow_ended)
    ):
        return

    def make() -> Versioned[Evidence]:
        cache.slow_ended = max(1, ended)  # set here, because `start` may not start a computation
        return Versioned(snapshot.version, gather_evidence(snapshot.value, deep=True))

    cache.slow.start(snapshot.version, make)


def merge_slow_fields(quick: Evidence, slow: Evidence) -> Evidence:
    """Add the results of earlier slow analyses to the evidence, if both are of the same search."""
    if (quick.phase, quick.names) != (slow.phase, slow.names):
        return quick
    return dataclasses.replace(quick, **{name: getattr(slow, name) for name in _SLOW_FIELDS})
