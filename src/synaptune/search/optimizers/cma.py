"""CMA-ES on the unit box: the strategy of pycma with samples folded into the box.

    g ~ m + N(0, covariance)                sample of pycma, anywhere in R^n            (1)
    u = fold(g): reflected at 0 and at 1    the point that is evaluated                 (2)
    population = 4 + floor(3 ln n), rounded up to a multiple of the concurrent trials   (3)
    least deviation of a binned coordinate = max(d, w/2), with d the distance from      (4)
        the mean to the nearest edge of the bin of another value, and w the width
        of the narrower of the two bins at that edge

The strategy learns from u, not g. Its mean therefore stays in the box, and its covariance adapts to
the walls. Learning from g, or the bound handling of pycma, is worse on most functions
(docs/results.md, Search quality). The search starts at the start of the space, which is its first
point, with a step of 0.2.
Source: (1), (3) Hansen 2016, arXiv:1604.00772, eqs. (5) and (48); the rounding avoids idle workers
at the end of a generation. (2) chosen by measurement. (4) chosen: at least a sixth of the samples
cross the nearest edge for any mean, and a search can still settle on a choice of small weight next
to one of large weight.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from synaptune.core.parameters import constant
from synaptune.search.optimizers.base import (
    SEED_MODULUS,
    Engine,
    Observation,
    Optimizer,
    rank_losses,
)
from synaptune.search.optimizers.diagnostics import Diagnostics, diagnose
from synaptune.search.space.space import MIN_SHARE, Dimension, Space, UnitPoint

INITIAL_STEP = constant(
    "search.step",
    0.2,
    unit="unit range",
    meaning="first standard deviation of the search",
    source="chosen: a fifth of the range",
)
HALF_BIN = constant(
    "search.half_bin",
    0.5,
    unit="bin",
    meaning="least standard deviation in a binned coordinate, eq. (4)",
    source="chosen: a third of the draws from a bin's middle leave it",
)
_EDGE_MARGIN = MIN_SHARE / 2.0  # a coordinate this far beyond an edge lies in the next bin


class CmaOptimizer(Optimizer):
    """The strategy of pycma with the `Optimizer` interface, eqs. (1) to (4)."""

    _learned: Observation | None = None  # a point of another search, for the next generation

    def __init__(self, engine: Engine, space: Space) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma warns of a missing plotting package
            import cma

        self._space = space
        start = pad_unit(space.get_start())
        self.generation_size = population_size(len(start), engine.workers)
        self._first: UnitPoint | None = start
        self._queue: deque[Any] = deque()
        self._drawn = False
        self._best, self._worst, self._stagnation = math.inf, 0.0, 0
        options = {
            "popsize": self.generation_size,
            "randn": np.random.RandomState(engine.seed % SEED_MODULUS).randn,
            "seed": float("nan"),  # prevents pycma from seeding the global stream
            "minstd": compute_min_steps(space, start),
            "verbose": -9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy: Any = cma.CMAEvolutionStrategy(list(start), INITIAL_STEP, options)

    def ask(self) -> UnitPoint:
        """Return the next point; the first one is the start of the space."""
        sample = self.draw()
        unit = tuple(fold(sample).tolist()) if self._first is None else self._first
        self._first = None
        return unit[: len(self._space.dimensions)]

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation; failed points rank below all others of the generation."""
        known_losses = [point.loss for point in generation if point.loss is not None]
        if self._learned is not None:
            generation, self._learned = [*generation, self._learned], None
        losses, self._worst = rank_losses(generation, self._worst)
        if any(point.is_asked for point in generation):
            self._first = None
        if not self._drawn:
            self.draw()  # pycma accepts a generation only after it has drawn one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy.tell([np.array(pad_unit(point.unit)) for point in generation], losses)
        self._strategy.opts["minstd"][:] = compute_min_steps(self._space, self._strategy.mean)
        # pycma keeps samples that it is never told (here those that were folded) for hundreds of
        # generations.
        self._strategy.sent_solutions.clear()
        self._drawn = False
        self._queue.clear()
        best = min(known_losses, default=math.inf)
        self._stagnation = 0 if best < self._best else self._stagnation + 1
        self._best = min(best, self._best)

    def learn(self, points: Sequence[Observation]) -> None:
        """Add the best point to the next generation that is told.

        pycma shortens the step to a point that it has not drawn (Hansen 2011, arXiv:1110.4181).
        """
        known = [point for point in (*points, self._learned) if point and point.loss is not None]
        self._learned = min(known, key=lambda point: point.loss or 0.0, default=None)

    def get_diagnostics(self) -> Diagnostics | None:
        """Return the distribution of the next generation, or None before the first `tell`."""
        if self._strategy.countiter == 0:
            return None
        mean, covariance = self.get_distribution()
        return diagnose(
            generation=int(self._strategy.countiter),
            names=self._space.names,
            mean=mean,
            step=float(self._strategy.sigma),
            covariance=covariance,
            stagnation=self._stagnation,
        )

    def get_distribution(self) -> tuple[Any, Any]:
        """Return mean (n,) and covariance (n, n) of eq. (1) for the current generation."""
        strategy, size = self._strategy, len(self._space.dimensions)
        scale = strategy.sigma * np.asarray(strategy.sigma_vec.scaling) * np.ones(strategy.N)
        covariance = scale[:, None] * np.asarray(strategy.sm.covariance_matrix) * scale
        return np.array(strategy.mean)[:size], covariance[:size, :size]

    def draw(self) -> Any:
        """Return the next sample of eq. (1), of shape (n,), which `ask` folds.

        The sample of a single parameter includes the padding coordinate.
        """
        if not self._queue:
            self._queue.extend(self._strategy.ask())
        self._drawn = True
        return self._queue.popleft()


def population_size(dimension: int, workers: int) -> int:
    """Return the number of points of a generation, eq. (3)."""
    return math.ceil((4 + int(3 * math.log(dimension))) / workers) * workers


def fold(sample: Any) -> Any:
    """Compute eq. (2); a coordinate inside the box is returned bit for bit."""
    reflected = 1.0 - np.abs(1.0 - np.mod(sample, 2.0))
    return np.where((sample >= 0.0) & (sample <= 1.0), sample, reflected)


def compute_min_steps(space: Space, mean: Sequence[float]) -> list[float]:
    """Return the least standard deviation of each padded coordinate at a mean, eq. (4).

    It is zero for a continuous coordinate.
    """
    steps = tuple(
        _compute_min_step(dimension, float(u))
        for dimension, u in zip(space.dimensions, mean, strict=False)
    )
    return list(pad_unit(steps, companion=0.0))


def _compute_min_step(dimension: Dimension, mean: float) -> float:
    if (dimension.bins or 1) == 1:
        return 0.0
    low, high = dimension.get_bin(mean)
    edge = min(
        (end for end in (low, high) if _EDGE_MARGIN < end < 1.0 - _EDGE_MARGIN),
        key=lambda end: abs(end - mean),
    )
    beyond = dimension.get_bin(edge + _EDGE_MARGIN if edge == high else edge - _EDGE_MARGIN)
    return max(abs(edge - mean), HALF_BIN * min(high - low, beyond[1] - beyond[0]))


def pad_unit(unit: UnitPoint, companion: float = 0.5) -> UnitPoint:
    """Add a second coordinate, which is not used, to a single one: CMA-ES needs at least two."""
    return unit if len(unit) > 1 else (*unit, companion)
