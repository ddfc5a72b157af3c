"""Status of the studies of a database, read by a few grouped queries without holding a lock."""

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
    """A study as a few numbers.

    ours: whether synaptune wrote it; began, latest: first start and last start or end of a trial
    (UTC); noted: length of its notes without the sign of life; best: of the phase that searched
    last.
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
        """Number of all trials."""
        return sum(self.states.values())

    @property
    def ended_count(self) -> int:
        """Number of trials that have ended in any state."""
        return self.trial_count - self.states.get("RUNNING", 0) - self.states.get("WAITING", 0)

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
        return (
            self.holder is not None
            and not self.holder.has_ended()
            and self.silence <= MAX_MISSED_HEARTBEATS * STUDY_HEARTBEAT_INTERVAL
        )

    @property
    def silence(self) -> float:
        """Time since the last heartbeat [s]; infinite without one."""
        return (
            float("inf")
            if self.holder is None
            else (datetime.now(UTC) - self.holder.last_seen).total_seconds()
        )

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

    url = add_driver(url)
    with as_user_errors(url):
        path = get_sqlite_path(url)
        if path is not None and not path.exists():  # SQLite would create an empty database
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
    """Read the status of the studies of a database in the order of their creation.

    Args:
        url: URL of the database.
        name: name of the only study to read; None means all.

    Raises:
        UserError: the database cannot be read.
    """
    from optuna.storages._rdb import models
    from sqlalchemy import func, select

    with connect(url) as connection:
        chosen = select(
            models.StudyModel.study_id,
            models.StudyModel.study_name,
            models.StudyDirectionModel.direction,
        )
        chosen = chosen.join(models.StudyDirectionModel).where(
            models.StudyDirectionModel.objective == 0
        )
        if name is not None:
            chosen = chosen.where(models.StudyModel.study_name == name)
        heads = connection.execute(chosen.order_by(models.StudyModel.study_id)).all()
        if not heads:
            return []
        study_ids = [key for key, _, _ in heads]
        trial, times = models.TrialModel, models.TrialModel.__table__.c
        states = _group_by_study(
            connection.execute(
                select(
                    trial.study_id,
                    trial.state,
                    func.count(),
                    func.min(times.datetime_start),
                    func.max(times.datetime_start),
                    func.max(times.datetime_complete),
                )
                .where(trial.study_id.in_(study_ids))
                .group_by(trial.study_id, trial.state)
            )
        )
        note = models.StudyUserAttributeModel
        keys = (schema.HOLDER, schema.ENGINE, schema.CONFIGURATION, schema.VERSION_KEY)
        texts = _group_by_study(
            connection.execute(
                select(note.study_id, note.key, note.value_json).where(note.key.in_(keys))
            )
        )
        lengths = (
            select(note.study_id, func.sum(func.length(note.value_json)))
            .where(note.key != schema.HOLDER)
            .group_by(note.study_id)
        )
        notes_lengths = dict(map(tuple, connection.execute(lengths)))
        phases = _group_by_study(_read_phases(connection, study_ids))
    return [
        _make_status(
            study,
            direction.name,
            states.get(key, []),
            texts.get(key, []),
            notes_length=notes_lengths.get(key, 0),
            phases=phases.get(key, []),
        )
        for key, study, direction in heads
    ]


def read_origins(url: str) -> tuple[tuple[int, Any], ...]:
    """Read the id of each study of a database and the start of its first trial.

    Raises:
        UserError: the database cannot be read.
    """
    from optuna.storages._rdb import models
    from sqlalchemy import func, select

    trial = models.TrialModel.__table__.c
    with connect(url) as connection:
        query = (
            select(trial.study_id, func.min(trial.datetime_start))
            .group_by(trial.study_id)
            .order_by(trial.study_id)
        )
        return tuple((study, started_at) for study, started_at in connection.execute(query))


def _read_phases(connection: Any, studies: list[int]) -> list[tuple[Any, ...]]:
    """Read study, phase, trials, ended trials, last number, smallest and largest objective."""
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import and_, case, func, select

    trial, attribute, value = (
        models.TrialModel,
        models.TrialUserAttributeModel,
        models.TrialValueModel,
    )
    is_ended = case((trial.state.in_([TrialState.RUNNING, TrialState.WAITING]), 0), else_=1)
    objective = case((trial.state == TrialState.COMPLETE, value.value), else_=None)
    query = select(
        trial.study_id,
        attribute.value_json,
        func.count(),
        func.sum(is_ended),
        func.max(trial.number),
        func.min(objective),
        func.max(objective),
    )
    query = query.select_from(trial).outerjoin(
        attribute, and_(attribute.trial_id == trial.trial_id, attribute.key == schema.PHASE)
    )
    query = query.outerjoin(value, and_(value.trial_id == trial.trial_id, value.objective == 0))
    return list(
        connection.execute(
            query.where(trial.study_id.in_(studies)).group_by(trial.study_id, attribute.value_json)
        )
    )


def _group_by_study(rows: Any) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = {}
    for key, *rest in rows:
        grouped.setdefault(key, []).append(rest)
    return grouped


def _make_status(
    name: str,
    direction: str,
    states: list[Any],
    texts: list[Any],
    *,
    notes_length: int,
    phases: list[Any],
) -> StudyStatus:
    notes = {key: json.loads(text) for key, text in texts}
    is_ours = schema.CONFIGURATION in notes
    configuration = notes.get(schema.CONFIGURATION)
    if (
        not isinstance(configuration, dict)
        or notes.get(schema.VERSION_KEY, schema.SCHEMA_VERSION) != schema.SCHEMA_VERSION
    ):
        # Another program's study may have notes and attributes of the same names, which mean
        # something else there.
        notes, configuration, phases = {}, {}, [(None, *rest) for _, *rest in phases]
    engine = _parse_or_none(lambda: Engine(**notes[schema.ENGINE]))
    starts = [start for _, _, start, _, _ in states if start is not None]
    moments = [moment for _, _, _, *later in states for moment in later if moment is not None]
    maximize = direction == "MAXIMIZE"
    return StudyStatus(
        name=name,
        maximize=maximize,
        is_ours=is_ours,
        states={state.name: count for state, count, *_ in states},
        phases=_merge_phases(phases, maximize),
        started_at=_to_utc(min(starts, default=None)),
        latest_event=_to_utc(max(moments, default=None)),
        holder=_parse_or_none(lambda: Holder.from_note(notes[schema.HOLDER])),
        budget=None if engine is None else engine.budget,
        notes_length=int(notes_length or 0),
        protocol=configuration.get("search.protocol"),
        optimizer=configuration.get("search.optimizer"),
        failures=next((count for state, count, *_ in states if state.name == "FAIL"), 0),
    )


def _merge_phases(rows: Sequence[Sequence[Any]], maximize: bool) -> tuple[PhaseStatus, ...]:
    """Merge the rows of `_read_phases` by phase; trials without a phase belong to the search."""
    parts_by_name: dict[str, list[PhaseStatus]] = {}
    for text, count, ended, last, smallest, largest in rows:
        phase = PhaseStatus(
            str(json.loads(text)) if text else SEARCH,
            count,
            int(ended or 0),
            last,
            largest if maximize else smallest,
        )
        parts_by_name.setdefault(phase.name, []).append(phase)
    merged = []
    for name, parts in parts_by_name.items():
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
    """Parse a note; None if it is missing or invalid."""
    try:
        return read()
    except (KeyError, TypeError, ValueError):
        return None


def _to_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
