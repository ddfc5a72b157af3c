"""Reading and writing of trials as rows of Optuna's tables, each trial in one transaction.

Optuna's own calls use one transaction for each attribute and two queries for each parameter. They
also create a trial twice if the answer to its creation is lost.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.study.database import keys as schema

# Attributes that only the study and the search write; some of them identify a trial.
_RESERVED_NAMES = frozenset(
    {
        *(
            schema.PHASE,
            schema.INDEX,
            schema.UNIT,
            schema.GENERATION,
            schema.SEED,
            schema.ATTEMPTS,
            schema.ESTIMATE,
        ),
        *(
            schema.SECONDS,
            schema.FAILURE,
            schema.REASON,
            schema.TRACEBACK,
            "config_fingerprint",
            "code_version",
        ),
    }
)


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
        if is_retry:
            found = _find_running(
                session, study, {schema.PHASE: facts.get(schema.PHASE), schema.INDEX: trial.index}
            )
            if found is not None:
                return found
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
        state = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }[get_end_state(result)]
        if state is TrialState.COMPLETE:
            assert result.objective is not None
            value, kind = models.TrialValueModel.value_to_stored_repr(result.objective)
            session.add(
                models.TrialValueModel(trial_id=trial_id, objective=0, value=value, value_type=kind)
            )
        row.state = state
        row.datetime_complete = datetime.now()


def get_end_state(result: Result) -> str:
    """Return the final state of a trial with this result: `complete`, `pruned` or `failed`."""
    if result.cause is not None:
        return "failed"
    return "pruned" if result.pruned else "complete"


def collect_facts(result: Result) -> dict[str, Any]:
    """Return the facts that a result adds to its trial.

    A non-finite number becomes a string, because JSON has no such number. Metrics can come from any
    program: a metric that is not a number is left out, and a reserved name gets the prefix `run.`.
    """
    facts = {name: value for name, value in result.facts.items() if name not in _RESERVED_NAMES}
    metrics: Any = result.metrics
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        if isinstance(value, int | float):
            facts[f"run.{name}" if name in _RESERVED_NAMES else name] = value
    facts[schema.SECONDS] = result.seconds
    cause = result.cause
    if cause is not None:
        facts |= {
            schema.FAILURE: cause.kind,
            schema.REASON: cause.reason,
            schema.TRACEBACK: cause.trace,
        }
    elif result.pruned and result.estimate is not None:
        facts[schema.ESTIMATE] = result.estimate
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }


def read_trials(storage: Any, study: int, where: str) -> list[Trial]:
    """Read the trials of a study, ordered by number.

    The function reads columns because Optuna's reader is slow: it creates an object for every
    parameter and its distribution twice.

    Args:
        storage: Optuna's storage.
        study: Optuna's identifier of the study.
        where: name of the study, for messages.

    Raises:
        UserError: another program added a trial.
    """
    from optuna.distributions import json_to_distribution
    from optuna.storages._rdb import models
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    external = functools.cache(lambda text: json_to_distribution(text).to_external_repr)
    trial, parameter, attribute, value = (
        models.TrialModel,
        models.TrialParamModel,
        models.TrialUserAttributeModel,
        models.TrialValueModel,
    )
    with Session(storage.engine) as session:
        # Read first: later writes then belong to a trial that is running here, or to an unknown
        # one.
        heads = session.execute(
            select(trial.trial_id, trial.number, trial.state)
            .where(trial.study_id == study)
            .order_by(trial.trial_id)
        ).all()

        def columns(*chosen: Any, table: Any, order: Any) -> Iterable[Any]:
            return session.execute(
                select(table.trial_id, *chosen)
                .join(trial)
                .where(trial.study_id == study)
                .order_by(order)
            )

        values: dict[int, dict[str, Any]] = {key: {} for key, _, _ in heads}
        facts: dict[int, dict[str, Any]] = {key: {} for key, _, _ in heads}
        for key, name, stored, text in columns(
            parameter.param_name,
            parameter.param_value,
            parameter.distribution_json,
            table=parameter,
            order=parameter.param_id,
        ):
            values.setdefault(key, {})[name] = external(text)(stored)
        for key, name, text in columns(
            attribute.key,
            attribute.value_json,
            table=attribute,
            order=attribute.trial_user_attribute_id,
        ):
            facts.setdefault(key, {})[name] = json.loads(text)
        objectives = dict(map(tuple, columns(value.value, table=value, order=value.trial_value_id)))
    return [
        _build_trial(
            number,
            state.name,
            objective=objectives.get(key),
            values=values[key],
            facts=facts[key],
            where=where,
        )
        for key, number, state in heads
    ]


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
            do="remove it (Optuna's storage API), or set study.name to begin anew",
        )
    ours = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}.get(state, "running")
    estimate = facts.pop(schema.ESTIMATE, None)
    return Trial(
        number=number,
        index=facts.pop(schema.INDEX),
        unit=tuple(facts.pop(schema.UNIT)),
        values=values,
        state=ours,  # type: ignore[arg-type]
        objective=objective if ours == "complete" else None,
        estimate=None if estimate is None else float(estimate),
        reason=facts.get(schema.REASON),
        facts=facts,
    )


def _find_running(session: Any, study: int, facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return identifier and number of the latest running trial with these facts, or None."""
    from optuna.storages._rdb import models
    from optuna.trial import TrialState

    attribute = models.TrialUserAttributeModel
    query = session.query(models.TrialModel.trial_id, models.TrialModel.number)
    query = query.filter(
        models.TrialModel.study_id == study, models.TrialModel.state == TrialState.RUNNING
    )
    for name, value in facts.items():
        query = query.filter(
            models.TrialModel.trial_id.in_(
                session.query(attribute.trial_id).filter(
                    attribute.key == name, attribute.value_json == json.dumps(value)
                )
            )
        )
    found = query.order_by(models.TrialModel.trial_id.desc()).first()
    return None if found is None else (found[0], found[1])


def _make_attribute_rows(trial_id: int, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)}
        for name, value in facts.items()
    ]


def _make_parameter_row(dimension: Dimension, trial: Trial) -> dict[str, Any]:
    from optuna.distributions import distribution_to_json

    distribution: Any = make_distribution(dimension)
    return {
        "param_name": dimension.name,
        "param_value": distribution.to_internal_repr(trial.values[dimension.name]),
        "distribution_json": distribution_to_json(distribution),
    }


def make_distribution(dimension: Dimension):
    """Return Optuna's distribution of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.scale == "categorical":
        return CategoricalDistribution(dimension.choices)
    kind, number = (IntDistribution, int) if dimension.integer else (FloatDistribution, float)
    return kind(number(dimension.low), number(dimension.high), log=dimension.scale == "log")  # type: ignore[arg-type]


def filter_phase(trials: Iterable[Trial], phase: str) -> list[Trial]:
    """Return the trials of a phase, ordered by index."""
    return sorted(
        (trial for trial in trials if trial.facts.get(schema.PHASE) == phase),
        key=lambda trial: trial.index,
    )
