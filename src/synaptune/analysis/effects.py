"""Whether the loss depends on a parameter, from the trials of an adaptive search.

A search moves its parameters together and for the better, so that a correlation with the loss over all its trials means nothing:
an idle parameter that drifts while the others improve has one too. But what each point was drawn from is known (replay.py), and
an idle parameter could have been drawn otherwise without changing anything. For parameter j and a generation k of points i:

    g~_ij ~ N(m_j|-j, s2_j|-j)                  its coordinate drawn again, given the point's others            (1)
    phi_ij = f(x_i) - E f(x_i with g~_ij)       what a model f of the earlier generations expects of the one    (2)
                                                that was drawn
    T_kj = sum_i r_ij phi_ij                    r: ranks of the losses of the generation (normal scores), less  (3)
                                                what E f(x_i with g~_ij) explains of them
    z_j = sum_k w_k T_kj / sqrt(sum_k w_k^2 sum_i r_ij^2 Var phi_ij)                                            (4)
    w_k = the mean correlation of f's predictions with the ranks over the generations before k, the nearer      (5)
          the heavier; zero where it is below a least value

Without an effect of j, each T_kj has mean zero whatever f is, however the search came here: r and the others' coordinates do not
tell which g_ij was drawn; w knows only what was before. The sums are then a martingale, and z is standard normal for many
generations; with an effect that f has learned of, it is positive. The weights keep a long search, which at its end moves by noise
alone, from drowning what its beginning showed. f is a quadratic ridge regression in the search's own coordinates, fitted to the
generations before, the nearer the heavier; phi is in units of the spread that f expects within the generation.
Source: (1) to (3) the conditional randomisation test, Candes et al. 2018, arXiv:1610.02351, section 4; (4) derived: by conditioning
on the generations before. tests/analysis counts how often it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.replay import Replay, SampleBatch
from synaptune.analysis.results import Effect
from synaptune.core.parameters import constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHA = 0.05  # adjusted p below which an effect is found [probability]; chosen: the usual 5 %
_DRAWS = 48  # draws behind each expectation of eq. (2) [draw]; chosen: 1 % more variance
_MEMORY = constant(
    "effects.memory",
    6.0,
    unit="generation",
    meaning="after which an earlier generation weighs 1/e in f",
    source="chosen: a search turns slowly",
)
_MAX_POINTS = 600  # latest points that f is fitted to
_MAX_FOR_PRODUCTS = 12  # parameters up to which f has their products
_PENALTIES = tuple(10.0**power for power in range(-3, 4))
_FIRST_WEIGHT = constant(
    "effects.trust",
    0.5,
    meaning="w before the first prediction was tried",
    source="chosen: a beginning is worth a look",
)
_WEIGHT_RATE = constant(
    "effects.turn",
    0.2,
    meaning="share of the latest correlation in w",
    source="chosen: five generations",
)
_MIN_WEIGHT = 0.1  # w below which a generation is left out; chosen: what noise gives
_MIN_COMPLETE = 3  # complete points that a generation needs to be ranked


def find_effects(replay: Replay, names: Sequence[str], *, seed: int = 0) -> list[Effect]:
    """The effect of each parameter, by name; empty when fewer than two generations can be compared. seed: of the redrawing."""
    import numpy as np

    stream = np.random.default_rng(seed)
    sums, variances = np.zeros(len(names)), np.zeros(len(names))
    seen: list[tuple[NDArray[Any], NDArray[Any], int]] = []
    trust = _FIRST_WEIGHT
    for number, batch in enumerate(replay.batches):
        complete = [
            place
            for place, loss in enumerate(batch.losses)
            if loss is not None and math.isfinite(loss)
        ]
        losses = np.array([batch.losses[place] for place in complete], dtype=float)
        units = np.array([batch.trials[place].unit for place in complete]).reshape(
            len(complete), len(names)
        )
        if (
            len(complete) >= _MIN_COMPLETE
            and len({*losses.tolist()}) > 1
            and sum(len(earlier) for _, earlier, _ in seen) > 2 * _MIN_COMPLETE
        ):
            model = _RankModel(seen, number, batch)
            if trust >= _MIN_WEIGHT:
                statistic, variance = _score_generation(
                    batch, complete, units, losses, model, stream
                )
                sums += trust * statistic
                variances += trust**2 * variance
            trust += _WEIGHT_RATE * (_rank_correlation(model(units), losses) - trust)
        if len(complete):
            seen.append((units, losses, number))
    if not np.any(variances > 0.0):
        return []
    from scipy.stats import norm

    from synaptune.analysis.compare import holm

    z = np.where(variances > 0.0, sums / np.sqrt(np.where(variances > 0.0, variances, 1.0)), 0.0)
    p = norm.sf(z).tolist()
    adjusted = holm(p)
    return [
        Effect(name, float(z[i]), p[i], adjusted[i], adjusted[i] < ALPHA)
        for i, name in enumerate(names)
    ]


def _score_generation(
    batch: SampleBatch,
    complete: Sequence[int],
    units: NDArray[Any],
    losses: NDArray[Any],
    model: _RankModel,
    stream: Any,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """T and its variance of one generation, by parameter; eqs. (1) to (3)."""
    import numpy as np

    points, size = units.shape
    again = _redraw_coordinates(batch, complete, units, stream)  # (size, draws, points)
    known = model(units)
    expected, spread = np.empty((size, points)), np.empty((size, points))
    for place in range(size):
        moved = np.broadcast_to(units, (again.shape[1], points, size)).copy()
        moved[:, :, place] = again[place]
        values = model(moved.reshape(-1, size)).reshape(again.shape[1], points)
        expected[place], spread[place] = values.mean(axis=0), values.var(axis=0, ddof=1)
    scale = math.sqrt(float(spread.sum(axis=0).mean()))
    if scale <= 0.0:
        return np.zeros(size), np.zeros(size)
    scores = _normal_scores(losses)
    statistic, variance = np.empty(size), np.empty(size)
    for place in range(size):
        rest = _residual_scores(scores, expected[place])
        statistic[place] = float(rest @ (known - expected[place])) / scale
        # The expectation is itself a mean over the draws.
        variance[place] = float(rest**2 @ spread[place]) * (1.0 + 1.0 / _DRAWS) / scale**2
    return statistic, variance


def _redraw_coordinates(
    batch: SampleBatch, complete: Sequence[int], units: NDArray[Any], stream: Any
) -> NDArray[Any]:
    """Each coordinate of each point drawn again given its others, eq. (1), folded: (parameter, draw, point)."""
    import numpy as np

    from synaptune.search.optimizers.cma import fold

    points, size = units.shape
    if batch.mean is None or batch.covariance is None:
        return stream.random((size, _DRAWS, points))
    samples = batch.samples[list(complete)]
    precision = np.linalg.inv(batch.covariance)
    off = samples - batch.mean
    deviation = 1.0 / np.sqrt(np.diag(precision))
    # Gaussian conditionals from the precision matrix: mean_j - sum_{i != j} P_ji (x_i - mean_i) / P_jj, variance 1 / P_jj.
    centre = samples - (off @ precision) / np.diag(precision)
    return fold(
        centre.T[:, None, :]
        + deviation[:, None, None] * stream.standard_normal((size, _DRAWS, points))
    )


def _rank_correlation(predicted: NDArray[Any], losses: NDArray[Any]) -> float:
    """Correlation of predictions with the ranks of what came; zero where either does not vary."""
    import numpy as np

    scores, off = _normal_scores(losses), predicted - predicted.mean()
    size = float(np.sqrt((off @ off) * (scores @ scores)))
    return float(off @ scores) / size if size > 0.0 else 0.0


def _normal_scores(losses: NDArray[Any]) -> NDArray[Any]:
    from scipy.stats import norm, rankdata

    return norm.ppf((rankdata(losses) - 0.5) / len(losses))


def _residual_scores(scores: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Scores less their mean and their regression on what is expected without knowing the coordinate."""
    off = expected - expected.mean()
    rest = scores - scores.mean()
    square = float(off @ off)
    return rest - off * float(off @ rest) / square if square > 0.0 else rest


class _RankModel:
    """f: a ridge regression of rank scores on the coordinates, their squares and (of few parameters) products."""

    def __init__(
        self, seen: Sequence[tuple[NDArray[Any], NDArray[Any], int]], now: int, batch: SampleBatch
    ) -> None:
        """Fit to earlier generations (units, losses, number); the centre and scale are those of the generation under way."""
        import numpy as np

        units = np.concatenate([entry[0] for entry in seen])[-_MAX_POINTS:]
        losses = np.concatenate([entry[1] for entry in seen])[-_MAX_POINTS:]
        ages = np.concatenate(
            [np.full(len(entry[1]), now - entry[2], dtype=float) for entry in seen]
        )[-_MAX_POINTS:]
        size = units.shape[1]
        self._centre = np.full(size, 0.5) if batch.mean is None else np.clip(batch.mean, 0.0, 1.0)
        self._scale = (
            np.full(size, math.sqrt(1.0 / 12.0))
            if batch.covariance is None
            else np.sqrt(np.diag(batch.covariance))
        )
        weights = np.ones(len(ages)) if batch.mean is None else np.exp(-ages / _MEMORY)
        features = self._features(units)
        self._means = (weights @ features) / weights.sum()
        self._sizes = np.sqrt(weights @ (features - self._means) ** 2 / weights.sum())
        self._sizes[self._sizes == 0.0] = 1.0
        root = np.sqrt(weights)
        design = (features - self._means) / self._sizes * root[:, None]
        scores = _normal_scores(losses)
        target = (scores - (weights @ scores) / weights.sum()) * root
        self._weights = _fit_ridge(design, target)

    def __call__(self, units: NDArray[Any]) -> NDArray[Any]:
        """Predicted scores of points (k, n)."""
        return (self._features(units) - self._means) / self._sizes @ self._weights

    def _features(self, units: NDArray[Any]) -> NDArray[Any]:
        import numpy as np

        z = (units - self._centre) / self._scale
        # Far away a quadratic knows nothing: earlier, wider generations count by their direction.
        z = np.tanh(z / 3.0) * 3.0
        parts = [z, z**2]
        if z.shape[1] <= _MAX_FOR_PRODUCTS:
            first, second = np.triu_indices(z.shape[1], 1)
            parts.append(z[:, first] * z[:, second])
        return np.concatenate(parts, axis=1)


def _fit_ridge(design: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """Ridge weights with the penalty of the least generalised cross-validation (Golub, Heath and Wahba 1979)."""
    import numpy as np

    left, values, right = np.linalg.svd(design, full_matrices=False)
    along = left.T @ target
    outside = float(target @ target - along @ along)
    best, chosen = math.inf, values * 0.0
    for penalty in _PENALTIES:
        kept = values**2 / (values**2 + penalty * len(target))
        freedom = len(target) - float(kept.sum())
        if freedom <= 0.0:
            continue
        score = (float((((1.0 - kept) * along) ** 2).sum()) + outside) / freedom**2
        if score < best:
            best, chosen = score, kept / np.where(values > 0.0, values, 1.0)
    return right.T @ (chosen * along)
