"""Optimizers by name.

auto                   one of them by budget, dimensions and workers    auto.py
cma                    pycma, folded into the unit box                  cma.py
random, grid           independent uniform points; the Cartesian        uniform_grid.py
                       product of the values (shuffled_grid: in a
                       random order, for a sample of it)
pbt                    population-based training, in slices of a run   pbt.py
tpe, gp, cmaes, qmc    Optuna's samplers                                optuna_samplers.py
any other              an algorithm of Nevergrad's registry             nevergrad_registry.py
"""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.search.optimizers.auto import AUTO, resolve_engine
from synaptune.search.optimizers.base import Engine, Observation, Optimizer
from synaptune.search.optimizers.cma import CmaOptimizer
from synaptune.search.optimizers.nevergrad_registry import NevergradOptimizer, check_algorithm
from synaptune.search.optimizers.optuna_samplers import SAMPLERS, OptunaOptimizer
from synaptune.search.optimizers.pbt import PBT, PbtOptimizer
from synaptune.search.optimizers.start_design import check_engine
from synaptune.search.optimizers.uniform_grid import GridOptimizer, UniformOptimizer, batch_size
from synaptune.search.space.space import Space

BUILT_IN = (AUTO, "cma", "random", "grid", PBT, *SAMPLERS)

__all__ = ["BUILT_IN", "Engine", "GridOptimizer", "Observation", "Optimizer", "make_optimizer"]


def make_optimizer(engine: Engine, space: Space, prior: Sequence[Observation] = ()) -> Optimizer:
    """Create the optimizer of an engine.

    Args:
        engine: name and options of the optimizer.
        space: the search space.
        prior: points of an earlier study that `tpe` and `gp` learn before their first ask
            (warm_start.py); the other optimizers ignore them.

    Raises:
        UserError: the name is unknown, or the optimizer cannot be created.
    """
    check_engine(engine)
    engine = resolve_engine(engine).engine
    if engine.name == "grid":
        return GridOptimizer(
            [dimension.make_grid(engine.grid_points) for dimension in space.dimensions],
            batch_size(engine.workers),
        )
    if engine.name == "shuffled_grid":
        grid = [dimension.make_grid(engine.grid_points) for dimension in space.dimensions]
        return GridOptimizer(grid, batch_size(engine.workers), seed=engine.seed)
    if engine.name == "random":
        return UniformOptimizer(len(space.dimensions), engine.seed, batch_size(engine.workers))
    if engine.name == "cma":
        return CmaOptimizer(engine, space)
    if engine.name == PBT:
        return PbtOptimizer(engine, space)
    if engine.name in SAMPLERS:
        return OptunaOptimizer(engine, space, prior)
    check_algorithm(engine, len(space.dimensions), BUILT_IN)
    return NevergradOptimizer(engine, space)
