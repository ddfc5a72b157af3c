"""Whether a search is worth starting: the optimizer works, and the objective carries a signal above its noise.

    Rosenbrock  f(x) = sum_i 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, x in [-5, 10]^10, minimum 0     (1)

Source: (1) Rosenbrock 1960, in its usual many-dimensional form.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

SOLVED_LOSS = 0.01  # value of eq. (1) that counts as solved; chosen: the search begins near 10^5
MAX_EVALUATIONS = 6000  # most of one attempt at eq. (1) [evaluation]; chosen: it takes about 4500
DIMENSIONS = 10  # dimensions of eq. (1); chosen: as many as phase 1 searches
# Largest loss over unigram entropy that counts as learned; chosen: well below it.
LEARNED_RATIO = 0.9
MAX_ATTEMPTS = 4  # seeds tried on eq. (1) [seed]; chosen: about a quarter end in its local minimum
NOISE_RATIO = 0.01  # relative spread over seeds that is called noise; chosen: one percent


class OptimizerCheck(NamedTuple):
    """The optimizer on eq. (1): its best value, the evaluations and seconds of all attempts, and how many there were."""

    best: float
    evaluations: int
    seconds: float
    attempts: int

    @property
    def is_solved(self) -> bool:
        """Whether the best value is below SOLVED."""
        return self.best < SOLVED_LOSS


def rosenbrock(x: Sequence[float]) -> float:
    """Eq. (1)."""
    return sum(
        100.0 * (after - before**2) ** 2 + (1.0 - before) ** 2
        for before, after in itertools.pairwise(x)
    )


def check_optimizer(name: str, seed: int) -> OptimizerCheck:
    """Run an optimizer on eq. (1) from the middle of the box until an attempt solves it; attempts differ in their seed.

    More than one is fair: eq. (1) has a local minimum of 3.99 near (-1, 1, ..., 1), from which no search of this kind returns.
    """
    began, best, evaluations, attempt = time.perf_counter(), math.inf, 0, 0
    while best >= SOLVED_LOSS and attempt < MAX_ATTEMPTS:
        reached, spent = _run_attempt(name, seed + attempt)
        best, evaluations, attempt = min(best, reached), evaluations + spent, attempt + 1
    return OptimizerCheck(best, evaluations, time.perf_counter() - began, attempt)


def _run_attempt(name: str, seed: int) -> tuple[float, int]:
    """Best value and evaluations of one attempt."""
    space = Space(tuple(Dimension(f"x{axis}", "lin", -5.0, 10.0) for axis in range(DIMENSIONS)))
    optimizer = make_optimizer(Engine(name, seed, budget=MAX_EVALUATIONS, noisy=False), space)
    best, spent = math.inf, 0
    while spent < MAX_EVALUATIONS and best >= SOLVED_LOSS:
        generation = []
        for _ in range(optimizer.generation_size):
            unit = optimizer.ask()
            assert unit is not None
            generation.append(
                Observation(
                    unit, rosenbrock([float(value) for value in space.to_values(unit).values()])
                )
            )
        optimizer.tell(generation)
        spent += len(generation)
        best = min(best, *(told.loss for told in generation if told.loss is not None))
    return best, spent


@dataclass(frozen=True)
class ObjectiveCheck:
    """What the objective says [nats/token].

    loss: mean over seeds at the defaults; reference: unigram entropy of the validation text, null when it is unknown;
    spread_over_seeds: at the defaults; noise: spread over seeds of a candidate's difference from the defaults, which is what
    remains of it when all candidates share a seed (reported, not judged);
    spread_over_candidates: at one seed, null when too few are left; failed:
    candidates that failed.
    """

    loss: float
    reference: float | None
    spread_over_seeds: float
    noise: float
    spread_over_candidates: float | None
    failed: int

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, one line each: steps, noise or range; empty when a search makes sense."""
        found = []
        if self.reference is not None and self.loss > LEARNED_RATIO * self.reference:
            level = f"the loss {self.loss:.3f} is not well below the unigram entropy {self.reference:.3f}"
            found.append(f"steps: {level}; train longer (training.steps)")
        if self.spread_over_candidates is None:
            found.append(
                f"range: {self.failed} random candidates failed, too few are left; narrow the ranges, or see the trials' reasons"
            )
        elif self.spread_over_candidates <= self.spread_over_seeds:
            spreads = f"candidates spread by {self.spread_over_candidates:.4f}, "
            spreads += f"seeds by {self.spread_over_seeds:.4f}, differences by {self.noise:.4f}"
            if self.spread_over_seeds > NOISE_RATIO * abs(self.loss):
                found.append(
                    f"noise: {spreads}; train longer, or validate on more batches (training.eval_batches)"
                )
            else:
                found.append(f"range: {spreads}; search other parameters or wider ranges")
        return found

    def to_facts(self) -> dict[str, Any]:
        """Plain values, for the study."""
        return asdict(self) | {"faults": self.faults}


def check_objective(
    defaults: Sequence[float],
    candidates: Sequence[float | None],
    repeated: Sequence[Sequence[float | None]],
    reference: float | None,
) -> ObjectiveCheck:
    """The signal from losses (null: failed) of the defaults over seeds, of random candidates at the first of these seeds, and of
    some of them, `repeated`, over all the seeds."""
    alive = [loss for loss in candidates if loss is not None]
    spread = statistics.stdev(alive) if len(alive) >= max(2, len(candidates) // 2) else None
    over_seeds = statistics.stdev(defaults)
    whole = [
        [loss - base for loss, base in zip(row, defaults, strict=True) if loss is not None]
        for row in repeated
    ]
    variances = [statistics.variance(row) for row in whole if len(row) == len(defaults)]
    noise = math.sqrt(statistics.fmean(variances)) if variances else over_seeds
    return ObjectiveCheck(
        statistics.fmean(defaults),
        reference,
        over_seeds,
        noise,
        spread,
        len(candidates) - len(alive),
    )
