"""Studies and trials as rows of Optuna's tables. No other file uses the private tables of Optuna.

Writing: a trial is written in one transaction when it starts and in another when it ends. Optuna's
`create_new_trial(template_trial=...)` also takes one transaction, with several queries for each
parameter: 15 times as long with 48 parameters (350 against 23 ms on a busy machine). It creates a
second trial when the answer to the first call was lost. The end of a trial would take a transaction
for each of its attributes.

Reading: a status takes a few grouped queries, however many trials there are.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import decode_choice, encode_choices, find_choice
from synaptune.search.trial import Result, Trial
from synaptune.study.database import keys as schema

_OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
_STATES = {name: state for state, name in _OPTUNA_STATES.items()}


def create_trial(
    storage: Any, study: int, *, space: Space, trial: Trial, is_retry: bool
) -> tuple[int, int]:
    """Store a new trial as running.

    Args:
        storage: Optuna's storage.
        study: Optuna's identifier of the study.
        space: search space of the trial.
        trial: the trial.
        is_retry: whether an earlier attempt may have been applied. The running trial of the same
            phase and index is then used if it exists.

    Returns:
        Optuna's identifier of the trial and its number.
    """
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import insert
    from sqlalchemy.orm import Session

    facts = {**trial.facts, schema.INDEX: trial.index, schema.UNIT: list(trial.unit)}
    with Session(storage.engine) as session, session.begin():
        # The row lock makes numbers unique, and waits for an earlier attempt that the server still
        # processes.
        models.StudyModel.find_or_raise_by_id(study, session, for_update=True)
        identity = {schema.PHASE: facts.get(schema.PHASE), schema.INDEX: trial.index}
        if is_retry and (existing := _find_running(session, study, identity)) is not None:
            return existing
        row: Any = models.TrialModel(
            study_id=study, number=None, state=TrialState.RUNNING, datetime_start=datetime.now()
        )
        session.add(row)
        session.flush()
        parameters = [
            {"trial_id": row.trial_id, **_make_parameter_row(dimension, trial)}
            for dimension in space.dimensions
        ]
        session.execute(insert(models.TrialParamModel), parameters)
        session.execute(
            insert(models.TrialUserAttributeModel), _make_attribute_rows(row.trial_id, facts)
        )
        row.number = row.count_past_trials(session)
        return row.trial_id, row.number


def finish_trial(
    storage: Any, trial_id: int, *, result: Result, facts: Mapping[str, Any], is_retry: bool
) -> None:
    """Store the result of a trial.

    Args:
        storage: Optuna's storage.
        trial_id: Optuna's identifier of the trial.
        result: the result.
        facts: attributes to store.
        is_retry: whether an earlier attempt may have been applied. An ended trial is then
            unchanged.
    """
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import delete, insert
    from sqlalchemy.orm import Session

    attribute = models.TrialUserAttributeModel
    with Session(storage.engine) as session, session.begin():
        row = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        if is_retry and row.state.is_finished():
            return
        storage.check_trial_is_updatable(trial_id, row.state)
        session.execute(
            delete(attribute).where(attribute.trial_id == trial_id, attribute.key.in_(list(facts)))
        )
        session.execute(insert(attribute), _make_attribute_rows(trial_id, facts))
        state = schema.get_end_state(result)
        if state == "complete":
            assert result.objective is not None
            value, kind = models.TrialValueModel.value_to_stored_repr(result.objective)
            session.add(
                models.TrialValueModel(trial_id=trial_id, objective=0, value=value, value_type=kind)
            )
        row.state = TrialState[_OPTUNA_STATES[state]]
        row.datetime_complete = datetime.now()


def read_trials(storage: Any, study: int, where: str) -> list[Trial]:
    """Read the trials of a study, ordered by number.

    The function reads columns because Optuna's reader is slow: it creates an object for every
    parameter and its distribution twice.

    Args:
        storage: Optuna's storage.
        study: id of the study.
        where: the study, for the message.

    Raises:
        UserError: a trial that synaptune did not write.
    """
    from optuna.distributions import json_to_distribution
    from optuna.storages._rdb import models
    from sqlalchemy.orm import Session

    parse = functools.cache(json_to_distribution)
    parameter, attribute = models.TrialParamModel, models.TrialUserAttributeModel
    value = models.TrialValueModel
    with Session(storage.engine) as session:
        # The states are read first: a later write then concerns a trial that is running in this
        # list, or is missing in it.
        states = _select_rows(session, study, models.TrialModel, models.TrialModel.state)
        parameters = _select_entries(
            session,
            study,
            parameter.param_name,
            parameter.param_value,
            parameter.distribution_json,
        )
        facts = _select_entries(session, study, attribute.key, attribute.value_json)
        objectives = dict(map(tuple, _select_rows(session, study, value, value.value)))
    return [
        _build_trial(
            number,
            state.name,
            objective=objectives.get(number),
            values={
                name: decode_choice(parse(text).to_external_repr(stored))
                for name, (stored, text) in parameters[number].items()
            },
            facts={name: json.loads(text) for name, (text,) in facts[number].items()},
            where=where,
        )
        for number, state in states
    ]


class TrialDetails(NamedTuple):
    """What a study stores of its trials beside the trials themselves, by their numbers.

    Attributes:
        start_times: UTC.
        end_times: UTC, of the trials that have ended.
        curves: reported values by step, in the order of steps.
        distributions: Optuna's description of each parameter as JSON, by the parameter's name.
    """

    start_times: dict[int, datetime]
    end_times: dict[int, datetime]
    curves: dict[int, dict[int, float]]
    distributions: dict[int, dict[str, str]]


def read_details(storage: Any, study: int) -> TrialDetails:
    """Read times, reported values and distributions of the trials of a study."""
    from optuna.storages._rdb import models
    from sqlalchemy.orm import Session

    value, parameter = models.TrialIntermediateValueModel, models.TrialParamModel
    # The attributes of the model convert the times to local time; its columns are UTC.
    columns = models.TrialModel.__table__.c
    with Session(storage.engine) as session:
        times = _select_rows(
            session, study, models.TrialModel, columns.datetime_start, columns.datetime_complete
        )
        values = _select_entries(session, study, value.step, value.intermediate_value)
        distributions = _select_entries(
            session, study, parameter.param_name, parameter.distribution_json
        )
    return TrialDetails(
        {number: to_utc(start) for number, start, _ in times if start is not None},
        {number: to_utc(end) for number, _, end in times if end is not None},
        {
            number: {step: x for step, (x,) in sorted(reports.items()) if x is not None}
            for number, reports in values.items()
        },
        {
            number: {name: text for name, (text,) in texts.items()}
            for number, texts in distributions.items()
        },
    )


def _select_entries(
    session: Any, study: int, key: Any, *columns: Any
) -> dict[int, dict[Any, list[Any]]]:
    """Return the values of some columns by the value of a key column, for each trial number."""
    entries: dict[int, dict[Any, list[Any]]] = defaultdict(dict)
    for number, name, *values in _select_rows(session, study, key.class_, key, *columns):
        entries[number][name] = values
    return entries


def _select_rows(session: Any, study: int, table: Any, *columns: Any) -> Sequence[Any]:
    """Return the trial number and some columns of the rows of a study, in the written order."""
    from optuna.storages._rdb import models
    from sqlalchemy import select

    trial = models.TrialModel
    query = select(trial.number, *columns).select_from(table).where(trial.study_id == study)
    query = query if table is trial else query.join(trial)
    return session.execute(query.order_by(*table.__table__.primary_key)).all()


def to_utc(moment: datetime) -> datetime:
    """Return a stored time with its time zone."""
    return moment.replace(tzinfo=UTC)


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
    from optuna.storages._rdb import models
    from sqlalchemy import func, select, true

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
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import and_, case, func, select

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
    from optuna.storages._rdb import models
    from sqlalchemy import func, select

    trial = models.TrialModel.__table__.c
    start = func.min(trial.datetime_start)
    query = select(trial.study_id, start).group_by(trial.study_id).order_by(trial.study_id)
    return tuple(map(tuple, connection.execute(query)))


def _build_trial(
    number: int,
    state: str,
    *,
    objective: float | None,
    values: dict[str, Any],
    facts: dict[str, Any],
    where: str,
) -> Trial:
    if schema.INDEX not in facts or schema.UNIT not in facts:
        raise user_error(
            got=f"trial {number} of study {where}, which another program added",
            expected="trials that synaptune wrote",
            do="remove it (Optuna's storage API), or set study.name to start a new study",
        )
    status = _STATES.get(state, "running")
    estimate = facts.pop(schema.ESTIMATE, None)
    return Trial(
        number=number,
        index=facts.pop(schema.INDEX),
        unit=tuple(facts.pop(schema.UNIT)),
        values=values,
        state=status,  # type: ignore[arg-type]
        objective=objective if status == "complete" else None,
        estimate=None if estimate is None else float(estimate),
        reason=facts.get(schema.REASON),
        facts=facts,
    )


def _find_running(session: Any, study: int, facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return identifier and number of the latest running trial with these facts, or None."""
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import select

    trial, fact = models.TrialModel, models.TrialUserAttributeModel
    matches = (
        select(fact.trial_id).where(fact.key == name, fact.value_json == json.dumps(value))
        for name, value in facts.items()
    )
    row = session.execute(
        select(trial.trial_id, trial.number)
        .where(trial.study_id == study, trial.state == TrialState.RUNNING)
        .where(*(trial.trial_id.in_(match) for match in matches))
        .order_by(trial.trial_id.desc())
    ).first()
    return None if row is None else (row[0], row[1])


def _make_attribute_rows(trial_id: int, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)}
        for name, value in facts.items()
    ]


def _make_parameter_row(dimension: Dimension, trial: Trial) -> dict[str, Any]:
    from optuna.distributions import distribution_to_json

    value = trial.values[dimension.name]
    is_choice = dimension.scale == "categorical"
    stored = find_choice(dimension.choices, value) if is_choice else value
    assert stored is not None
    return {
        "param_name": dimension.name,
        "param_value": float(stored),
        "distribution_json": distribution_to_json(make_distribution(dimension)),
    }


def make_distribution(dimension: Dimension):
    """Return Optuna's distribution of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.scale == "categorical":
        return CategoricalDistribution(encode_choices(dimension.choices))
    is_log = dimension.scale == "log"
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), is_log, dimension.step)
    return FloatDistribution(float(dimension.low), float(dimension.high), is_log)


def filter_phase(trials: Iterable[Trial], phase: str) -> list[Trial]:
    """Return the trials of a phase, ordered by index."""
    return sorted(
        (trial for trial in trials if trial.facts.get(schema.PHASE) == phase),
        key=lambda trial: trial.index,
    )
