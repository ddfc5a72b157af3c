"""Tuning of the variants that a benchmark compares, on seeds that no comparison uses."""

from __future__ import annotations

import math
import statistics
from typing import Any

from runs import Job, RunCache, compose_config

from synaptune.core.errors import user_error
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.posterior import recommend
from synaptune.search.space.space import Space

SEARCH_SEED = 0
# Of the learning rates. On the search seed, the values of a search are the luckiest of its
# evaluations at its own learning rate, and at no other. One seed ranks neighbouring rates by
# chance.
RATE_SEEDS = (1, 2)
LEARNING_RATE = "training.learning_rate"
LOWEST_RATE, HIGHEST_RATE = 2e-3, 3.2e-2  # around the default of 8e-3


def make_grid(low: float, high: float, points: int) -> list[float]:
    """Return a geometric grid from `low` to `high`."""
    return [low * (high / low) ** (number / (points - 1)) for number in range(points)]


def tune_rates(
    runs: RunCache, rungs: dict[str, tuple[str, ...]], points: int, highest: float = HIGHEST_RATE
) -> dict[str, float]:
    """Return the best learning rate of each rung on a geometric grid, by validation loss.

    The loss is the mean over RATE_SEEDS; a rate at which a run diverges is never the best.

    Args:
        runs: the stored runs.
        rungs: overrides by name.
        points: size of the grid; with 0 all rungs keep the configured rate.
        highest: end of the grid.

    Raises:
        UserError: every run of a rung diverged.
    """
    if not points:
        return {
            name: compose_config((*runs.common, *overrides)).training.learning_rate
            for name, overrides in rungs.items()
        }
    rates = [float(f"{rate:.3g}") for rate in make_grid(LOWEST_RATE, highest, points)]
    jobs = [
        Job(f"{name}, {rate}", (*overrides, f"{LEARNING_RATE}={rate}", f"seed={seed}"))
        for name, overrides in rungs.items()
        for rate in rates
        for seed in RATE_SEEDS
    ]
    results = iter(runs.load_or_train(jobs, "learning rate"))
    best = {}
    for name in rungs:
        losses = {
            rate: statistics.fmean(next(results).get("val_loss", math.inf) for _ in RATE_SEEDS)
            for rate in rates
        }
        best[name] = min(rates, key=lambda rate: losses[rate])
        if math.isinf(losses[best[name]]):
            raise user_error(
                got=f"`{name}` diverges at all of {', '.join(map(str, rates))}",
                expected="a rung that trains",
                do="pass --rates 0 and a lower training.learning_rate",
            )
    return best


def tune_values(
    runs: RunCache, space: Space, *, budget: int, workers: int, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Search the best values of the synapse, by validation loss on the search seed.

    Args:
        runs: the stored runs.
        space: the search space.
        budget: evaluations.
        workers: runs at a time.
        overrides: overrides of every trial.

    Raises:
        UserError: every trial failed.
    """
    optimizer = make_optimizer(Engine("auto", SEARCH_SEED, workers, budget), space)
    trials: list[Observation] = []
    while len(trials) < budget:
        count = min(optimizer.generation_size, budget - len(trials))
        units = [unit for _ in range(count) if (unit := optimizer.ask()) is not None]
        points = [format_overrides(space.to_values(unit)) for unit in units]
        jobs = [
            Job(f"trial {number}", (*overrides, *point, f"seed={SEARCH_SEED}"))
            for number, point in enumerate(points, len(trials))
        ]
        results = runs.load_or_train(jobs, f"search from {len(trials)}/{budget}:")
        generation = [
            Observation(unit, result.get("val_loss"))
            for unit, result in zip(units, results, strict=True)
        ]
        trials += generation
        if len(generation) == optimizer.generation_size:
            optimizer.tell(generation)
    finished = [trial for trial in trials if trial.loss is not None]
    if not finished:
        raise user_error(
            got=f"{budget} failed trials",
            expected="a configuration that trains",
            do="see the reasons above",
        )
    best = recommend([trial.unit for trial in finished], [float(t.loss or 0) for t in finished])
    return space.to_values(finished[best.index].unit)


def format_overrides(values: dict[str, Any]) -> tuple[str, ...]:
    """Return values by name as overrides."""
    return tuple(f"{name}={value}" for name, value in values.items())
