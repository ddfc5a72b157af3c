"""What a search drew its points from, found again from the study alone.

An optimizer's sequence follows from its engine, its space and the losses it was told (search/contract.py); all three are in the
study. So the distribution of every generation, and the sample behind every point, come back by asking and telling once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synaptune.search.optimizers.base import Engine, Told
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.reader import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 10  # points of a non-adaptive search that are looked at together


@dataclass(frozen=True)
class Batch:
    """Points drawn from one distribution, in unit coordinates.

    members: the trials; losses: null for a failed one; samples: (k, n) before folding; mean: (n,); covariance: (n, n); both null
    for independent uniform points.
    """

    members: Sequence[Trial]
    losses: Sequence[float | None]
    samples: NDArray[Any]
    mean: NDArray[Any] | None
    covariance: NDArray[Any] | None


@dataclass(frozen=True)
class Replay:
    """batches: of the search, in their order; diagnostics: after each whole generation; note: why there is no more, or empty."""

    batches: Sequence[Batch] = field(default_factory=list)
    diagnostics: Sequence[Diagnostics] = field(default_factory=list)
    note: str = ""


def replay(record: Record) -> Replay:
    """The draws of a study's last search; empty, with a note, for optimizers whose distribution is not known."""
    engine, trials = record.engine, [trial for trial in record.searched if trial.state != "running"]
    if engine is None or not trials:
        return Replay(note="no search has begun")
    space = record.spaces[record.searches[-1]]
    losses = [record.loss(trial) for trial in trials]
    if engine.name == "random":
        return _uniform(trials, losses)
    if engine.name == "cma":
        return _evolution(engine, space, trials, losses)
    return Replay(note=f"what {engine.name} draws from is not known to us")


def _uniform(trials: Sequence[Trial], losses: Sequence[float | None]) -> Replay:
    import numpy as np

    batches = [
        Batch(trials[at : at + BATCH], losses[at : at + BATCH], np.array([trial.unit for trial in trials[at : at + BATCH]]), None, None)
        for at in range(0, len(trials), BATCH)
    ]
    return Replay(batches)


def _evolution(engine: Engine, space: Space, trials: Sequence[Trial], losses: Sequence[float | None]) -> Replay:
    import numpy as np

    from synaptune.search.optimizers.cma import Cma, fold

    optimizer, size, count = Cma(engine, space), 0, len(space.dimensions)
    size = optimizer.generation_size
    batches: list[Batch] = []
    diagnostics: list[Diagnostics] = []
    for at in range(0, len(trials), size):
        # A point that is still running is not among the trials: what follows it cannot be told yet.
        whole = next((place for place, trial in enumerate(trials[at : at + size]) if trial.index != at + place), size)
        members, told = trials[at : at + whole], losses[at : at + whole]
        if not members:
            break
        mean, covariance = optimizer.distribution()
        samples = np.array([optimizer.draw()[:count] for _ in members])
        units = np.array([trial.unit for trial in members])
        folded = fold(samples)
        if at == 0:  # the start stands in for the first sample
            folded[0] = samples[0] = units[0]
        if not np.array_equal(folded, units):
            return Replay(batches, diagnostics, f"generation {at // size} is not what this version of cma would draw")
        batches.append(Batch(members, told, samples, mean, covariance))
        if len(members) < size:
            break
        optimizer.tell([Told(trial.unit, loss) for trial, loss in zip(members, told, strict=True)])
        found = optimizer.diagnostics()
        assert found is not None
        diagnostics.append(found)
    return Replay(batches, diagnostics)
