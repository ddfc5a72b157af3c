"""Status of the studies of a database, read by a few grouped queries without holding a lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import Engine
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import create_engine, get_sqlite_path
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.locks import Holder
from synaptune.study.database.rows import to_utc
from synaptune.study.database.status_rows import StatusRows, read_status_rows
from synaptune.study.reader import SEARCH, is_search
from synaptune.study.study import STUDY_HEARTBEAT_INTERVAL

MAX_MISSED_HEARTBEATS = 3  # of a study that still counts as running
T = TypeVar("T")


@dataclass(frozen=True)
class PhaseStatus:
    """Status of one phase of a study.

    Attributes:
        name: name of the phase.
        trial_count: number of trials.
        ended_count: number of ended trials.
        last_number: number of the last trial.
        best: best objective of its complete trials.
    """

    name: str
    trial_count: int
    ended_count: int
    last_number: int
    best: float | None


@dataclass(frozen=True)
class StudyStatus:
    """Status of a study.

    Attributes:
        name: name of the study.
        maximize: whether the objective is maximised.
        is_ours: whether synaptune wrote the study.
        states: number of trials by state.
        phases: phases in the order of their last trials.
        started_at: start of the first trial (UTC); None before it.
        latest_event: last start or end of a trial (UTC); None before it.
        holder: process that holds the study; None if it is unknown.
        budget: planned evaluations of the search; None if they are unknown.
        notes_length: length of the notes without the heartbeat [characters].
        optimizer: name of the optimizer; None if it is unknown.
        is_archived: whether `synaptune list` hides the study.
    """

    name: str
    maximize: bool
    is_ours: bool
    states: Mapping[str, int]
    phases: tuple[PhaseStatus, ...]
    started_at: datetime | None
    latest_event: datetime | None
    holder: Holder | None
    budget: int | None
    notes_length: int = 0
    optimizer: str | None = None
    is_archived: bool = False

    @property
    def trial_count(self) -> int:
        """Number of all trials."""
        return sum(self.states.values())

    @property
    def ended_count(self) -> int:
        """Number of trials that have ended in any state."""
        return self.trial_count - self.states.get("RUNNING", 0) - self.states.get("WAITING", 0)

    @property
    def failures(self) -> int:
        """Number of failed trials."""
        return self.states.get("FAIL", 0)

    @property
    def version(self) -> str:
        """Changes if a trial starts or ends, a note is written or the study is replaced."""
        return f"{self.origin}.{self.trial_count}.{self.ended_count}.{self.notes_length}"

    @property
    def origin(self) -> int:
        """Start of the first trial [µs since 1970]; 0 before the first trial.

        It separates a study from an earlier one with the same name.
        """
        return (
            0
            if self.started_at is None
            else (self.started_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        )

    @property
    def is_running(self) -> bool:
        """Whether the holder sent a heartbeat recently and is not known to have ended."""
        if self.holder is None or self.holder.has_ended():
            return False
        silence = (datetime.now(UTC) - self.holder.last_seen).total_seconds()
        return silence <= MAX_MISSED_HEARTBEATS * STUDY_HEARTBEAT_INTERVAL

    @property
    def search_phase(self) -> PhaseStatus | None:
        """The last search phase; None before the first one."""
        searches = [phase for phase in self.phases if is_search(phase.name)]
        return max(searches, key=lambda phase: phase.last_number, default=None)

    @property
    def current_phase(self) -> PhaseStatus | None:
        """The phase of the last trial; None before the first trial."""
        return max(self.phases, key=lambda phase: phase.last_number, default=None)


@contextmanager
def connect(url: str) -> Iterator[Any]:
    """Open a new connection and close it afterwards, so that a replaced database file is noticed.

    Raises:
        UserError: the database cannot be read.
    """
    import sqlalchemy

    with as_user_errors(url):
        path = get_sqlite_path(url)
        if path is not None and not path.exists():  # SQLite would create an empty database
            raise user_error(
                got=f"no study database {path}",
                expected="a study that has started",
                do="check its name",
            )
        engine = create_engine(url, poolclass=sqlalchemy.pool.NullPool, pool_pre_ping=None)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()


def read_statuses(url: str, name: str | None = None) -> list[StudyStatus]:
    """Read the status of the studies of a database in the order of their creation.

    Args:
        url: URL of the database.
        name: name of the only study to read; None means all.

    Raises:
        UserError: the database cannot be read.
    """
    keys = (
        *(schema.HOLDER, schema.ENGINE, schema.CONFIGURATION, schema.VERSION_KEY),
        schema.ARCHIVED,
    )
    with connect(url) as connection:
        return [_make_status(rows) for rows in read_status_rows(connection, name, keys)]


def _make_status(rows: StatusRows) -> StudyStatus:
    notes = {key: json.loads(text) for key, text in rows.notes.items()}
    is_ours, phases = schema.CONFIGURATION in notes, rows.phases
    configuration = notes.get(schema.CONFIGURATION)
    if (
        not isinstance(configuration, dict)
        or notes.get(schema.VERSION_KEY, schema.SCHEMA_VERSION) != schema.SCHEMA_VERSION
    ):
        # Another program's study may have notes and attributes of the same names, which mean
        # something else there.
        notes, configuration, phases = {}, {}, [(None, *rest) for _, *rest in phases]
    engine = _parse_or_none(lambda: Engine(**notes[schema.ENGINE]))
    starts = [to_utc(start) for _, _, start, _, _ in rows.states if start is not None]
    moments = [
        to_utc(time) for _, _, _, *later in rows.states for time in later if time is not None
    ]
    maximize = rows.direction == "MAXIMIZE"
    return StudyStatus(
        name=rows.name,
        maximize=maximize,
        is_ours=is_ours,
        states={state.name: count for state, count, *_ in rows.states},
        phases=_merge_phases(phases, maximize),
        started_at=min(starts, default=None),
        latest_event=max(moments, default=None),
        holder=_parse_or_none(lambda: Holder.from_note(notes[schema.HOLDER])),
        budget=None if engine is None else engine.budget,
        notes_length=rows.notes_length,
        optimizer=configuration.get("search.optimizer"),
        is_archived=bool(notes.get(schema.ARCHIVED)),
    )


def _merge_phases(rows: Sequence[Sequence[Any]], maximize: bool) -> tuple[PhaseStatus, ...]:
    """Merge the rows of a phase; trials without a phase belong to the search."""
    rows_by_name: dict[str, list[Sequence[Any]]] = {}
    for text, *row in rows:
        rows_by_name.setdefault(str(json.loads(text)) if text else SEARCH, []).append(row)
    phases = []
    for name, parts in rows_by_name.items():
        counts, ended, numbers, *bests = zip(*parts, strict=True)
        known = [best for best in bests[maximize] if best is not None]
        best = (max if maximize else min)(known, default=None)
        ended_count = sum(int(count or 0) for count in ended)
        phases.append(PhaseStatus(name, sum(counts), ended_count, max(numbers), best))
    return tuple(sorted(phases, key=lambda phase: phase.last_number))


def _parse_or_none(read: Callable[[], T]) -> T | None:
    """Parse a note; None if it is missing or invalid."""
    try:
        return read()
    except (KeyError, TypeError, ValueError):
        return None
