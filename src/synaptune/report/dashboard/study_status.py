"""Status of the studies of a database, read by a few grouped queries without holding a lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from synaptune.core.errors import user_error
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import create_engine, get_sqlite_path
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.locks import Holder
from synaptune.study.database.rows import to_utc
from synaptune.study.database.status_rows import StatusRows, read_status_rows
from synaptune.study.reader import SEARCH, is_search
from synaptune.study.state import (
    UNKNOWN_PLAN,
    SearchPlan,
    State,
    find_state,
    parse_holder,
    read_search_plan,
)


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
        plan: plan of the last search.
        notes_length: length of the notes without the heartbeat [characters].
        optimizer: name of the optimizer; None if it is unknown.
        is_archived: whether lists of studies hide the study.
    """

    name: str
    maximize: bool
    is_ours: bool
    states: Mapping[str, int]
    phases: tuple[PhaseStatus, ...]
    started_at: datetime | None
    latest_event: datetime | None
    holder: Holder | None
    plan: SearchPlan = UNKNOWN_PLAN
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
        """Changes with the trials, the notes and the state, and if another study is here."""
        counts = f"{self.trial_count}.{self.ended_count}.{self.notes_length}"
        return f"{self.origin}.{counts}.{self.state}"

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
    def state(self) -> State:
        """State of the study at this moment."""
        search, open_count = self.search_phase, self.trial_count - self.ended_count
        ended = 0 if search is None else search.ended_count
        return find_state(self.holder, self.plan, ended=ended, open_count=open_count)

    @property
    def is_running(self) -> bool:
        """Whether a process holds the study."""
        return self.state == "running"

    @property
    def budget(self) -> int | None:
        """Planned evaluations of the last search; None if they are unknown."""
        return self.plan.budget

    @property
    def search_phase(self) -> PhaseStatus | None:
        """The last search phase; None before the first one."""
        return _find_search(self.phases)

    @property
    def current_phase(self) -> PhaseStatus | None:
        """The phase of the last trial; None before the first trial."""
        own = [phase for phase in self.phases if phase.name != schema.IMPORTED]
        return max(own, key=lambda phase: phase.last_number, default=None)


def _find_search(phases: Sequence[PhaseStatus]) -> PhaseStatus | None:
    searches = [phase for phase in phases if is_search(phase.name)]
    return max(searches, key=lambda phase: phase.last_number, default=None)


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
        *(schema.HOLDER, schema.ENGINE, schema.SEARCHES, schema.ARCHIVED),
        *(schema.CONFIGURATION, schema.VERSION_KEY),
    )
    with connect(url) as connection:
        return [_make_status(rows) for rows in read_status_rows(connection, name, keys)]


def _make_status(rows: StatusRows) -> StudyStatus:
    notes = {key: json.loads(text) for key, text in rows.notes.items()}
    is_ours, phases = schema.CONFIGURATION in notes, rows.phases
    is_archived = bool(notes.get(schema.ARCHIVED))
    configuration = notes.get(schema.CONFIGURATION)
    if (
        not isinstance(configuration, dict)
        or notes.get(schema.VERSION_KEY, schema.SCHEMA_VERSION) != schema.SCHEMA_VERSION
    ):
        # Another program's study may have notes and attributes of the same names, which mean
        # something else there.
        notes, configuration, phases = {}, {}, [(None, *rest) for _, *rest in phases]
    starts = [to_utc(start) for _, _, start, _, _ in rows.states if start is not None]
    moments = [
        to_utc(time) for _, _, _, *later in rows.states for time in later if time is not None
    ]
    maximize = rows.direction == "MAXIMIZE"
    merged = _merge_phases(phases, maximize)
    search = _find_search(merged)
    name, ended = (SEARCH, 0) if search is None else (search.name, search.ended_count)
    return StudyStatus(
        name=rows.name,
        maximize=maximize,
        is_ours=is_ours,
        states={state.name: count for state, count, *_ in rows.states},
        phases=merged,
        started_at=min(starts, default=None),
        latest_event=max(moments, default=None),
        holder=parse_holder(notes),
        plan=read_search_plan(notes, configuration, name, ended),
        notes_length=rows.notes_length,
        optimizer=configuration.get("search.optimizer"),
        is_archived=is_archived,
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
