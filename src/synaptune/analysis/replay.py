"""What a search drew its points from, found again from the study alone.

An optimizer's sequence follows from its engine, its space and the losses it was told (search/contract.py); all three are in the
study. So the distribution of every generation, and the sample behind every point, come back by asking and telling once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_SIZE = 10  # points of a non-adaptive search that are looked at together


@dataclass(frozen=True)
class SampleBatch:
    """Points drawn from one distribution, in unit coordinates.

    members: the trials; losses: null for a failed one; samples: (k, n) before folding; mean: (n,); covariance: (n, n); both null
    for independent uniform points.
    """

    trials: Sequence[Trial]
    losses: Sequence[float | None]
    samples: NDArray[Any]
    mean: NDArray[Any] | None
    covariance: NDArray[Any] | None


@dataclass(frozen=True)
class Replay:
    """batches: of the search, in their order; diagnostics: after each whole generation; note: why there is no more, or empty."""

    batches: Sequence[SampleBatch] = field(default_factory=list)
    diagnostics: Sequence[Diagnostics] = field(default_factory=list)
    note: str = ""


def replay(snapshot: StudySnapshot) -> Replay:
    """The draws of a study's last search; empty, with a note, for optimizers whose distribution is not known."""
    engine, trials = (
        snapshot.engine,
        [trial for trial in snapshot.search_trials if trial.state != "running"],
    )
    if engine is None or not trials:
        return Replay(note="no search has begun")
    space = snapshot.spaces[snapshot.searches[-1]]
    losses = [snapshot.get_loss(trial) for trial in trials]
    if engine.name == "random":
        return _replay_uniform(trials, losses)
    if engine.name == "cma":
        return _replay_cma(engine, space, trials, losses)
    return Replay(note=f"what {engine.name} draws from is not known to us")


def _replay_uniform(trials: Sequence[Trial], losses: Sequence[float | None]) -> Replay:
    import numpy as np

    batches = [
        SampleBatch(
            trials[at : at + BATCH_SIZE],
            losses[at : at + BATCH_SIZE],
            np.array([trial.unit for trial in trials[at : at + BATCH_SIZE]]),
            None,
            None,
        )
        for at in range(0, len(trials), BATCH_SIZE)
    ]
    return Replay(batches)


def _replay_cma(
    engine: Engine, space: Space, trials: Sequence[Trial], losses: Sequence[float | None]
) -> Replay:
    import numpy as np

    from synaptune.search.optimizers.cma import CmaOptimizer, fold

    optimizer, size, count = CmaOptimizer(engine, space), 0, len(space.dimensions)
    size = optimizer.generation_size
    batches: list[SampleBatch] = []
    diagnostics: list[Diagnostics] = []
    for at in range(0, len(trials), size):
        # A point that is still running is not among the trials: what follows it cannot be told yet.
        whole = next(
            (
                place
                for place, trial in enumerate(trials[at : at + size])
                if trial.index != at + place
            ),
            size,
        )
        members, told = trials[at : at + whole], losses[at : at + whole]
        if not members:
            break
        mean, covariance = optimizer.get_distribution()
        samples = np.array([optimizer.draw()[:count] for _ in members])
        units = np.array([trial.unit for trial in members])
        folded = fold(samples)
        if at == 0:  # the start stands in for the first sample
            folded[0] = samples[0] = units[0]
        if not np.array_equal(folded, units):
            return Replay(
                batches,
                diagnostics,
                f"generation {at // size} is not what this version of cma would draw",
            )
        batches.append(SampleBatch(members, told, samples, mean, covariance))
        if len(members) < size:
            break
        optimizer.tell(
            [Observation(trial.unit, loss) for trial, loss in zip(members, told, strict=True)]
        )
        found = optimizer.get_diagnostics()
        assert found is not None
        diagnostics.append(found)
    return Replay(batches, diagnostics)
