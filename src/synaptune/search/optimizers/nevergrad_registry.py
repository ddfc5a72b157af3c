"""Algorithms of Nevergrad's registry, by name, on the unit box."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from synaptune.core.errors import find_nearest, user_error
from synaptune.search.optimizers.base import (
    SEED_MODULUS,
    Engine,
    Observation,
    Optimizer,
    rank_losses,
)
from synaptune.search.optimizers.cma import INITIAL_STEP, pad_unit
from synaptune.search.space.space import Space, UnitPoint


class NevergradOptimizer(Optimizer):
    """An algorithm of Nevergrad on the unit box, which starts at the start of the space.

    A generation has one point for each concurrent trial.
    """

    def __init__(self, engine: Engine, space: Space, built_in: Sequence[str]) -> None:
        self.generation_size = engine.workers
        self._global = _seed_states(engine.seed)
        self._open: dict[UnitPoint, Any] = {}
        self._worst = 0.0
        self._dimension = len(space.dimensions)
        self._first: UnitPoint | None = space.get_start()
        with self._use_own_random():
            self._optimizer = _build_algorithm(engine, space, built_in)

    def ask(self) -> UnitPoint:
        """Return the next point; the first one is the start of the space."""
        with self._use_own_random():
            candidate = self._optimizer.ask()
            if self._first is not None:
                candidate = self._make_candidate(self._first)
                self._first = None
        point = tuple(np.clip(candidate.value, 0.0, 1.0).tolist())[: self._dimension]
        self._open[point] = candidate
        return point

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation; failed points rank below all others of the generation."""
        losses, self._worst = rank_losses(generation, self._worst)
        with self._use_own_random():
            for point, loss in zip(generation, losses, strict=True):
                candidate = self._open.pop(point.unit, None)
                if candidate is None:
                    # The CMA family accepts a generation only after it has drawn one.
                    self._optimizer.ask()
                    candidate = self._make_candidate(point.unit)
                    self._first = None
                self._optimizer.tell(candidate, loss)
        self._open.clear()

    def _make_candidate(self, unit: UnitPoint) -> Any:
        return self._optimizer.parametrization.spawn_child(new_value=np.array(pad_unit(unit)))

    @contextlib.contextmanager
    def _use_own_random(self) -> Iterator[None]:
        """Run with the optimizer's own global random states, then restore the previous ones.

        Some algorithms draw from the global random states.
        """
        previous = random.getstate(), np.random.get_state()
        random.setstate(self._global[0])
        np.random.set_state(self._global[1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self._global = random.getstate(), np.random.get_state()
            random.setstate(previous[0])
            np.random.set_state(previous[1])


def _seed_states(seed: int) -> tuple[Any, Any]:
    return random.Random(seed).getstate(), np.random.RandomState(seed % SEED_MODULUS).get_state()


def _build_algorithm(engine: Engine, space: Space, built_in: Sequence[str]) -> Any:
    import nevergrad as ng

    registry = ng.optimizers.registry
    if engine.name not in registry:
        nearest = find_nearest(engine.name, [*built_in, *registry])
        raise user_error(
            got=f"optimizer={engine.name}",
            expected=f"{', '.join(built_in)}, or a name of Nevergrad's registry "
            f"(closest: {nearest})",
            do="correct hydra.sweeper.optim.optimizer",
        )
    box = (
        ng.p.Array(init=np.array(pad_unit(space.get_start())))
        .set_mutation(sigma=INITIAL_STEP)
        .set_bounds(0.0, 1.0)
    )
    box.random_state = np.random.RandomState(engine.seed % SEED_MODULUS)
    box.function.deterministic = not engine.noisy
    try:
        return registry[engine.name](box, budget=engine.budget, num_workers=engine.workers)
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        raise user_error(
            got=f"optimizer={engine.name}, which cannot be created: {error}",
            expected="an algorithm that fits the space, the budget and the installed packages",
            do="choose another, e.g. cma",
        ) from error
