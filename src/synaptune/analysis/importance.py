"""How much of the spread of the loss each parameter carries, by two surrogates, beside the ablation's own answer.

fANOVA (Hutter, Hoos and Leyton-Brown 2014) shares out the variance of a random forest over the whole space; PED-ANOVA
(Watanabe et al. 2023, arXiv:2304.10255) asks which parameters tell the best tenth from the rest. Both are Optuna's. Both see the
points where the search went, which is not everywhere: they rank, the ablation measures. A loss that is farther above the median than
_CLIP_FACTOR times the best is below it counts as if it were there: a user's penalty of 1e200 would be all the variance there is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from synaptune.analysis.results import Importance
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

# Complete trials that the surrogates see [trial]; chosen: the forest takes seconds.
MAX_TRIALS = 400
_MIN_TRIALS = 4  # complete trials that a surrogate needs
_CLIP_FACTOR = 10.0  # distances of the best from the median


def compute_importances(
    snapshot: StudySnapshot, space: Space, trials: Sequence[Trial], *, seed: int = 0
) -> list[Importance]:
    """Both shares of each parameter, in the space's order; null where a surrogate has nothing to say. seed: of the forest."""
    complete = [trial for trial in trials if snapshot.get_complete_loss(trial) is not None]
    complete = (
        complete[:: -(-len(complete) // MAX_TRIALS)] if complete else []
    )  # evenly over the search: early and late points alike
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
    distributions = {dimension.name: make_distribution(dimension) for dimension in space.dimensions}
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=dict(trial.values), distributions=distributions, value=loss
            )  # type: ignore[arg-type]
            for trial, loss in zip(complete, losses, strict=True)
        ]
    )
    # Parameters that never vary have no share, and the surrogates refuse them.
    varying = [name for name in space.names if len({trial.values[name] for trial in complete}) > 1]
    shares = []
    for evaluator in (
        FanovaImportanceEvaluator(seed=seed),
        PedAnovaImportanceEvaluator(evaluate_on_local=False),
    ):
        try:
            shares.append(get_param_importances(study, evaluator=evaluator, params=varying))
        except (
            RuntimeError,
            ValueError,
            AssertionError,
        ):  # all losses alike to it, or too large for its sums of squares
            shares.append({})
    fanova, ped = (
        {name: float(share) for name, share in found.items() if math.isfinite(share)}
        for found in shares
    )
    return [Importance(name, fanova.get(name), ped.get(name)) for name in space.names]


def _clip_losses(losses: Sequence[float]) -> list[float]:
    """Losses without what lies far above all others; as they are where more than half are alike."""
    middle = statistics.median(losses)
    end = middle + _CLIP_FACTOR * (middle - min(losses))
    return [min(loss, end) for loss in losses] if end > middle else list(losses)
