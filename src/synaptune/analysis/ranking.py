"""Comparable objectives of the trials of a study.

Under a hybrid objective every trial is scored by the objective of the last generation. The
objectives that the optimizer received stay unchanged in the snapshot; replay.py needs them.
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
    """Return the snapshot with comparable objectives.

    A complete trial without the metrics of the last score has no objective, because it cannot be
    ranked.

    Args:
        snapshot: the study to score.
        by: the study whose objective and last generation are used; None means `snapshot`.
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
    """Score a trial by the objective of a generation.

    Runs on the test split, the reference run and imported trials keep their own objective.
    """
    if (
        trial.state != "complete"
        or trial.facts.get("test")
        or trial.facts.get(schema.PHASE) in (REFERENCE, schema.IMPORTED)
    ):
        return trial
    try:
        return replace(trial, objective=score(config, trial.facts, generation))
    except (KeyError, UserError):
        return replace(trial, objective=None)


def _read_objective(snapshot: StudySnapshot) -> ObjectiveConfig:
    """Read the objective of a study with its configured or else its measured baseline."""
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
