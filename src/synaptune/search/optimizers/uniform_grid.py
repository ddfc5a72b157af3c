"""Optimizers that do not learn: independent uniform points, and a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from synaptune.search.optimizers.base import SEED_MODULUS, Observation, Optimizer
from synaptune.search.space.space import UnitPoint

_MIN_BATCH_SIZE = 10


def batch_size(workers: int) -> int:
    """Return the number of points that count as one generation of a search without learning."""
    return max(_MIN_BATCH_SIZE, workers)


class UniformOptimizer(Optimizer):
    """Independent uniform points."""

    learns = False

    def __init__(self, dimension: int, seed: int, generation_size: int) -> None:
        self.generation_size = generation_size
        self._dimension = dimension
        self._stream = np.random.default_rng(seed % SEED_MODULUS)

    def ask(self) -> UnitPoint:
        """Return the next point."""
        return tuple(self._stream.random(self._dimension).tolist())

    def tell(self, generation: Sequence[Observation]) -> None:
        """Ignore the losses."""


class GridOptimizer(Optimizer):
    """The Cartesian product of axes; the last axis varies fastest, or the order is random."""

    learns = False

    def __init__(
        self, axes: Sequence[Sequence[float]], generation_size: int, seed: int | None = None
    ) -> None:
        self.generation_size = generation_size
        self.size = math.prod(len(axis) for axis in axes)
        self._axes = [list(axis) for axis in axes]
        self._next = 0
        self._order = (
            None
            if seed is None
            else np.random.default_rng(seed % SEED_MODULUS).permutation(self.size)
        )

    def ask(self) -> UnitPoint | None:
        """Return the next point, or None after the last one."""
        if self._next >= self.size:
            return None
        number = self._next if self._order is None else int(self._order[self._next])
        remainder, unit = number, []
        for axis in reversed(self._axes):
            remainder, index = divmod(remainder, len(axis))
            unit.append(axis[index])
        self._next += 1
        return tuple(reversed(unit))

    def tell(self, generation: Sequence[Observation]) -> None:
        """Ignore the losses."""
