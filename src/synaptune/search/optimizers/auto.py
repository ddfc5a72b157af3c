"""`auto`: the choice of an optimizer by budget and workers.

A Gaussian process (`gp`) wins the most from each evaluation. Its time for a proposal grows with
the number of trials, and its lead shrinks. Above _GP_BUDGET evaluations, or with so many concurrent
trials that it would learn only a few times, `cma` is the choice.
Source: chosen by `make bench-budget` (docs/results.md, Small budgets).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from synaptune.search.config import SearchConfig
from synaptune.search.optimizers.base import Engine

AUTO = "auto"
_GP_BUDGET = 200  # largest number of evaluations of a Gaussian process
_MIN_ROUNDS = 4  # least number of times that an optimizer has to learn


class ResolvedEngine(NamedTuple):
    """The engine that a search uses, and the reason; an empty reason where none was chosen."""

    engine: Engine
    reason: str


def plan_engine(
    config: SearchConfig,
    *,
    optimizer: str,
    seed: int,
    workers: int,
    budget: int | None,
    noisy: bool = True,
    grid_points: int = 3,
) -> ResolvedEngine:
    """Return the engine of a new search; the attributes of `Engine` explain the arguments."""
    engine = Engine(
        optimizer,
        seed,
        workers,
        budget,
        noisy,
        grid_points,
        start_design=config.start_design,
        step=config.step,
        population=config.population,
        restarts=config.restarts,
        slices=config.slices,
        copy_weights=config.copy_weights,
    )
    return resolve_engine(engine)


def resolve_engine(engine: Engine) -> ResolvedEngine:
    """Replace `auto` by the optimizer for the plan; leave any other engine alone."""
    if engine.name != AUTO:
        return ResolvedEngine(engine, "")
    budget = engine.budget
    case = f"{'any number of' if budget is None else budget} evaluations"
    if engine.workers > 1:
        case += f", {engine.workers} at a time"
    planned = math.inf if budget is None else budget
    is_short = planned <= _GP_BUDGET
    if is_short and planned >= _MIN_ROUNDS * engine.workers:
        chosen, why = "gp", "a Gaussian process learns most from few evaluations"
    elif is_short:
        chosen, why = "cma", "a Gaussian process would learn too seldom"
    else:
        chosen, why = "cma", "its proposals cost nothing, and it gains by many evaluations"
    return ResolvedEngine(replace(engine, name=chosen), f"auto: {chosen} for {case}: {why}")
