"""Importance of each parameter for the loss, by two surrogate models.

fANOVA (Hutter, Hoos and Leyton-Brown 2014) decomposes the variance of a random forest over the
whole space. PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) measures which parameters separate
the best tenth of the trials from the rest. Both are Optuna's implementations. Both see only the
points that the search visited, so they rank the parameters; the ablation measures their worth.

A loss is clipped at a distance above the median of _CLIP_FACTOR times the distance of the best loss
below the median. Otherwise a penalty of 1e200 would make up the whole variance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from synaptune.analysis.results import Importance
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import find_choice
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

# Complete trials that the surrogates see [trial]; chosen: the forest takes seconds.
MAX_TRIALS = 400
_MIN_TRIALS = 4  # complete trials that a surrogate needs
_CLIP_FACTOR = 10.0  # in units of the distance of the best loss from the median


def compute_importances(
    snapshot: StudySnapshot, space: Space, trials: Sequence[Trial], *, seed: int = 0
) -> list[Importance]:
    """Compute both importances of each parameter.

    Args:
        snapshot: the study.
        space: the searched parameters.
        trials: the trials of the search.
        seed: seed of the random forest.

    Returns:
        The importances in the order of the space; a share is None if its surrogate cannot be
        evaluated.
    """
    complete = [trial for trial in trials if snapshot.get_complete_loss(trial) is not None]
    # The selected trials are spread evenly over the search.
    complete = complete[:: -(-len(complete) // MAX_TRIALS)] if complete else []
    if len(complete) < _MIN_TRIALS or len({trial.objective for trial in complete}) < 2:
        return [Importance(name, None, None) for name in space.names]
    import optuna
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    from synaptune.study.database.rows import make_distribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    losses = _clip_losses([snapshot.get_complete_loss(trial) or 0.0 for trial in complete])
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        # The surrogates see the index of a choice, so that a choice can be any value.
        dimension.name: make_distribution(_index_choices(dimension))
        for dimension in space.dimensions
    }
    points = [
        {dimension.name: _to_number(dimension, trial) for dimension in space.dimensions}
        for trial in complete
    ]
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=distributions, value=loss)
            for params, loss in zip(points, losses, strict=True)
        ]
    )
    # The surrogates refuse parameters that do not vary.
    varying = [name for name in space.names if len({point[name] for point in points}) > 1]
    shares = []
    for evaluator in (
        FanovaImportanceEvaluator(seed=seed),
        PedAnovaImportanceEvaluator(evaluate_on_local=False),
    ):
        try:
            shares.append(get_param_importances(study, evaluator=evaluator, params=varying))
        # The losses are all equal to the surrogate, or too large for its sums of squares.
        except (RuntimeError, ValueError, AssertionError):
            shares.append({})
    fanova, ped = (
        {name: float(share) for name, share in result.items() if math.isfinite(share)}
        for result in shares
    )
    return [Importance(name, fanova.get(name), ped.get(name)) for name in space.names]


def _index_choices(dimension: Dimension) -> Dimension:
    """Return a dimension whose choices are the indices of the choices."""
    if dimension.scale != "categorical":
        return dimension
    return Dimension(dimension.name, "categorical", choices=tuple(range(len(dimension.choices))))


def _to_number(dimension: Dimension, trial: Trial) -> Any:
    """Return the value of a parameter in a trial; a choice is replaced by its index."""
    value = trial.values[dimension.name]
    is_choice = dimension.scale == "categorical"
    return find_choice(dimension.choices, value) if is_choice else value


def _clip_losses(losses: Sequence[float]) -> list[float]:
    """Clip losses far above the median; unchanged if the median equals the best loss."""
    median = statistics.median(losses)
    limit = median + _CLIP_FACTOR * (median - min(losses))
    return [min(loss, limit) for loss in losses] if limit > median else list(losses)
