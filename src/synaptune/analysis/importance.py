"""Importance of each parameter for the loss, by two surrogate models.

fANOVA (Hutter, Hoos and Leyton-Brown 2014) decomposes the variance of a random forest over the
whole space. PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) measures which parameters separate
the best tenth of the trials from the rest. Both are Optuna's implementations. Both see only the
points that the search visited, so they rank the parameters; the ablation measures their worth.

A share without its error looks certain. Each surrogate is therefore fitted again to resampled
trials, which gives the spread of its shares, and to shuffled losses. These give the largest share
of fANOVA that no effect at all has (floor), and show whether PED-ANOVA has anything to rank.

A loss is clipped at a distance above the median of _CLIP_FACTOR times the distance of the best loss
below the median. Otherwise a penalty of 1e200 would make up the whole variance.
"""

from __future__ import annotations

import math
import statistics
import warnings
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
    fanova, ped = surrogates.fit_fanova(losses, seed=seed), surrogates.fit_ped_anova(losses)
    fanova_spread, ped_spread = _measure_spread(surrogates, losses, seed)
    floor = _measure_floor(surrogates, losses, seed)
    if not surrogates.separates(losses, seed):
        ped, ped_spread = {}, {}
    return [
        Importance(
            name,
            fanova.get(name),
            ped.get(name),
            fanova_spread.get(name),
            ped_spread.get(name),
            floor if fanova else None,
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

    def fit_fanova(
        self,
        losses: Sequence[float],
        *,
        seed: int,
        trees: int = 64,
        chosen: Sequence[int] | None = None,
    ) -> dict[str, float]:
        """Return the shares of fANOVA by name; empty where it cannot be fitted.

        Args:
            losses: loss of each trial.
            seed: seed of the random forest.
            trees: number of its trees.
            chosen: positions of the trials to fit to; None means all.
        """
        from optuna.importance import FanovaImportanceEvaluator

        return self._evaluate(FanovaImportanceEvaluator(seed=seed, n_trees=trees), losses, chosen)

    def fit_ped_anova(
        self,
        losses: Sequence[float],
        *,
        chosen: Sequence[int] | None = None,
        normalize: bool = True,
    ) -> dict[str, float]:
        """Return the shares of PED-ANOVA by name, or without `normalize` its divergences."""
        from optuna.importance import PedAnovaImportanceEvaluator

        evaluator = PedAnovaImportanceEvaluator(evaluate_on_local=False)
        return self._evaluate(evaluator, losses, chosen, normalize=normalize)

    def separates(self, losses: Sequence[float], seed: int) -> bool:
        """Return whether any parameter separates the best trials more than with shuffled losses.

        The divergences of PED-ANOVA are compared, not the shares, whose sum is 1 in either case.
        """
        import numpy as np

        rng = np.random.default_rng(seed)

        def measure(values: Sequence[float]) -> float:
            return max(self.fit_ped_anova(values, normalize=False).values(), default=0.0)

        shuffled = (measure(rng.permutation(losses).tolist()) for _ in range(_SHUFFLES))
        return measure(losses) > max(shuffled)

    def _evaluate(
        self,
        evaluator: Any,
        losses: Sequence[float],
        chosen: Sequence[int] | None,
        *,
        normalize: bool = True,
    ) -> dict[str, float]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        positions = range(len(losses)) if chosen is None else chosen
        points = [self._points[position] for position in positions]
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=point, distributions=self._distributions, value=losses[position]
                )
                for position, point in zip(positions, points, strict=True)
            ]
        )
        # The surrogates refuse parameters that do not vary.
        names = [name for name in self._distributions if len({p[name] for p in points}) > 1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `normalize` is experimental
                found = optuna.importance.get_param_importances(
                    study, evaluator=evaluator, params=names, normalize=normalize
                )
        # The losses are all equal to the surrogate, or too large for its sums of squares.
        except (RuntimeError, ValueError, AssertionError):
            return {}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _measure_spread(
    surrogates: _Surrogates, losses: Sequence[float], seed: int
) -> list[dict[str, tuple[float, float]]]:
    """Measure the smallest and the largest share of each parameter over refits."""
    import numpy as np

    rng, count = np.random.default_rng(seed), min(len(losses), _REFIT_TRIALS)
    fits = []
    for refit in range(_REFITS):
        chosen = rng.integers(len(losses), size=count).tolist()
        fits.append(
            (
                surrogates.fit_fanova(losses, seed=refit, trees=_REFIT_TREES, chosen=chosen),
                surrogates.fit_ped_anova(losses, chosen=chosen),
            )
        )
    spreads = []
    for shares in zip(*fits, strict=True):
        names = {name for fit in shares for name in fit}
        values = {name: [fit[name] for fit in shares if name in fit] for name in names}
        spreads.append({name: (min(found), max(found)) for name, found in values.items()})
    return spreads


def _measure_floor(surrogates: _Surrogates, losses: Sequence[float], seed: int) -> float:
    """Measure the largest share of fANOVA of any parameter over fits to shuffled losses."""
    import numpy as np

    rng, count = np.random.default_rng(seed), min(len(losses), _REFIT_TRIALS)
    largest = 0.0
    for shuffle in range(_SHUFFLES):
        shuffled = rng.permutation(losses).tolist()
        chosen = rng.choice(len(losses), count, replace=False).tolist()
        shares = surrogates.fit_fanova(shuffled, seed=shuffle, trees=_REFIT_TREES, chosen=chosen)
        largest = max([largest, *shares.values()])
    return largest


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
