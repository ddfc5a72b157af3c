"""Algorithms of Nevergrad's registry, by name, on the unit box.

Some algorithms run a library that calls its objective itself, such as scipy's `minimize`, in a
thread that waits for the loss of each point that it has asked for. Such an algorithm begins at its
own first point. It cannot be pickled; snapshot.py rebuilds it. An algorithm that accepts no loss of
another point is asked for a point before it can be told; that point is used at the next ask.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from synaptune.core.errors import UserError, find_nearest, suggest, user_error
from synaptune.core.text import get_first_line
from synaptune.search.optimizers.base import (
    SEED_MODULUS,
    Engine,
    Observation,
    Optimizer,
    rank_losses,
)
from synaptune.search.optimizers.cma import INITIAL_STEP, pad_unit
from synaptune.search.space.space import Dimension, Space, UnitPoint

# Evaluations and time [s] of a rehearsal; chosen: portfolios have asked every part by then, and a
# command starts without a noticeable delay.
_REHEARSED_POINTS, _REHEARSAL_TIME = 20, 2.0
_DEADLOCK_WAIT = (
    0.2  # twice this long without a message is a deadlock [s]; chosen: a thread's switch
)
_SUGGESTIONS = 8  # nearest names that are tried for one that works


class NevergradOptimizer(Optimizer):
    """An algorithm of Nevergrad on the unit box, which starts at the start of the space.

    A generation has one point for each concurrent trial.
    """

    _unused: Any = None  # a candidate that the algorithm has asked for, and that still has to run
    _replaced: Any = None  # the first candidate of the algorithm, in whose place the start runs

    def __init__(self, engine: Engine, space: Space) -> None:
        self._name = engine.name
        self.generation_size = engine.workers
        self._global = _seed_states(engine.seed)
        self._open: dict[UnitPoint, Any] = {}
        self._worst = 0.0
        self._dimension = len(space.dimensions)
        self._first: UnitPoint | None = space.get_start()
        with self._use_own_random():
            self._optimizer = _build_algorithm(engine, space)

    def ask(self) -> UnitPoint:
        """Return the next point; the first one is the start of the space."""
        with self._use_own_random():
            candidate, self._unused = self._ask_algorithm(), None
            if self._first is not None and not _runs_in_thread(self._optimizer):
                self._replaced, candidate = candidate, self._make_candidate(self._first)
            self._first = None
        point = tuple(np.clip(candidate.value, 0.0, 1.0).tolist())[: self._dimension]
        self._open[point] = candidate
        return point

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation; failed points rank below all others of the generation."""
        from nevergrad.common.errors import TellNotAskedNotSupportedError

        losses, self._worst = rank_losses(generation, self._worst)
        with self._use_own_random():
            for point, loss in zip(generation, losses, strict=True):
                asked, self._replaced = self._replaced, None
                candidate = self._open.pop(point.unit, None)
                if candidate is None:
                    # The CMA family accepts a generation only after it has drawn one.
                    asked = self._ask_algorithm()
                    self._unused = asked if _runs_in_thread(self._optimizer) else None
                    candidate = self._make_candidate(point.unit)
                    self._first = None if point.is_asked else self._first
                try:
                    self._optimizer.tell(candidate, loss)
                except TellNotAskedNotSupportedError:
                    self._unused = asked
        self._open.clear()

    def _ask_algorithm(self) -> Any:
        return self._optimizer.ask() if self._unused is None else self._unused

    def _make_candidate(self, unit: UnitPoint) -> Any:
        return self._optimizer.parametrization.spawn_child(new_value=np.array(pad_unit(unit)))

    @contextlib.contextmanager
    def _use_own_random(self) -> Iterator[None]:
        """Run with the optimizer's own global random states, then restore the previous ones.

        Some algorithms draw from the global random states.

        Raises:
            UserError: the algorithm raised any exception.
        """
        previous = random.getstate(), np.random.get_state()
        random.setstate(self._global[0])
        np.random.set_state(self._global[1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except UserError:
            raise
        except Exception as error:  # code of many libraries
            raise user_error(
                got=f"optimizer={self._name}, which failed: {type(error).__name__}: "
                f"{get_first_line(error)}",
                expected="an algorithm that fits the space, the budget, the number of concurrent "
                "trials and the installed packages",
                do="choose another, e.g. cma; every finished trial is kept",
            ) from error
        finally:
            self._global = random.getstate(), np.random.get_state()
            random.setstate(previous[0])
            np.random.set_state(previous[1])


def check_algorithm(engine: Engine, dimensions: int, built_in: Sequence[str]) -> None:
    """Check that an algorithm works, by a few generations on the unit box.

    Args:
        engine: name and options of the algorithm.
        dimensions: number of searched parameters.
        built_in: the other names of optimizers.

    Raises:
        UserError: the name is unknown, or the algorithm fails; names the nearest one that works.
    """
    import nevergrad as ng

    known = list(ng.optimizers.registry)
    if engine.name not in known:
        raise user_error(
            got=f"optimizer={engine.name}",
            expected=f"{', '.join(built_in)}, or a name of Nevergrad's registry"
            f"{suggest(engine.name, [*built_in, *known])}",
            do="correct the name of the optimizer (hydra.sweeper.optim.optimizer, sampler=)",
        )
    fault = find_fault(engine.name, engine.workers, engine.budget, engine.noisy, dimensions)
    if fault is None:
        return
    nearest = find_nearest(engine.name, known, _SUGGESTIONS + 1)
    works = (
        name
        for name in nearest
        if name != engine.name
        and find_fault(name, engine.workers, engine.budget, engine.noisy, dimensions) is None
    )
    raise user_error(
        got=f"optimizer={engine.name}, which cannot be used here: {fault}",
        expected="an algorithm that fits the space, the budget, the number of concurrent trials "
        "and the installed packages",
        do=f"choose another; the nearest name that works is {next(works, 'cma')}",
    )


@functools.cache
def find_fault(
    name: str, workers: int, budget: int | None, noisy: bool, dimensions: int
) -> str | None:
    """Run an algorithm for a few generations.

    Returns:
        Why it failed, or None.
    """
    space = Space(tuple(Dimension(str(index), "lin") for index in range(dimensions)))
    try:
        optimizer = NevergradOptimizer(Engine(name, 0, workers, budget, noisy), space)
        end = time.monotonic() + _REHEARSAL_TIME
        for _ in range(math.ceil(min(_REHEARSED_POINTS, budget or _REHEARSED_POINTS) / workers)):
            points = [optimizer.ask() for _ in range(workers)]
            optimizer.tell([Observation(unit, sum(u * u for u in unit)) for unit in points])
            if time.monotonic() > end:
                break
    except UserError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"{type(cause).__name__}: {get_first_line(cause)}"
    return None


def _seed_states(seed: int) -> tuple[Any, Any]:
    return random.Random(seed).getstate(), np.random.RandomState(seed % SEED_MODULUS).get_state()


def _build_algorithm(engine: Engine, space: Space) -> Any:
    import nevergrad as ng

    _replace_threads()
    box = (
        ng.p.Array(init=np.array(pad_unit(space.get_start())))
        .set_mutation(sigma=INITIAL_STEP)
        .set_bounds(0.0, 1.0)
    )
    box.random_state = np.random.RandomState(engine.seed % SEED_MODULUS)
    box.function.deterministic = not engine.noisy
    return ng.optimizers.registry[engine.name](
        box, budget=engine.budget, num_workers=engine.workers
    )


@functools.cache
def _replace_threads() -> None:
    """Let Nevergrad use threads that end with the process, and that report a deadlock.

    Some of its portfolios never tell a thread the loss of a point, and would then wait for its next
    point forever.
    """
    from nevergrad.optimization import recaster

    class Thread(recaster._MessagingThread):
        daemon = True

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.messages_ask = _PointQueue(self)
            self.is_waiting = False

        def _fake_callable(self, *args: Any) -> Any:
            self.is_waiting = True
            try:
                return super()._fake_callable(*args)
            finally:
                self.is_waiting = False

    recaster._MessagingThread = Thread
    # Its __del__ reads the attribute also after a failed start.
    setattr(recaster.RecastOptimizer, "_messaging_thread", None)  # noqa: B010


class _PointQueue(queue.Queue):
    """The points that a thread asks for."""

    def __init__(self, thread: Any) -> None:
        super().__init__()
        self._thread = thread

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Wait for the next point.

        Raises:
            RuntimeError: none can come, because the thread waits for a loss.
        """
        silent = 0
        while True:
            try:
                return super().get(timeout=_DEADLOCK_WAIT)
            except queue.Empty:
                waits = self._thread.is_waiting and self._thread.messages_tell.empty()
                silent = silent + 1 if waits else 0
                if silent > 1:
                    raise RuntimeError("it waits for a loss that it is never told") from None


def _runs_in_thread(algorithm: Any) -> bool:
    """Return whether an algorithm, or one that it consists of, has started a thread."""
    from nevergrad.optimization.base import Optimizer as Algorithm

    if getattr(algorithm, "_messaging_thread", None) is not None:
        return True
    parts = [
        part
        for value in vars(algorithm).values()
        for part in (value if isinstance(value, list | tuple) else [value])
    ]
    return any(_runs_in_thread(part) for part in parts if isinstance(part, Algorithm))
