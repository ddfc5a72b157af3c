"""Trials as rows of Optuna's tables.

Writing: a trial is written in one transaction when it starts and in another when it ends. Optuna's
`create_new_trial(template_trial=...)` also takes one transaction, with several queries for each
parameter: 15 times as long with 48 parameters (350 against 23 ms on a busy machine). It creates a
second trial when the answer to the first call was lost. The end of a trial would take a transaction
for each of its attributes.
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
from synaptune.search.trial import Result, Trial, TrialExistsError
from synaptune.study.database import keys as schema

_OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
_STATES = {name: state for state, name in _OPTUNA_STATES.items()}


def get_models() -> Any:
    """Return the classes of Optuna's tables, a private module of Optuna."""
    from optuna.storages._rdb import models

    return models


def create_trial(
    storage: Any, study: int, *, space: Space, trial: Trial, is_retry: bool
) -> tuple[int, int]:
    """Store a new trial as running.

    If processes share the study (the trial has the fact PROCESS), its index must be free.

    Args:
        storage: Optuna's storage.
        study: Optuna's identifier of the study.
        space: search space of the trial.
        trial: the trial.
        is_retry: whether an earlier attempt may have been applied. The running trial of the same
            phase and index is then used if it exists.

    Returns:
        Optuna's identifier of the trial and its number.

    Raises:
        TrialExistsError: another process has stored a trial of the same phase and index.
    """
    from optuna.trial import TrialState
    from sqlalchemy.orm import Session

    models = get_models()
    facts = {**trial.facts, schema.INDEX: trial.index, schema.UNIT: list(trial.unit)}
    with Session(storage.engine) as session, session.begin():
        # The row lock makes numbers unique, and waits for an earlier attempt that the server still
        # processes. In SQLite the first insert acquires the lock.
        models.StudyModel.find_or_raise_by_id(study, session, for_update=True)
        identity = {schema.PHASE: facts.get(schema.PHASE), schema.INDEX: trial.index}
        if is_retry:
            own = {name: facts[name] for name in (schema.PROCESS,) if name in facts}
            existing = _find_trial(session, study, identity | own, TrialState.RUNNING)
            if existing is not None:
                return existing
        row: Any = models.TrialModel(
            study_id=study, number=None, state=TrialState.RUNNING, datetime_start=datetime.now()
        )
        session.add(row)
        session.flush()
        row.number = row.count_past_trials(session)
        # Indexes are stored in order: one that is taken has more than this many trials before it.
        may_be_taken = schema.PROCESS in facts and row.number > trial.index
        if may_be_taken and _find_trial(session, study, identity) is not None:
            raise TrialExistsError(identity)
        _add_details(session, row.trial_id, space, trial=trial, facts=facts)
        return row.trial_id, row.number


def _add_details(
    session: Any, trial_id: int, space: Space, *, trial: Trial, facts: Mapping[str, Any]
) -> None:
    from sqlalchemy import insert

    models = get_models()
    parameters = [
        {"trial_id": trial_id, **_make_parameter_row(dimension, trial)}
        for dimension in space.dimensions
    ]
    session.execute(insert(models.TrialParamModel), parameters)
    session.execute(insert(models.TrialUserAttributeModel), _make_attribute_rows(trial_id, facts))


def create_finished_trials(
    storage: Any, study: int, *, space: Space, trials: Sequence[Trial]
) -> None:
    """Store imported trials, which have ended, and their number as a note, in one transaction.

    Their indexes continue those of the imported trials that the study has.

    Args:
        storage: Optuna's storage.
        study: Optuna's identifier of the study.
        space: search space of the trials.
        trials: the trials, with indexes from 0 on.
    """
    from optuna.trial import TrialState
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    models = get_models()
    note = models.StudyUserAttributeModel
    with Session(storage.engine) as session, session.begin():
        models.StudyModel.find_or_raise_by_id(study, session, for_update=True)
        matches = note.study_id == study, note.key == schema.IMPORTED
        stored = session.execute(select(note).where(*matches)).scalar_one_or_none()
        first = 0 if stored is None else int(json.loads(stored.value_json))
        for trial in trials:  # without times, which are those of the study's own runs
            state = TrialState[_OPTUNA_STATES[trial.state]]
            row: Any = models.TrialModel(study_id=study, number=None, state=state)
            session.add(row)
            session.flush()
            row.number = row.count_past_trials(session)
            if trial.objective is not None:
                session.add(_make_value_row(row.trial_id, trial.objective))
            facts = {**trial.facts, schema.INDEX: first + trial.index}
            facts |= {schema.UNIT: list(trial.unit)}
            facts |= {} if trial.estimate is None else {schema.ESTIMATE: trial.estimate}
            _add_details(session, row.trial_id, space, trial=trial, facts=facts)
        count = json.dumps(first + len(trials))
        if stored is None:
            session.add(note(study_id=study, key=schema.IMPORTED, value_json=count))
        else:
            stored.value_json = count


def _make_value_row(trial_id: int, objective: float) -> Any:
    models = get_models()
    value, kind = models.TrialValueModel.value_to_stored_repr(objective)
    return models.TrialValueModel(trial_id=trial_id, objective=0, value=value, value_type=kind)


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
    from optuna.trial import TrialState
    from sqlalchemy import delete, insert
    from sqlalchemy.orm import Session

    models = get_models()
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
            session.add(_make_value_row(trial_id, result.objective))
        row.state = TrialState[_OPTUNA_STATES[state]]
        row.datetime_complete = datetime.now()


def rename_study_row(storage: Any, study: int, name: str) -> None:
    """Give a study another name, for which Optuna has no function."""
    from sqlalchemy.orm import Session

    models = get_models()
    with Session(storage.engine) as session, session.begin():
        models.StudyModel.find_or_raise_by_id(study, session).study_name = name


def read_trials(storage: Any, study: int, where: str, first: int = 0) -> list[Trial]:
    """Read the trials of a study, ordered by number.

    The function reads columns because Optuna's reader is slow: it creates an object for every
    parameter and its distribution twice.

    Args:
        storage: Optuna's storage.
        study: id of the study.
        where: the study, for the message.
        first: smallest number of a trial to read.

    Raises:
        UserError: a trial that synaptune did not write.
    """
    from optuna.distributions import json_to_distribution
    from sqlalchemy.orm import Session

    models = get_models()
    parse = functools.cache(json_to_distribution)
    parameter, attribute = models.TrialParamModel, models.TrialUserAttributeModel
    value = models.TrialValueModel
    with Session(storage.engine) as session:
        # The states are read first: a later write then concerns a trial that is running in this
        # list, or is missing in it.
        states = _select_rows(
            session, study, models.TrialModel, models.TrialModel.state, first=first
        )
        parameters = _select_entries(
            session,
            study,
            parameter.param_name,
            parameter.param_value,
            parameter.distribution_json,
            first=first,
        )
        facts = _select_entries(session, study, attribute.key, attribute.value_json, first=first)
        objectives = dict(map(tuple, _select_rows(session, study, value, value.value, first=first)))
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


def read_notes(storage: Any, study: int, prefix: str) -> dict[str, Any]:
    """Read the notes of a study whose keys have a prefix; quick, since a search asks often."""
    from sqlalchemy import select

    columns = get_models().StudyUserAttributeModel.__table__.c
    query = select(columns.key, columns.value_json).where(columns.study_id == study)
    if prefix:
        query = query.where(columns.key.startswith(prefix, autoescape=True))
    with storage.engine.connect() as connection:
        return {key: json.loads(text) for key, text in connection.execute(query)}


def read_details(storage: Any, study: int) -> TrialDetails:
    """Read times, reported values and distributions of the trials of a study."""
    from sqlalchemy.orm import Session

    models = get_models()
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
    session: Any, study: int, key: Any, *columns: Any, first: int = 0
) -> dict[int, dict[Any, list[Any]]]:
    """Return the values of some columns by the value of a key column, for each trial number."""
    entries: dict[int, dict[Any, list[Any]]] = defaultdict(dict)
    rows = _select_rows(session, study, key.class_, key, *columns, first=first)
    for number, name, *values in rows:
        entries[number][name] = values
    return entries


def _select_rows(
    session: Any, study: int, table: Any, *columns: Any, first: int = 0
) -> Sequence[Any]:
    """Return the trial number and some columns of the rows of a study, in the written order."""
    from sqlalchemy import select

    models = get_models()
    trial = models.TrialModel
    query = select(trial.number, *columns).select_from(table).where(trial.study_id == study)
    query = query if table is trial else query.join(trial)
    query = query.where(trial.number >= first) if first else query
    return session.execute(query.order_by(*table.__table__.primary_key)).all()


def to_utc(moment: datetime) -> datetime:
    """Return a stored time with its time zone."""
    return moment.replace(tzinfo=UTC)


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


def _find_trial(
    session: Any, study: int, facts: Mapping[str, Any], state: Any = None
) -> tuple[int, int] | None:
    """Return identifier and number of the latest trial with these facts and state, or None."""
    from sqlalchemy import select, true

    models = get_models()
    trial, fact = models.TrialModel, models.TrialUserAttributeModel
    matches = (
        select(fact.trial_id).where(fact.key == name, fact.value_json == json.dumps(value))
        for name, value in facts.items()
    )
    row = session.execute(
        select(trial.trial_id, trial.number)
        .where(trial.study_id == study, true() if state is None else trial.state == state)
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
