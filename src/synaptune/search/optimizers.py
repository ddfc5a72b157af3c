"""Proposals in the unit box, one contract for all: `ask` for the points of a generation, `tell` the generation's losses.

    cma        Nevergrad's ParametrizedCMA (pycma), first step 0.2 of the unit range, population 4 + floor(3 ln D), from the start
    random     independent uniform points
    grid       the Cartesian product of the dimensions' values
    any other  an algorithm of Nevergrad's registry by its name

An optimizer owns its random stream: it neither sees nor moves the global random state, whatever an objective does to it. It
is picklable between generations, and the same asks and tells make the same points bit for bit.
Source: settings of `cma` from measurements under noise (Nevergrad's registry name `CMA` adds a metamodel that noise breaks);
population size from Hansen 2016, arXiv:1604.00772, eq. (48).
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from synaptune.errors import mistake
from synaptune.hints import nearest
from synaptune.parameters import constant
from synaptune.search.space import Space, Unit

STEP = constant(
    "search.step", 0.2, unit="unit range", meaning="first standard deviation of the search", source="chosen: a fifth of the range"
)
HALF_BIN = constant(
    "search.half_bin",
    0.5,
    unit="bin",
    meaning="least standard deviation in a binned coordinate",
    source="chosen: a third of the draws leave the bin",
)
# Nevergrad multiplies the scale of a bounded CMA by these; dividing by them leaves STEP.
_NEVERGRAD_SHRINK = ((18, 0.3), (10**9, 0.15))
BUILT_IN = ("cma", "random", "grid")
_LARGEST_SEED = 2**32
_LEAST_BATCH = 10


class Told(NamedTuple):
    """A finished point: its loss, or null for a failed trial."""

    unit: Unit
    loss: float | None


class Optimizer(Protocol):
    """Proposes points; `tell` gets one whole generation, in the order of its asks.

    learns: whether points depend on losses; one that does not is asked ahead of what has ended.
    """

    generation_size: int
    learns: bool

    def ask(self) -> Unit | None:
        """The next point; null when there is none left."""

    def tell(self, generation: Sequence[Told]) -> None:
        """Learn a generation's losses; points never asked for (a rebuilt search) are welcome."""


@dataclass(frozen=True)
class Engine:
    """What determines an optimizer's sequence, stored with the study.

    name: `cma`, `random`, `grid` or a name of Nevergrad's registry; workers: trials at a time, which a generation has room for;
    budget: evaluations planned at first (some algorithms adapt to it); noisy: tell Nevergrad that losses are noisy;
    grid_points: values per continuous dimension of a grid.
    """

    name: str
    seed: int
    workers: int = 1
    budget: int | None = None
    noisy: bool = True
    grid_points: int = 3


def make_optimizer(engine: Engine, space: Space) -> Optimizer:
    """The optimizer of an engine; raises UserError for an unknown name or one that cannot be built."""
    if engine.grid_points < 1:
        raise mistake(got=f"grid_points={engine.grid_points}", expected="an integer of at least 1", do="correct it")
    if engine.name == "grid":
        return Grid([dimension.axis(engine.grid_points) for dimension in space.dimensions], _batch(engine))
    if engine.name == "random":
        return Uniform(len(space.dimensions), engine.seed, _batch(engine))
    return Nevergrad(engine, space)


def _batch(engine: Engine) -> int:
    """Points that a search without learning counts as one generation."""
    return max(_LEAST_BATCH, engine.workers)


class Uniform:
    """Independent uniform points."""

    learns = False

    def __init__(self, dimension: int, seed: int, generation_size: int) -> None:
        self.generation_size = generation_size
        self._dimension = dimension
        self._stream = np.random.default_rng(seed % _LARGEST_SEED)

    def ask(self) -> Unit:
        """The next point."""
        return tuple(self._stream.random(self._dimension).tolist())

    def tell(self, generation: Sequence[Told]) -> None:
        """Losses teach a random search nothing."""


class Grid:
    """The Cartesian product of axes, the last one fastest."""

    learns = False

    def __init__(self, axes: Sequence[Sequence[float]], generation_size: int) -> None:
        self.generation_size = generation_size
        self.size = math.prod(len(axis) for axis in axes)
        self._axes = [list(axis) for axis in axes]
        self._next = 0

    def ask(self) -> Unit | None:
        """The next point, null past the last."""
        if self._next >= self.size:
            return None
        rest, unit = self._next, []
        for axis in reversed(self._axes):
            rest, index = divmod(rest, len(axis))
            unit.append(axis[index])
        self._next += 1
        return tuple(reversed(unit))

    def tell(self, generation: Sequence[Told]) -> None:
        """Losses teach a grid nothing."""


class Nevergrad:
    """An algorithm of Nevergrad on the unit box, beginning at the space's start."""

    learns = True

    def __init__(self, engine: Engine, space: Space) -> None:
        self._global = _seeded_states(engine.seed)
        self._open: dict[Unit, Any] = {}
        self._worst = 0.0
        self._dimension = len(space.dimensions)
        self._first: Unit | None = space.start()
        with self._private():
            self._optimizer, self.generation_size = _build(engine, space)

    def ask(self) -> Unit:
        """The next point; the first one is the start itself."""
        with self._private():
            candidate = self._optimizer.ask()
            if self._first is not None:
                candidate = self._candidate(self._first)
                self._first = None
        point = tuple(np.clip(candidate.value, 0.0, 1.0).tolist())[: self._dimension]
        self._open[point] = candidate
        return point

    def tell(self, generation: Sequence[Told]) -> None:
        """Learn a generation; a failed point ranks below all others of it."""
        losses = self._ranked([told.loss for told in generation])
        with self._private():
            for told, loss in zip(generation, losses, strict=True):
                candidate = self._open.pop(told.unit, None)
                if candidate is None:
                    self._optimizer.ask()  # CMA takes in a generation only after it has drawn one
                    candidate = self._candidate(told.unit)
                    self._first = None
                self._optimizer.tell(candidate, loss)
        self._open.clear()

    def _candidate(self, unit: Unit) -> Any:
        return self._optimizer.parametrization.spawn_child(new_value=np.array(_padded(unit)))

    def _ranked(self, losses: Sequence[float | None]) -> list[float]:
        """Losses with the failed ones just above the worst seen, so that they rank last and distort no scale."""
        finite = [loss for loss in losses if loss is not None]
        worst = max(finite, default=self._worst)
        spread = worst - min(finite, default=worst)
        self._worst = max(worst, self._worst) if finite else self._worst
        return [worst + max(spread, 1e-6 + 1e-3 * abs(worst)) if loss is None else loss for loss in losses]

    @contextlib.contextmanager
    def _private(self) -> Iterator[None]:
        """Run with the optimizer's own global random states (some algorithms draw from them), and put the others back."""
        outside = random.getstate(), np.random.get_state()
        random.setstate(self._global[0])
        np.random.set_state(self._global[1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self._global = random.getstate(), np.random.get_state()
            random.setstate(outside[0])
            np.random.set_state(outside[1])


def _seeded_states(seed: int) -> tuple[Any, Any]:
    return random.Random(seed).getstate(), np.random.RandomState(seed % _LARGEST_SEED).get_state()


def _padded(unit: Unit) -> Unit:
    """CMA needs two coordinates; a lone one gets a companion that nothing reads."""
    return unit if len(unit) > 1 else (*unit, 0.5)


def _build(engine: Engine, space: Space) -> tuple[Any, int]:
    import nevergrad as ng

    start = _padded(space.start())
    box = ng.p.Array(init=np.array(start)).set_mutation(sigma=STEP).set_bounds(0.0, 1.0)
    box.random_state = np.random.RandomState(engine.seed % _LARGEST_SEED)
    box.function.deterministic = not engine.noisy
    if engine.name == "cma":
        population = max(4 + int(3 * math.log(len(start))), engine.workers)
        shrink = next(factor for below, factor in _NEVERGRAD_SHRINK if len(start) < below)
        family = ng.families.ParametrizedCMA(scale=1.0 / shrink, popsize=population, inopts={"minstd": _least_steps(space, len(start))})
        return family(box, budget=engine.budget, num_workers=1), population
    if engine.name not in ng.optimizers.registry:
        known = [*BUILT_IN, *ng.optimizers.registry]
        raise mistake(
            got=f"optimizer={engine.name}",
            expected=f"{', '.join(BUILT_IN)}, or a name of Nevergrad's registry (closest: {nearest(engine.name, known)})",
            do="correct hydra.sweeper.optim.optimizer",
        )
    try:
        return ng.optimizers.registry[engine.name](box, budget=engine.budget, num_workers=engine.workers), engine.workers
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        raise mistake(
            got=f"optimizer={engine.name}, which cannot start here: {error}",
            expected="an algorithm that fits the space, the budget and the installed packages",
            do="choose another, e.g. cma",
        ) from error


def _least_steps(space: Space, coordinates: int) -> list[float]:
    """Least standard deviation of each coordinate in units of STEP: a binned one keeps reaching its neighbours."""
    bins = [dimension.bins for dimension in space.dimensions]
    least = [0.0 if count is None else min(STEP, HALF_BIN / count) / STEP for count in bins]
    return least + [0.0] * (coordinates - len(least))
