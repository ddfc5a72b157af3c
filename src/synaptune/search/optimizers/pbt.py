"""Population-based training: the members of a population train in slices and copy the better ones.

A generation is one slice of the training of all members, a trial for each. After a slice

    exploit   a member of the worst fifth, or one that failed, copies weights and parameters of a
              random member of the best fifth                                                   (1)
    explore   each parameter of a copy moves by +-`step` of its range, or with probability 1/4 is
              drawn anew                                                                        (2)

All other members go on with their own weights and parameters. Weights and parameters are copied
together, because a loss is a property of both: weights of one member with parameters of another
were never evaluated. Without `copy_weights` (1) copies the parameters only.
Source: Jaderberg et al. 2017 (Population Based Training), truncation selection and perturbation of
section 4; chosen: steps in the unit range, as for all optimizers, in place of factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import SEED_MODULUS, Engine, Observation, Optimizer
from synaptune.search.optimizers.start_design import sample_design
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.trial import PARENT, SLICE, SLICES

PBT = "pbt"
_FRACTION = 0.2  # of the members at either end, eq. (1)
_RESAMPLED = 0.25  # probability, eq. (2)
_MIN_MEMBERS = 4


class _Member(NamedTuple):
    """A member in the coming slice; `parent` is the index of the trial that it continues."""

    unit: UnitPoint
    parent: int | None


def count_trials(engine: Engine) -> int:
    """Return the number of trials of all members.

    Raises:
        UserError: the budget has too few trials for the slices.
    """
    members = engine.population or (engine.budget or 0) // engine.slices
    if members < _MIN_MEMBERS or members * engine.slices > (engine.budget or math.inf):
        least = max(_MIN_MEMBERS, engine.population or 0) * engine.slices
        raise user_error(
            got=f"pbt with a budget of {engine.budget} trials and search.slices={engine.slices}",
            expected=f"at least {least} trials: each is one slice of a member's training",
            do="raise the budget, or reduce search.slices or search.population",
        )
    return members * engine.slices


class PbtOptimizer(Optimizer):
    """Population-based training; `search.step`, `.population`, `.slices` and `.copy_weights`.

    Raises:
        UserError: the budget has too few trials for the slices.
    """

    def __init__(self, engine: Engine, space: Space) -> None:
        self.generation_size = count_trials(engine) // engine.slices
        self._engine = engine
        self._slice, self._asked = 0, 0
        points = sample_design(space, engine.seed, self.generation_size)
        self._members = [_Member(unit, None) for unit in points]

    def ask(self) -> UnitPoint | None:
        """Return the point of the next member, or None after the last slice."""
        if self._asked == len(self._members):
            return None
        self._asked += 1
        return self._members[self._asked - 1].unit

    def get_facts(self, index: int) -> dict[str, Any]:
        """Return the slice of a trial and the trial that it continues."""
        number, member = divmod(index, self.generation_size)
        parent = self._members[member].parent
        return {SLICE: number, SLICES: self._engine.slices, PARENT: parent}

    def tell(self, generation: Sequence[Observation]) -> None:
        """Exploit and explore after a slice of all members."""
        first = self._slice * self.generation_size
        self._slice, self._asked = self._slice + 1, 0
        finished = [i for i, point in enumerate(generation) if point.loss is not None]
        if self._slice == self._engine.slices or not finished:
            self._members = []
            return
        ranked = sorted(finished, key=lambda i: generation[i].loss or 0.0)
        count = max(1, math.ceil(_FRACTION * len(generation)))
        best = ranked[:count]
        replaced = {*range(len(generation))} - {*ranked[: max(count, len(generation) - count)]}
        stream = np.random.default_rng([self._engine.seed % SEED_MODULUS, self._slice])
        self._members = [
            self._replace(generation, first, i, int(stream.choice(best)), stream)
            if i in replaced
            else _Member(point.unit, first + i)
            for i, point in enumerate(generation)
        ]

    def _replace(
        self,
        generation: Sequence[Observation],
        first: int,
        member: int,
        better: int,
        stream: np.random.Generator,
    ) -> _Member:
        """Return a perturbed copy of a better member; a failed member has no weights to keep."""
        unit = np.array(generation[better].unit)
        signs = stream.choice([-1.0, 1.0], len(unit))
        moved = np.abs(unit + self._engine.step * signs)  # reflected at 0, then at 1
        moved = np.where(moved > 1.0, 2.0 - moved, moved)
        drawn = stream.random(len(unit))
        unit = np.where(stream.random(len(unit)) < _RESAMPLED, drawn, moved)
        keeps_weights = not self._engine.copy_weights and generation[member].loss is not None
        return _Member(tuple(unit.tolist()), first + (member if keeps_weights else better))

    def learn(self, points: Sequence[Observation]) -> None:
        """Ignore the points of other searches: they have no weights to continue."""
