"""The ask-and-tell interface of the optimizers.

`ask` returns the points of a generation one by one, `tell` takes the losses of the generation.

An optimizer has its own random stream. It neither reads nor changes the global random state, even
if an objective does. It can be pickled between generations. The same sequence of asks and tells
gives the same points bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import UnitPoint

SEED_MODULUS = 2**32


class Observation(NamedTuple):
    """A finished point.

    Attributes:
        unit: point of the unit box.
        loss: loss at the point; None for a failed trial.
        is_asked: whether the optimizer proposed the point; False for one that a user enqueued.
    """

    unit: UnitPoint
    loss: float | None
    is_asked: bool = True


class Optimizer(Protocol):
    """Proposes points of the unit box.

    Attributes:
        generation_size: number of points of a generation.
        learns: whether the points depend on the losses. An optimizer that does not learn needs
            neither complete generations nor a state file: asking again for as many points restores
                it.
    """

    generation_size: int
    learns: bool = True

    @property
    def is_asynchronous(self) -> bool:
        """Whether the optimizer can learn points one by one in any order.

        Processes that share a study then do not wait for the generations of each other.
        """
        return False

    def ask(self) -> UnitPoint | None:
        """Return the next point, or None if no point is left."""
        ...

    def tell(self, generation: Sequence[Observation]) -> None:
        """Learn the losses of one complete generation, in the order of its asks.

        Points that were not asked for are accepted; they occur when a search is rebuilt.
        """
        ...

    def learn(self, points: Sequence[Observation]) -> None:
        """Learn points of other searches, between two generations.

        An optimizer that cannot use them ignores them.
        """
        self.tell(points)

    def reseed(self, engine: Engine, index: int) -> None:
        """Draw the point with this index, and later ones, from a random stream of its own.

        Only an asynchronous optimizer does so. Its random stream says nothing about the points that
        are stored if other processes drew some of them.
        """

    def get_facts(self, index: int) -> dict[str, Any]:
        """Return facts for the trial with this index, which has the point of the last ask.

        The fact PARENT is an index here; the search replaces it by the number of that trial.
        """
        return {}

    def get_diagnostics(self) -> Diagnostics | None:
        """Return the search distribution after the last generation, or None if there is none."""
        return None


@dataclass(frozen=True)
class Engine:
    """Everything that determines the sequence of an optimizer; stored with the study.

    Attributes:
        name: an entry of `registry.BUILT_IN` or of Nevergrad's registry.
        seed: seed of the random stream.
        workers: number of concurrent trials; a generation has at least this size.
        budget: number of evaluations planned at the start; some algorithms adapt to it.
        noisy: whether losses are noisy, for algorithms with such an option.
        grid_points: number of values of a continuous dimension in a grid.
        start_design: first points of `cma` and `gp`: `sobol` spreads them over the space, and
            `defaults` begins at the start of the space. The values of this class are those of the
            studies that were stored without these settings.
        step: first standard deviation of `cma` with the design `defaults` [unit range].
        population: points of a generation of `cma`; None means 4 + 3 ln n. Members of `pbt`; None
            means as many as the budget gives slices.
        restarts: largest number of restarts of `cma`.
        slices: number of slices of a run of `pbt`.
        copy_weights: whether `pbt` copies weights with the parameters.
    """

    name: str
    seed: int
    workers: int = 1
    budget: int | None = None
    noisy: bool = True
    grid_points: int = 3
    start_design: str = "defaults"
    step: float = 0.2
    population: int | None = None
    restarts: int = 0
    slices: int = 4
    copy_weights: bool = True


class RankedLosses(NamedTuple):
    """Losses that can be ranked.

    Attributes:
        losses: a finite loss for every point.
        worst: largest loss of all generations so far.
    """

    losses: list[float]
    worst: float


def rank_losses(generation: Sequence[Observation], worst: float) -> RankedLosses:
    """Place the failed points just above the largest loss of their generation.

    They then rank last and do not distort the scale of the losses.

    Args:
        generation: the points of a generation.
        worst: largest loss of the previous generations, used if all points of the generation
            failed.
    """
    finite = [point.loss for point in generation if point.loss is not None]
    top = max(finite, default=worst)
    spread = top - min(finite, default=top)
    failed = top + max(spread, 1e-6 + 1e-3 * abs(top))
    return RankedLosses(
        [failed if point.loss is None else point.loss for point in generation],
        max([worst, *finite]) if finite else worst,
    )
