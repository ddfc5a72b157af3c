"""CMA-ES on the unit box: pycma's strategy, folded into the box.

    g ~ m + N(0, covariance)                    pycma's sample, anywhere in R^n                         (1)
    u = fold(g): reflected at 0 and at 1        the point that is evaluated                              (2)
    population = 4 + floor(3 ln n), rounded up to a multiple of the trials at a time                     (3)
    least deviation of a binned coordinate = half of the bin that holds the mean                         (4)

The strategy is told g, not u. It begins at the space's start, which is its first point, with a step of 0.2.
Source: (1), (3) Hansen 2016, arXiv:1604.00772, eqs. (5) and (48); the rounding so that no worker waits at a generation's end;
(2), (4) chosen: (2) makes the function even across the walls and needs no penalty, (4) keeps the next value within a
deviation, and lets a search settle on a choice of little weight.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from synaptune.parameters import constant
from synaptune.search.contract import LARGEST_SEED, Engine, Optimizer, Told, ranked
from synaptune.search.diagnostics import Diagnostics, diagnose
from synaptune.search.space import Space, Unit

STEP = constant(
    "search.step", 0.2, unit="unit range", meaning="first standard deviation of the search", source="chosen: a fifth of the range"
)
HALF_BIN = constant(
    "search.half_bin",
    0.5,
    unit="bin",
    meaning="least standard deviation in a binned coordinate, eq. (4)",
    source="chosen: a third of the draws from its middle leave the bin",
)


class Cma(Optimizer):
    """pycma's strategy behind the contract; eqs. (1) to (4)."""

    def __init__(self, engine: Engine, space: Space) -> None:
        import cma

        self._space = space
        start = padded(space.start())
        self.generation_size = population(len(start), engine.workers)
        self._first: Unit | None = start
        self._queue: deque[Any] = deque()
        self._open: dict[Unit, list[Any]] = {}
        self._best, self._worst, self._stagnation = math.inf, 0.0, 0
        options = {
            "popsize": self.generation_size,
            "randn": np.random.RandomState(engine.seed % LARGEST_SEED).randn,
            "seed": float("nan"),  # keeps pycma from seeding the global stream
            "minstd": least_steps(space, start),
            "verbose": -9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy: Any = cma.CMAEvolutionStrategy(list(start), STEP, options)

    def ask(self) -> Unit:
        """The next point; the first one is the start itself."""
        sample = self._draw()
        if self._first is not None:
            sample, self._first = np.array(self._first), None
        unit = tuple(fold(sample).tolist())[: len(self._space.dimensions)]
        self._open.setdefault(unit, []).append(sample)
        return unit

    def tell(self, generation: Sequence[Told]) -> None:
        """Learn a generation; a failed point ranks below all others of it."""
        losses, self._worst = ranked(generation, self._worst)
        samples = [self._sample_of(told.unit) for told in generation]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy.tell(samples, losses)
        self._strategy.opts["minstd"][:] = least_steps(self._space, fold(np.asarray(self._strategy.mean)))
        self._open.clear()
        self._queue.clear()
        best = min((told.loss for told in generation if told.loss is not None), default=math.inf)
        self._stagnation = 0 if best < self._best else self._stagnation + 1
        self._best = min(best, self._best)

    def diagnostics(self) -> Diagnostics | None:
        """The distribution the next generation is drawn from; null before the first was told."""
        strategy, size = self._strategy, len(self._space.dimensions)
        if strategy.countiter == 0:
            return None
        scale = strategy.sigma * np.asarray(strategy.sigma_vec.scaling) * np.ones(strategy.N)
        return diagnose(
            generation=int(strategy.countiter),
            names=self._space.names,
            mean=fold(np.asarray(strategy.mean))[:size],
            step=float(strategy.sigma),
            covariance=(scale[:, None] * np.asarray(strategy.sm.covariance_matrix) * scale)[:size, :size],
            stagnation=self._stagnation,
        )

    def _draw(self) -> Any:
        if not self._queue:
            self._queue.extend(self._strategy.ask())
        return self._queue.popleft()

    def _sample_of(self, unit: Unit) -> Any:
        """The sample behind a point; a point never asked for is its own."""
        samples = self._open.get(unit)
        if samples:
            return samples.pop(0)
        self._first = None
        self._draw()  # pycma takes in a generation only after it has drawn one
        return np.array(padded(unit))


def population(dimension: int, workers: int) -> int:
    """Points of a generation, eq. (3)."""
    return math.ceil((4 + int(3 * math.log(dimension))) / workers) * workers


def fold(sample: Any) -> Any:
    """Eq. (2); a coordinate inside the box is returned bit for bit."""
    reflected = 1.0 - np.abs(1.0 - np.mod(sample, 2.0))
    return np.where((sample >= 0.0) & (sample <= 1.0), sample, reflected)


def least_steps(space: Space, mean: Sequence[float]) -> list[float]:
    """Least standard deviation of each (padded) coordinate at a mean, eq. (4); zero where it is continuous."""
    widths = [dimension.bin_width(u) or 0.0 for dimension, u in zip(space.dimensions, mean, strict=False)]
    return list(padded(tuple(HALF_BIN * width for width in widths), companion=0.0))


def padded(unit: Unit, companion: float = 0.5) -> Unit:
    """CMA needs two coordinates; a lone one gets a companion that nothing reads."""
    return unit if len(unit) > 1 else (*unit, companion)
