"""The ask / tell contract of every optimizer: `ask` for the points of a generation, `tell` the generation's losses.

An optimizer owns its random stream: it neither sees nor moves the global random state, whatever an objective does to it. It
is picklable between generations, and the same asks and tells make the same points bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import UnitPoint

SEED_MODULUS = 2**32


class Observation(NamedTuple):
    """A finished point: its loss, or null for a failed trial."""

    unit: UnitPoint
    loss: float | None


class Optimizer(Protocol):
    """Proposes points; `tell` gets one whole generation, in the order of its asks.

    learns: whether losses change what it asks for. One that does not learn needs neither whole generations nor a state file:
    asking again for as many points brings it back.
    """

    generation_size: int
    learns: bool = True

    def ask(self) -> UnitPoint | None:
        """The next point; null when there is none left."""
        ...

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn a generation's losses; points never asked for (a rebuilt search) are welcome."""
        ...

    def get_diagnostics(self) -> Diagnostics | None:
        """The state of its search distribution after the latest generation told; null where there is none."""
        return None


@dataclass(frozen=True)
class Engine:
    """What determines an optimizer's sequence, stored with the study.

    name: one of `optimizers.BUILT_IN` or of Nevergrad's registry; workers: trials at a time, which a generation has room for;
    budget: evaluations planned at first (some algorithms adapt to it); noisy: tell the algorithms that ask for it that losses
    are noisy; grid_points: values per continuous dimension of a grid.
    """

    name: str
    seed: int
    workers: int = 1
    budget: int | None = None
    noisy: bool = True
    grid_points: int = 3


class RankedLosses(NamedTuple):
    """losses: finite for every point; worst: the largest loss of all generations so far."""

    losses: list[float]
    worst: float


def rank_losses(generation: Sequence[Observation], worst: float) -> RankedLosses:
    """Losses with the failed points just above the worst of their generation, so that they rank last and distort no scale.

    worst: the largest loss of the generations before, the level of a generation that failed whole.
    """
    finite = [told.loss for told in generation if told.loss is not None]
    top = max(finite, default=worst)
    spread = top - min(finite, default=top)
    failed = top + max(spread, 1e-6 + 1e-3 * abs(top))
    return RankedLosses(
        [failed if told.loss is None else told.loss for told in generation],
        max([worst, *finite]) if finite else worst,
    )
