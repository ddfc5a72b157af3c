"""Checks before a search: the optimizer works, and the signal of the objective exceeds its noise.

    f(x) = sum_i 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, x in [-5, 10]^10, minimum 0     (1)

Source: (1) Rosenbrock's function, 1960, in its usual many-dimensional form.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from synaptune.search.optimizers.optuna_samplers import MODEL_SAMPLERS
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

SOLVED_LOSS = 0.01  # value of eq. (1) that counts as solved; chosen: the search begins near 10^5
MAX_EVALUATIONS = 6000  # most of one attempt at eq. (1) [evaluation]; chosen: it takes about 4500
MODEL_EVALUATIONS = 40  # of a model of all points [evaluation]; chosen: some seconds
DIMENSIONS = 10  # dimensions of eq. (1); chosen: as many as phase 1 searches
_LOW, _HIGH = -5.0, 10.0  # range of eq. (1)
# Largest loss over unigram entropy that counts as learned; chosen: well below it.
LEARNED_RATIO = 0.9
MAX_ATTEMPTS = 4  # seeds tried on eq. (1) [seed]; chosen: about a quarter end in its local minimum
NOISE_RATIO = 0.01  # relative spread over seeds that is called noise; chosen: one percent


class OptimizerCheck(NamedTuple):
    """Result of an optimizer on eq. (1).

    Attributes:
        limit: value below which eq. (1) counts as solved.
        best: best value of all attempts.
        evaluations: evaluations of all attempts.
        seconds: wall time of all attempts [s].
        attempts: number of attempts.
    """

    limit: float
    best: float
    evaluations: int
    seconds: float
    attempts: int

    @property
    def is_solved(self) -> bool:
        """Whether the best value is below the limit."""
        return self.best < self.limit


def rosenbrock(x: Sequence[float]) -> float:
    """Compute eq. (1)."""
    return sum(
        100.0 * (after - before**2) ** 2 + (1.0 - before) ** 2
        for before, after in itertools.pairwise(x)
    )


def check_optimizer(name: str, seed: int) -> OptimizerCheck:
    """Run an optimizer on eq. (1) from the middle of the box until one attempt solves it.

    Each attempt uses another seed, and there are at most MAX_ATTEMPTS. Several attempts are allowed
    because eq. (1) has a local minimum of 3.99 near (-1, 1, ..., 1) that these optimizers do not
    leave. A model of all points, such as a Gaussian process, is too slow for thousands of
    evaluations. It has to find a better value in MODEL_EVALUATIONS than the middle and as many
    random points.
    """
    started_at, best, evaluations, attempts = time.perf_counter(), math.inf, 0, 0
    limit, longest = SOLVED_LOSS, MAX_EVALUATIONS
    if name in MODEL_SAMPLERS:
        longest = MODEL_EVALUATIONS
        by_chance, _ = _run_attempt("random", seed, limit=0.0, longest=longest)
        limit = min(by_chance, rosenbrock([(_LOW + _HIGH) / 2.0] * DIMENSIONS))
    while best >= limit and attempts < MAX_ATTEMPTS:
        attempt_best, attempt_evaluations = _run_attempt(
            name, seed + attempts, limit=limit, longest=longest
        )
        best, evaluations = min(best, attempt_best), evaluations + attempt_evaluations
        attempts += 1
    return OptimizerCheck(limit, best, evaluations, time.perf_counter() - started_at, attempts)


def _run_attempt(name: str, seed: int, *, limit: float, longest: int) -> tuple[float, int]:
    """Return the best value and the number of evaluations of one attempt."""
    space = Space(tuple(Dimension(f"x{axis}", "lin", _LOW, _HIGH) for axis in range(DIMENSIONS)))
    optimizer = make_optimizer(Engine(name, seed, budget=longest, noisy=False), space)
    best, evaluations = math.inf, 0
    while evaluations < longest and best >= limit:
        generation = []
        for _ in range(optimizer.generation_size):
            unit = optimizer.ask()
            assert unit is not None
            point = [float(value) for value in space.to_values(unit).values()]
            generation.append(Observation(unit, rosenbrock(point)))
        optimizer.tell(generation)
        evaluations += len(generation)
        losses = (observation.loss for observation in generation)
        best = min(best, *(loss for loss in losses if loss is not None))
    return best, evaluations


@dataclass(frozen=True)
class ObjectiveCheck:
    """Signal and noise of an objective. A spread is a standard deviation.

    Attributes:
        loss: mean over seeds at the default values [nats/token].
        reference: unigram entropy of the validation text [nats/token]; None if unknown.
        spread_over_seeds: spread over seeds at the default values [nats/token].
        noise: spread over seeds of the difference between a candidate and the default values
            [nats/token]. This is the noise that remains when all candidates share a seed. It is
            reported only and is not part of `faults`.
        spread_over_candidates: spread over candidates at one seed [nats/token]; None if too many
            failed.
        failed: number of candidates that failed.
        best_candidate: lowest loss of the candidates [nats/token]; None if all failed.
    """

    loss: float
    reference: float | None
    spread_over_seeds: float
    noise: float
    spread_over_candidates: float | None
    failed: int
    best_candidate: float | None = None

    @property
    def faults(self) -> list[str]:
        """Faults of the objective (steps, noise or range), one line each; empty if none."""
        faults = []
        if self.reference is not None and self.loss > LEARNED_RATIO * self.reference:
            level = (
                f"the loss {self.loss:.3f} is not well below "
                f"the unigram entropy {self.reference:.3f}"
            )
            faults.append(f"steps: {level}; train longer (training.steps)")
        if self.spread_over_candidates is None:
            faults.append(
                f"range: {self.failed} random candidates failed and too few are left; "
                "narrow the ranges, or read the reasons of the failed trials"
            )
        elif self.spread_over_candidates <= self.spread_over_seeds:
            spreads = f"candidates spread by {self.spread_over_candidates:.4f}, "
            spreads += f"seeds by {self.spread_over_seeds:.4f}, differences by {self.noise:.4f}"
            if self.spread_over_seeds > NOISE_RATIO * abs(self.loss):
                faults.append(
                    f"noise: {spreads}; "
                    "train longer, or validate on more batches (training.eval_batches)"
                )
            else:
                faults.append(f"range: {spreads}; search other parameters or wider ranges")
        return faults

    def to_facts(self) -> dict[str, Any]:
        """Return plain values, which the study stores."""
        return asdict(self) | {"faults": self.faults}


def check_objective(
    defaults: Sequence[float],
    candidates: Sequence[float | None],
    repeated: Sequence[Sequence[float | None]],
    reference: float | None,
) -> ObjectiveCheck:
    """Compute signal and noise of an objective from losses; None stands for a failed run.

    Args:
        defaults: losses of the default values over seeds.
        candidates: losses of random candidates at the first of these seeds.
        repeated: for some of the candidates, their losses over all of these seeds.
        reference: unigram entropy of the validation text [nats/token]; None if unknown.
    """
    losses = [loss for loss in candidates if loss is not None]
    spread = statistics.stdev(losses) if len(losses) >= max(2, len(candidates) // 2) else None
    spread_over_seeds = statistics.stdev(defaults)
    differences = [
        [loss - base for loss, base in zip(row, defaults, strict=True) if loss is not None]
        for row in repeated
    ]
    variances = [statistics.variance(row) for row in differences if len(row) == len(defaults)]
    noise = math.sqrt(statistics.fmean(variances)) if variances else spread_over_seeds
    return ObjectiveCheck(
        loss=statistics.fmean(defaults),
        reference=reference,
        spread_over_seeds=spread_over_seeds,
        noise=noise,
        spread_over_candidates=spread,
        failed=len(candidates) - len(losses),
        best_candidate=min(losses, default=None),
    )
