"""The status of studies: a few grouped queries, however many trials there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synaptune.study.database import keys as schema
from synaptune.study.database.rows import get_models


class StatusRows(NamedTuple):
    """The rows that the status of a study is made of.

    Attributes:
        name: name of the study.
        direction: `MINIMIZE` or `MAXIMIZE`.
        states: rows of state, number of trials, first start, last start and last end.
        notes: requested notes by key, as JSON.
        notes_length: length of all notes without the heartbeat [characters].
        phases: rows of phase name as JSON, number of trials, number of ended trials, largest trial
            number, smallest and largest objective.
    """

    name: str
    direction: str
    states: Sequence[Any]
    notes: Mapping[str, str]
    notes_length: int
    phases: Sequence[Any]


def read_status_rows(connection: Any, name: str | None, keys: Sequence[str]) -> list[StatusRows]:
    """Read the studies of a database, ordered by their creation, in a few grouped queries.

    Args:
        connection: connection to the database.
        name: name of the only study to read; None reads all studies.
        keys: keys of the notes to read.
    """
    from sqlalchemy import func, select, true

    models = get_models()
    study, direction = models.StudyModel, models.StudyDirectionModel
    studies = connection.execute(
        select(study.study_id, study.study_name, direction.direction)
        .join(direction)
        .where(direction.objective == 0, true() if name is None else study.study_name == name)
        .order_by(study.study_id)
    ).all()
    if not studies:
        return []
    ids = [key for key, *_ in studies]
    trial, times = models.TrialModel, models.TrialModel.__table__.c
    states = _group_rows(
        connection,
        select(
            trial.study_id,
            trial.state,
            func.count(),
            func.min(times.datetime_start),
            func.max(times.datetime_start),
            func.max(times.datetime_complete),
        )
        .where(trial.study_id.in_(ids))
        .group_by(trial.study_id, trial.state),
    )
    note = models.StudyUserAttributeModel
    notes = _group_rows(
        connection, select(note.study_id, note.key, note.value_json).where(note.key.in_(keys))
    )
    lengths = _group_rows(
        connection,
        select(note.study_id, func.sum(func.length(note.value_json)))
        .where(note.key != schema.HOLDER)
        .group_by(note.study_id),
    )
    phases = _group_rows(connection, _select_phases(ids))
    return [
        StatusRows(
            name,
            direction.name,
            states[key],
            dict(map(tuple, notes[key])),
            sum(int(length) for (length,) in lengths[key]),
            phases[key],
        )
        for key, name, direction in studies
    ]


def _select_phases(studies: Sequence[int]) -> Any:
    """Return the query of the phases of StatusRows."""
    from optuna.trial import TrialState
    from sqlalchemy import and_, case, func, select

    models = get_models()
    trial, fact, value = models.TrialModel, models.TrialUserAttributeModel, models.TrialValueModel
    ended = case((trial.state.in_([TrialState.RUNNING, TrialState.WAITING]), 0), else_=1)
    objective = case((trial.state == TrialState.COMPLETE, value.value), else_=None)
    return (
        select(
            trial.study_id,
            fact.value_json,
            func.count(),
            func.sum(ended),
            func.max(trial.number),
            func.min(objective),
            func.max(objective),
        )
        .select_from(trial)
        .outerjoin(fact, and_(fact.trial_id == trial.trial_id, fact.key == schema.PHASE))
        .outerjoin(value, and_(value.trial_id == trial.trial_id, value.objective == 0))
        .where(trial.study_id.in_(studies))
        .group_by(trial.study_id, fact.value_json)
    )


def _group_rows(connection: Any, query: Any) -> dict[int, list[Any]]:
    """Return the rows of a query by their first column, without that column."""
    grouped: dict[int, list[Any]] = defaultdict(list)
    for key, *rest in connection.execute(query):
        grouped[key].append(rest)
    return grouped


def read_origins(connection: Any) -> tuple[tuple[int, Any], ...]:
    """Read the id of each study of a database and the start of its first trial."""
    from sqlalchemy import func, select

    models = get_models()
    trial = models.TrialModel.__table__.c
    start = func.min(trial.datetime_start)
    query = select(trial.study_id, start).group_by(trial.study_id).order_by(trial.study_id)
    return tuple(map(tuple, connection.execute(query)))
