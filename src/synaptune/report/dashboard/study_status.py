"""A cheap look at the studies of a database: a few grouped queries, however many trials there are, and no lock held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import Engine
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import add_driver, get_engine_options, get_sqlite_path
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.locks import Holder
from synaptune.study.database.rows import StatusRows, read_status_rows, to_utc
from synaptune.study.reader import SEARCH, is_search
from synaptune.study.study import STUDY_HEARTBEAT_INTERVAL

MAX_MISSED_HEARTBEATS = 3  # signs of life that may be missed
T = TypeVar("T")


@dataclass(frozen=True)
class PhaseStatus:
    """A phase of a study: its trials, those that ended, the number of its last trial, and the best objective of its complete ones."""

    name: str
    trial_count: int
    ended_count: int
    last_number: int
    best: float | None


@dataclass(frozen=True)
class StudyStatus:
    """A study as a few numbers.

    ours: whether synaptune wrote it; began, latest: first start and last start or end of a trial (UTC); noted: length of its notes
    without the sign of life; best: of the phase that searched last.
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
    protocol: str | None = None
    optimizer: str | None = None
    failures: int = field(default=0)

    @property
    def trial_count(self) -> int:
        """All trials."""
        return sum(self.states.values())

    @property
    def ended_count(self) -> int:
        """Trials that are over, however."""
        return self.trial_count - self.states.get("RUNNING", 0) - self.states.get("WAITING", 0)

    @property
    def version(self) -> str:
        """Changes whenever a trial begins or ends, a finding is noted, or a study is begun anew under its name."""
        return f"{self.origin}.{self.trial_count}.{self.ended_count}.{self.notes_length}"

    @property
    def origin(self) -> int:
        """Start of its first trial [µs since 1970]: tells a study from an earlier one of its name; 0 before there is a trial."""
        return (
            0
            if self.started_at is None
            else (self.started_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        )

    @property
    def is_running(self) -> bool:
        """Whether a process said lately that it holds the study, and is not known to have ended."""
        return (
            self.holder is not None
            and not self.holder.has_ended()
            and self.silence <= MAX_MISSED_HEARTBEATS * STUDY_HEARTBEAT_INTERVAL
        )

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life; infinite where there never was one."""
        return (
            float("inf")
            if self.holder is None
            else (datetime.now(UTC) - self.holder.last_seen).total_seconds()
        )

    @property
    def search_phase(self) -> PhaseStatus | None:
        """The phase in which it searched last; null before there is one."""
        searches = [phase for phase in self.phases if is_search(phase.name)]
        return max(searches, key=lambda phase: phase.last_number, default=None)

    @property
    def current_phase(self) -> PhaseStatus | None:
        """The phase of the latest trial."""
        return max(self.phases, key=lambda phase: phase.last_number, default=None)


@contextmanager
def connect(url: str) -> Iterator[Any]:
    """A connection of its own, closed afterwards: a database file that is replaced meanwhile is seen. Raises UserError."""
    import sqlalchemy

    url = add_driver(url)
    with as_user_errors(url):
        path = get_sqlite_path(url)
        if path is not None and not path.exists():  # SQLite would make an empty one
            raise user_error(
                got=f"no study database {path}",
                expected="a study that has begun",
                do="check its name",
            )
        options = get_engine_options(url) | {"poolclass": sqlalchemy.pool.NullPool}
        options.pop("pool_pre_ping", None)
        engine = sqlalchemy.create_engine(url, **options)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()


def read_statuses(url: str, name: str | None = None) -> list[StudyStatus]:
    """Read the studies of a database by their order of creation; name: only that one. Raises UserError."""
    keys = (schema.HOLDER, schema.ENGINE, schema.CONFIGURATION, schema.VERSION_KEY)
    with connect(url) as connection:
        return [_make_status(rows) for rows in read_status_rows(connection, name, keys)]


def _make_status(rows: StatusRows) -> StudyStatus:
    notes = {key: json.loads(text) for key, text in rows.notes.items()}
    ours, phases = schema.CONFIGURATION in notes, rows.phases
    configuration = notes.get(schema.CONFIGURATION)
    if (
        not isinstance(configuration, dict)
        or notes.get(schema.VERSION_KEY, schema.SCHEMA_VERSION) != schema.SCHEMA_VERSION
    ):
        # Another program's study may have notes and attributes of the same names, which mean something else there.
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
        is_ours=ours,
        states={state.name: count for state, count, *_ in rows.states},
        phases=_merge_phases(phases, maximize),
        started_at=min(starts, default=None),
        latest_event=max(moments, default=None),
        holder=_parse_or_none(lambda: Holder.from_note(notes[schema.HOLDER])),
        budget=None if engine is None else engine.budget,
        notes_length=rows.notes_length,
        protocol=configuration.get("search.protocol"),
        optimizer=configuration.get("search.optimizer"),
        failures=next((count for state, count, *_ in rows.states if state.name == "FAIL"), 0),
    )


def _merge_phases(rows: Sequence[Sequence[Any]], maximize: bool) -> tuple[PhaseStatus, ...]:
    """The phases by their last trials, from `StatusRows.phases`; trials without a phase are of the search."""
    named: dict[str, list[PhaseStatus]] = {}
    for text, count, ended, last, least, most in rows:
        phase = PhaseStatus(
            str(json.loads(text)) if text else SEARCH,
            count,
            int(ended or 0),
            last,
            most if maximize else least,
        )
        named.setdefault(phase.name, []).append(phase)
    merged = []
    for name, parts in named.items():
        bests = [phase.best for phase in parts if phase.best is not None]
        best = (max if maximize else min)(bests, default=None)
        merged.append(
            PhaseStatus(
                name,
                sum(p.trial_count for p in parts),
                sum(p.ended_count for p in parts),
                max(p.last_number for p in parts),
                best,
            )
        )
    return tuple(sorted(merged, key=lambda phase: phase.last_number))


def _parse_or_none(read: Callable[[], T]) -> T | None:
    """What a note says; null for one that is not there, or not of our making."""
    try:
        return read()
    except (KeyError, TypeError, ValueError):
        return None
