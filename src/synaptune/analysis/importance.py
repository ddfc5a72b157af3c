"""Importance of each parameter for the loss, by two surrogate models.

fANOVA (Hutter, Hoos and Leyton-Brown 2014) decomposes the variance of a random forest over the
whole space. PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) measures which parameters separate
the best tenth of the trials from the rest. Both are Optuna's implementations. Both see only the
points that the search visited, so they rank the parameters; the ablation measures their worth.

A share without its error looks certain. Each surrogate is therefore fitted again to resampled
trials, which gives the spread of its shares, and to shuffled losses, which gives the largest share
that no effect at all has (floor).

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
# Refits to resampled trials; chosen: their range covers most of the distribution.
_REFITS = 8
_SHUFFLES = 19  # refits to shuffled losses; chosen: the largest of 19 is exceeded by 5 %
_REFIT_TRIALS, _REFIT_TREES = 100, 8  # of a refit; chosen: all refits take seconds
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
    losses = _clip_losses([snapshot.get_complete_loss(trial) or 0.0 for trial in complete])
    surrogates = _Surrogates(space, complete)
    fanova, ped = surrogates.fit(losses, seed=seed)
    fanova_spread, ped_spread = _measure_spread(surrogates, losses, seed)
    fanova_floor, ped_floor = _measure_floor(surrogates, losses, seed)
    if max(ped.values(), default=0.0) <= ped_floor:
        ped, ped_spread = {}, {}
    return [
        Importance(
            name,
            fanova.get(name),
            ped.get(name),
            fanova_spread.get(name),
            ped_spread.get(name),
            fanova_floor if fanova else None,
        )
        for name in space.names
    ]


class _Surrogates:
    """The two surrogate models of some trials, to fit to their losses or to others."""

    def __init__(self, space: Space, trials: Sequence[Trial]) -> None:
        from synaptune.study.database.rows import make_distribution

        self._distributions: dict[str, Any] = {
            # The surrogates see the index of a choice, so that a choice can be any value.
            dimension.name: make_distribution(_index_choices(dimension))
            for dimension in space.dimensions
        }
        self._points = [
            {dimension.name: _to_number(dimension, trial) for dimension in space.dimensions}
            for trial in trials
        ]

    def fit(
        self,
        losses: Sequence[float],
        *,
        seed: int,
        trees: int = 64,
        chosen: Sequence[int] | None = None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the shares of fANOVA and of PED-ANOVA by name; empty where one cannot be fitted.

        Args:
            losses: loss of each trial.
            seed: seed of the random forest.
            trees: number of its trees.
            chosen: positions of the trials to fit to; None means all.
        """
        import optuna
        from optuna.importance import (
            FanovaImportanceEvaluator,
            PedAnovaImportanceEvaluator,
            get_param_importances,
        )

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        positions = range(len(losses)) if chosen is None else chosen
        points = [self._points[position] for position in positions]
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=self._points[position],
                    distributions=self._distributions,
                    value=losses[position],
                )
                for position in positions
            ]
        )
        # The surrogates refuse parameters that do not vary.
        names = [name for name in self._distributions if len({p[name] for p in points}) > 1]
        shares = []
        for evaluator in (
            FanovaImportanceEvaluator(seed=seed, n_trees=trees),
            PedAnovaImportanceEvaluator(evaluate_on_local=False),
        ):
            try:
                result = get_param_importances(study, evaluator=evaluator, params=names)
            # The losses are all equal to the surrogate, or too large for its sums of squares.
            except (RuntimeError, ValueError, AssertionError):
                result = {}
            shares.append({name: float(v) for name, v in result.items() if math.isfinite(v)})
        return shares[0], shares[1]


def _measure_spread(
    surrogates: _Surrogates, losses: Sequence[float], seed: int
) -> list[dict[str, tuple[float, float]]]:
    """Measure the smallest and the largest share of each parameter over refits."""
    import numpy as np

    rng, count = np.random.default_rng(seed), min(len(losses), _REFIT_TRIALS)
    fits = []
    for refit in range(_REFITS):
        chosen = rng.integers(len(losses), size=count).tolist()
        fits.append(surrogates.fit(losses, seed=refit, trees=_REFIT_TREES, chosen=chosen))
    spreads = []
    for shares in zip(*fits, strict=True):
        names = {name for fit in shares for name in fit}
        values = {name: [fit[name] for fit in shares if name in fit] for name in names}
        spreads.append({name: (min(found), max(found)) for name, found in values.items()})
    return spreads


def _measure_floor(
    surrogates: _Surrogates, losses: Sequence[float], seed: int
) -> tuple[float, float]:
    """Measure the largest share of any parameter over fits to shuffled losses."""
    import numpy as np

    rng, count = np.random.default_rng(seed), min(len(losses), _REFIT_TRIALS)
    largest = [0.0, 0.0]
    for shuffle in range(_SHUFFLES):
        shuffled = rng.permutation(losses).tolist()
        chosen = rng.choice(len(losses), count, replace=False).tolist()
        shares = surrogates.fit(shuffled, seed=shuffle, trees=_REFIT_TREES, chosen=chosen)
        largest = [
            max(found, *fit.values()) if fit else found
            for found, fit in zip(largest, shares, strict=True)
        ]
    return largest[0], largest[1]


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
