"""The objectives of a study as they may be ranked: under a hybrid objective all of them by what it is at the end.

What was told to the optimizer is another matter, and stays in the record as it was read (replay.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from synaptune.core.errors import UserError
from synaptune.search.objective.score import (
    Baseline,
    CompositeWeights,
    ObjectiveConfig,
    ParetoAxes,
    score,
    with_baseline,
)
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import REFERENCE, StudySnapshot


def rescore_study(snapshot: StudySnapshot, by: StudySnapshot | None = None) -> StudySnapshot:
    """The record with objectives that can be compared; by: the study whose objective and last generation count, null is its own.

    A complete trial without the metrics that the last score needs has no objective: it cannot be ranked.
    """
    judge = by or snapshot
    if judge.configuration.get("objective.name") != "hybrid":
        return snapshot
    config = _read_objective(judge)
    last = max(
        (int(trial.facts.get(schema.GENERATION, 0)) for trial in judge.search_trials), default=0
    )
    return replace(
        snapshot, trials=[_rescore_trial(trial, config, last) for trial in snapshot.trials]
    )


def _rescore_trial(trial: Trial, config: ObjectiveConfig, generation: int) -> Trial:
    """A trial by the objective of a generation; the runs of a test split and the reference have an objective of their own."""
    if (
        trial.state != "complete"
        or trial.facts.get("test")
        or trial.facts.get(schema.PHASE) == REFERENCE
    ):
        return trial
    try:
        return replace(trial, objective=score(config, trial.facts, generation))
    except (KeyError, UserError):
        return replace(trial, objective=None)


def _read_objective(snapshot: StudySnapshot) -> ObjectiveConfig:
    """The objective of a study, with the baseline that was given or else measured."""
    stored = snapshot.configuration
    config = ObjectiveConfig(
        **_select_stored(stored, "objective", ("name", "switch", "fraction")),
        weights=CompositeWeights(
            **_select_stored(stored, "objective.weights", vars(CompositeWeights()))
        ),
        axes=ParetoAxes(**_select_stored(stored, "objective.axes", vars(ParetoAxes()))),
        baseline=Baseline(**_select_stored(stored, "objective.baseline", vars(Baseline()))),
    )
    reference = next(
        (trial for trial in snapshot.get_phase_trials(REFERENCE) if trial.state == "complete"), None
    )
    return (
        config
        if config.baseline.metrics or reference is None
        else with_baseline(config, reference.facts)
    )


def _select_stored(stored: Mapping[str, Any], group: str, names: Any) -> dict[str, Any]:
    return {name: value for name in names if (value := stored.get(f"{group}.{name}")) is not None}
