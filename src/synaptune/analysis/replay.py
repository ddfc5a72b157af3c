"""Replay of a search: the distributions of its points, recomputed from the study alone.

The points of an optimizer are determined by its engine, its space and the losses that it received
(search/optimizers/base.py). All three are stored in the study. Asking and telling a new optimizer
therefore reproduces the distribution of every generation and the sample of every point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from synaptune.analysis.ranking import rescore_study
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import ENQUEUED, LEARNED, Trial
from synaptune.study.additions import observe_imported
from synaptune.study.database import keys as schema
from synaptune.study.reader import StudySnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_SIZE = 10  # points of a batch in a non-adaptive search


@dataclass(frozen=True)
class SampleBatch:
    """Points drawn from one distribution, in unit coordinates.

    Attributes:
        trials: the k trials.
        losses: their losses; None for a failed trial.
        samples: the samples before folding into the unit box (k, n).
        mean: mean of the distribution (n,); None for independent uniform points.
        covariance: covariance of the distribution (n, n); None for independent uniform points.
    """

    trials: Sequence[Trial]
    losses: Sequence[float | None]
    samples: NDArray[Any]
    mean: NDArray[Any] | None
    covariance: NDArray[Any] | None


@dataclass(frozen=True)
class Replay:
    """The replayed part of a search.

    Attributes:
        batches: the batches in their order.
        diagnostics: state of the optimizer after each complete generation.
        note: why the replay ends early; empty if it does not.
    """

    batches: Sequence[SampleBatch] = field(default_factory=list)
    diagnostics: Sequence[Diagnostics] = field(default_factory=list)
    note: str = ""


def replay_rescored(snapshot: StudySnapshot) -> Replay:
    """Replay the last search of a study, and give its batches comparable losses (ranking.py)."""
    replayed, rescored = replay(snapshot), rescore_study(snapshot)
    if rescored is snapshot:
        return replayed
    losses = {trial.number: rescored.get_complete_loss(trial) for trial in rescored.trials}
    batches = [
        replace(batch, losses=[losses[trial.number] for trial in batch.trials])
        for batch in replayed.batches
    ]
    return replace(replayed, batches=batches)


def replay(snapshot: StudySnapshot) -> Replay:
    """Replay the last search of a study.

    The result is empty, with a note, for optimizers whose distribution is not known.
    """
    engine = snapshot.engine
    trials = [trial for trial in snapshot.search_trials if trial.state != "running"]
    if engine is None or not trials:
        return Replay(note="no search has begun")
    space = snapshot.spaces[snapshot.searches[-1]]
    losses = [snapshot.get_loss(trial) for trial in trials]
    if engine.name == "random":
        return _replay_uniform(trials, losses)
    if engine.name == "cma":
        trials_of_others = snapshot.get_phase_trials(schema.IMPORTED)
        imported = observe_imported(space, trials_of_others, maximize=snapshot.maximize)
        return _replay_cma(engine, space, trials, losses, imported)
    return Replay(note=f"the optimizer {engine.name} draws its points from no known distribution")


def _replay_uniform(trials: Sequence[Trial], losses: Sequence[float | None]) -> Replay:
    import numpy as np

    parts = [slice(first, first + BATCH_SIZE) for first in range(0, len(trials), BATCH_SIZE)]
    units = np.array([trial.unit for trial in trials])
    return Replay([SampleBatch(trials[i], losses[i], units[i], None, None) for i in parts])


def _replay_cma(
    engine: Engine,
    space: Space,
    trials: Sequence[Trial],
    losses: Sequence[float | None],
    imported: Sequence[Observation] = (),
) -> Replay:
    import numpy as np

    from synaptune.search.optimizers.cma import CmaOptimizer, fold

    optimizer, count = CmaOptimizer(engine, space), len(space.dimensions)
    size = optimizer.generation_size
    batches: list[SampleBatch] = []
    diagnostics: list[Diagnostics] = []
    learned, is_first = 0, True
    for first in range(0, len(trials), size):
        # Running trials are not among the trials. The batch ends before the first missing one.
        length = next(
            (
                offset
                for offset, trial in enumerate(trials[first : first + size])
                if trial.index != first + offset
            ),
            size,
        )
        generation = list(zip(trials[first : first + length], losses[first:], strict=False))
        if not generation:
            break
        count_learned = max(trial.facts.get(LEARNED, 0) for trial, _ in generation)
        if count_learned > learned:
            optimizer.learn(imported[learned:count_learned])
            learned = count_learned
        # The optimizer drew no sample for a point that a user enqueued.
        asked = [(trial, loss) for trial, loss in generation if ENQUEUED not in trial.facts]
        members = [trial for trial, _ in asked]
        # The first design has no distribution that an effect could be conditioned on: None.
        known = None if optimizer.is_designing else optimizer.get_distribution()
        mean, covariance = (None, None) if known is None else known
        samples = np.array([optimizer.draw()[:count] for _ in members]).reshape(-1, count)
        units = np.array([trial.unit for trial in members]).reshape(-1, count)
        folded = fold(samples)
        if is_first and members:  # the start point replaces the first sample
            folded[0], samples[0], is_first = units[0], units[0], False
        if not np.array_equal(folded, units):
            return Replay(
                batches,
                diagnostics,
                f"generation {first // size} differs from what this version of cma would draw",
            )
        member_losses = [loss for _, loss in asked]
        if members:
            batches.append(SampleBatch(members, member_losses, samples, mean, covariance))
        if len(generation) < size:
            break
        optimizer.tell(
            [
                Observation(trial.unit, loss, is_asked=ENQUEUED not in trial.facts)
                for trial, loss in generation
            ]
        )
        state = optimizer.get_diagnostics()
        assert state is not None
        diagnostics.append(state)
    return Replay(batches, diagnostics)
