"""Any algorithm of Nevergrad's registry, by its name, on the unit box."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from synaptune.core.errors import mistake, nearest
from synaptune.search.optimizers.base import LARGEST_SEED, Engine, Optimizer, Told, ranked
from synaptune.search.optimizers.cma import STEP, padded
from synaptune.search.space.space import Space, Unit


class Nevergrad(Optimizer):
    """An algorithm of Nevergrad on the unit box, beginning at the space's start; a generation is what runs at a time."""

    def __init__(self, engine: Engine, space: Space, built_in: Sequence[str]) -> None:
        self.generation_size = engine.workers
        self._global = _seeded_states(engine.seed)
        self._open: dict[Unit, Any] = {}
        self._worst = 0.0
        self._dimension = len(space.dimensions)
        self._first: Unit | None = space.start()
        with self._private():
            self._optimizer = _build(engine, space, built_in)

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
        losses, self._worst = ranked(generation, self._worst)
        with self._private():
            for told, loss in zip(generation, losses, strict=True):
                candidate = self._open.pop(told.unit, None)
                if candidate is None:
                    self._optimizer.ask()  # the CMA family takes in a generation only after it has drawn one
                    candidate = self._candidate(told.unit)
                    self._first = None
                self._optimizer.tell(candidate, loss)
        self._open.clear()

    def _candidate(self, unit: Unit) -> Any:
        return self._optimizer.parametrization.spawn_child(new_value=np.array(padded(unit)))

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
    return random.Random(seed).getstate(), np.random.RandomState(seed % LARGEST_SEED).get_state()


def _build(engine: Engine, space: Space, built_in: Sequence[str]) -> Any:
    import nevergrad as ng

    registry = ng.optimizers.registry
    if engine.name not in registry:
        raise mistake(
            got=f"optimizer={engine.name}",
            expected=f"{', '.join(built_in)}, or a name of Nevergrad's registry (closest: {nearest(engine.name, [*built_in, *registry])})",
            do="correct hydra.sweeper.optim.optimizer",
        )
    box = ng.p.Array(init=np.array(padded(space.start()))).set_mutation(sigma=STEP).set_bounds(0.0, 1.0)
    box.random_state = np.random.RandomState(engine.seed % LARGEST_SEED)
    box.function.deterministic = not engine.noisy
    try:
        return registry[engine.name](box, budget=engine.budget, num_workers=engine.workers)
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        raise mistake(
            got=f"optimizer={engine.name}, which cannot start here: {error}",
            expected="an algorithm that fits the space, the budget and the installed packages",
            do="choose another, e.g. cma",
        ) from error
