"""CMA-ES on the unit box: the strategy of pycma with samples folded into the box.

    g ~ m + N(0, covariance)                sample of pycma, anywhere in R^n            (1)
    u = fold(g): reflected at 0 and at 1    the point that is evaluated                 (2)
    population = 4 + floor(3 ln n), rounded up to a multiple of the concurrent trials   (3)
    least deviation of a binned coordinate = max(d, w/2), with d the distance from      (4)
        the mean to the nearest edge of the bin of another value, and w the width
        of the narrower of the two bins at that edge

The strategy learns from u, not g. Its mean therefore stays in the box, and its covariance adapts to
the walls. Learning from g, or the bound handling of pycma, is worse on most functions
(docs/results.md, Search quality).

With the start design `defaults` the strategy starts at the start of the space, which is its first
point, with a step of 0.2. With `sobol` the first generations are points of the whole box, the start
among them (start_design.py), and the strategy starts from the best quarter of them:

    mean      m_i = sum_k w_k u_ki,  w_k ~ ln(q + 1/2) - ln(k) for the k-th best of q       (5)
    deviation s_i^2 = (q sum_k w_k (u_ki - m_i)^2 / (1 - sum w_k^2) + c/12) / (q + c)       (6)

When pycma's criteria say that the strategy has converged, and restarts are left, a new one starts
at a uniform point, with twice the population, which then spans several generations (IPOP).
Source: (1), (3) Hansen 2016, arXiv:1604.00772, eqs. (5) and (48); the rounding avoids idle workers
at the end of a generation. (2) chosen by measurement. (4) chosen: at least a sixth of the samples
cross the nearest edge for any mean, and a search can still settle on a choice of small weight next
to one of large weight. (5) the weights of (1); (6) chosen: the variance of few points is drawn
towards 1/12, that of the box. Restarts: Auger and Hansen 2005, CEC, p. 1769.
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
from synaptune.search.optimizers.start_design import sample_design
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
# First step of a restart [unit range]; chosen: about the deviation of the uniform distribution.
_RESTART_STEP = 0.3
_EDGE_MARGIN = MIN_SHARE / 2.0  # a coordinate this far beyond an edge lies in the next bin


# Points of the first design for each parameter, and its largest share of the planned evaluations.
# Chosen by `make bench-budget`.
_DESIGN_RATIO, _DESIGN_SHARE = 2.0, 0.5
_CHOSEN_FRACTION = 0.25  # of the design, the points of eq. (5); chosen: half of pycma's selection
_PRIOR_COUNT = 4.0  # c of eq. (6); chosen: as many points as a small selection has
_UNIFORM_VARIANCE = 1.0 / 12.0


class CmaOptimizer(Optimizer):
    """The strategy of pycma with the `Optimizer` interface, eqs. (1) to (6)."""

    _learned: Observation | None = None  # a point of another search, for the next generation

    def __init__(self, engine: Engine, space: Space) -> None:
        self._space, self._engine = space, engine
        size = len(pad_unit(space.get_start()))
        self.generation_size = population_size(size, engine.workers, engine.population)
        self._stream = np.random.RandomState(engine.seed % SEED_MODULUS)
        self._restarts_left, self._generation = engine.restarts, 0
        # Generations that one population of the strategy spans, and those of it told so far.
        self._span, self._buffer = 1, list[Observation]()
        self._queue: deque[Any] = deque()
        self._best, self._worst, self._stagnation = math.inf, 0.0, 0
        self._strategy: Any = None
        # Points that are evaluated in place of samples of the strategy.
        self._design: deque[UnitPoint] = deque()
        self._design_left, self._observed = 0, list[Observation]()
        if engine.start_design == "sobol":
            self._design_left = _count_design_generations(engine, size, self.generation_size)
            count = self._design_left * self.generation_size
            self._design.extend(sample_design(space, engine.seed, count))
        else:
            start = space.get_start()
            self._start_strategy(np.array(pad_unit(start)), np.full(size, engine.step))
            self._design.append(start)

    @property
    def is_designing(self) -> bool:
        """Whether the points of the generation are those of the first design."""
        return self._design_left > 0

    def ask(self) -> UnitPoint:
        """Return the next point; the first one is the start of the space."""
        if self.is_designing:
            return tuple(self.draw().tolist())
        sample = self.draw()
        if self._design:
            return self._design.popleft()
        return tuple(fold(sample).tolist())[: len(self._space.dimensions)]

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation; failed points rank below all others of the generation."""
        self._generation += 1
        known_losses = [point.loss for point in generation if point.loss is not None]
        best = min(known_losses, default=math.inf)
        self._stagnation = 0 if best < self._best else self._stagnation + 1
        self._best = min(best, self._best)
        if self.is_designing:
            self._learn_design(generation)
        else:
            if any(point.is_asked for point in generation):
                self._design.clear()
            self._learn_population(generation)

    def _learn_design(self, generation: Sequence[Observation]) -> None:
        """Keep the points; after the last generation of the design start the strategy."""
        self._observed += generation
        self._design_left -= 1
        # Points that were not told: asked for before a search is rebuilt, or enqueued ones took
        # their place.
        while len(self._design) > self._design_left * self.generation_size:
            self._design.popleft()
        if not self.is_designing:
            self._observed += self._take_learned()
            mean, deviation = summarise_design(self._observed)
            _, self._worst = rank_losses(self._observed, self._worst)
            self._observed.clear()
            self._queue.clear()
            self._start_strategy(
                np.array(pad_unit(tuple(mean))),
                np.array(pad_unit(tuple(deviation), companion=float(np.mean(deviation)))),
            )

    def _learn_population(self, generation: Sequence[Observation]) -> None:
        """Learn the population once it is complete; then restart if the strategy has converged."""
        self._buffer += generation
        if len(self._buffer) < self._span * self.generation_size:
            return
        self._buffer += self._take_learned()
        losses, self._worst = rank_losses(self._buffer, self._worst)
        points = [np.array(pad_unit(point.unit)) for point in self._buffer]
        self._buffer.clear()
        if not self._drawn:
            self.draw()  # pycma accepts a generation only after it has drawn one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy.tell(points, losses)
        self._strategy.opts["minstd"][:] = compute_min_steps(self._space, self._strategy.mean)
        # pycma keeps samples that it is never told (here those that were folded) for hundreds of
        # generations.
        self._strategy.sent_solutions.clear()
        self._drawn = False
        self._queue.clear()
        if self._restarts_left and self._strategy.stop(check=True):
            self._restarts_left -= 1
            self._span *= 2
            size = self._strategy.N
            self._start_strategy(self._stream.rand(size), np.full(size, _RESTART_STEP))

    def _start_strategy(self, mean: Any, deviation: Any) -> None:
        """Start a strategy at a mean (n,) with standard deviations (n,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma warns of a missing plotting package
            import cma

            step = float(np.sqrt(np.mean(deviation**2)))
            options = {
                "popsize": self._span * self.generation_size,
                "randn": self._stream.randn,
                "seed": float("nan"),  # prevents pycma from seeding the global stream
                "minstd": compute_min_steps(self._space, mean),
                "verbose": -9,
            }
            if not np.all(deviation == deviation[0]):
                options["CMA_stds"] = deviation / step
            else:
                step = float(deviation[0])
            self._strategy = cma.CMAEvolutionStrategy(mean.tolist(), step, options)
        self._drawn = False

    def learn(self, points: Sequence[Observation]) -> None:
        """Add the best point to the next generation that is told.

        pycma shortens the step to a point that it has not drawn (Hansen 2011, arXiv:1110.4181).
        """
        known = [point for point in (*points, self._learned) if point and point.loss is not None]
        self._learned = min(known, key=lambda point: point.loss or 0.0, default=None)

    def _take_learned(self) -> list[Observation]:
        learned, self._learned = self._learned, None
        return [] if learned is None else [learned]

    def get_diagnostics(self) -> Diagnostics | None:
        """Return the distribution of the next generation, or None before the first `tell`."""
        if self._generation == 0:
            return None
        mean, covariance = self.get_distribution()
        step = math.sqrt(_UNIFORM_VARIANCE) if self.is_designing else float(self._strategy.sigma)
        return diagnose(
            generation=self._generation,
            names=self._space.names,
            mean=mean,
            step=step,
            covariance=covariance,
            stagnation=self._stagnation,
        )

    def get_distribution(self) -> tuple[Any, Any]:
        """Return mean (n,) and covariance (n, n) of eq. (1) for the current generation.

        Those of the first design are of the uniform distribution.
        """
        size = len(self._space.dimensions)
        if self.is_designing:
            return np.full(size, 0.5), _UNIFORM_VARIANCE * np.eye(size)
        strategy = self._strategy
        scale = strategy.sigma * np.asarray(strategy.sigma_vec.scaling) * np.ones(strategy.N)
        covariance = scale[:, None] * np.asarray(strategy.sm.covariance_matrix) * scale
        return np.array(strategy.mean)[:size], covariance[:size, :size]

    def draw(self) -> Any:
        """Return the next sample of eq. (1), of shape (n,), which `ask` folds.

        The sample of a single parameter includes the padding coordinate. A point of the first
        design is its own sample.
        """
        if self.is_designing:
            return np.array(self._design.popleft())
        if not self._queue:
            self._queue.extend(self._strategy.ask())
        self._drawn = True
        return self._queue.popleft()


def summarise_design(observations: Sequence[Observation]) -> tuple[Any, Any]:
    """Return mean (n,) and standard deviation (n,) of the best points, eqs. (5) and (6)."""
    known = [point for point in observations if point.loss is not None]
    size = len(observations[0].unit)
    if len(known) < 2:
        return np.full(size, 0.5), np.full(size, math.sqrt(_UNIFORM_VARIANCE))
    known.sort(key=lambda point: point.loss or 0.0)
    count = max(2, round(_CHOSEN_FRACTION * len(known)))
    units = np.array([point.unit for point in known[:count]])
    weights = math.log(count + 0.5) - np.log(np.arange(1, count + 1))
    weights /= weights.sum()
    mean = weights @ units
    variance = weights @ (units - mean) ** 2 / (1.0 - float(weights @ weights))
    shrunk = (count * variance + _PRIOR_COUNT * _UNIFORM_VARIANCE) / (count + _PRIOR_COUNT)
    return mean, np.sqrt(shrunk)


def _count_design_generations(engine: Engine, size: int, generation_size: int) -> int:
    """Return the number of generations of the first design, at least one."""
    planned = _DESIGN_RATIO * size
    if engine.budget is not None:
        planned = min(planned, _DESIGN_SHARE * engine.budget)
    return max(1, round(planned / generation_size))


def population_size(dimension: int, workers: int, population: int | None = None) -> int:
    """Return the number of points of a generation, eq. (3), or `population` rounded likewise."""
    wanted = 4 + int(3 * math.log(dimension)) if population is None else population
    return math.ceil(wanted / workers) * workers


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
    inner = [end for end in (low, high) if _EDGE_MARGIN < end < 1.0 - _EDGE_MARGIN]
    # A bin at an end of the box may be narrower than the margin.
    ends = inner or [end for end in (low, high) if 0.0 < end < 1.0]
    edge = min(ends, key=lambda end: abs(end - mean))
    beyond = dimension.get_bin(edge + _EDGE_MARGIN if edge == high else edge - _EDGE_MARGIN)
    return max(abs(edge - mean), HALF_BIN * min(high - low, beyond[1] - beyond[0]))


def pad_unit(unit: UnitPoint, companion: float = 0.5) -> UnitPoint:
    """Add a second coordinate, which is not used, to a single one: CMA-ES needs at least two."""
    return unit if len(unit) > 1 else (*unit, companion)
