"""Every optimizer by its name.

cma                    pycma, folded into the unit box                                     evolution.py
random, grid           independent uniform points; the Cartesian product of the values     plain.py
tpe, gp, cmaes, qmc    Optuna's samplers                                                   optuna_samplers.py
any other              an algorithm of Nevergrad's registry                                nevergrad_registry.py
"""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.core.errors import mistake
from synaptune.search.optimizers.base import Engine, Optimizer, Told
from synaptune.search.optimizers.cma import Cma
from synaptune.search.optimizers.nevergrad_registry import Nevergrad
from synaptune.search.optimizers.optuna_samplers import SAMPLERS, Sampler
from synaptune.search.optimizers.uniform_grid import Grid, Uniform, batch
from synaptune.search.space.space import Space

BUILT_IN = ("cma", "random", "grid", *SAMPLERS)

__all__ = ["BUILT_IN", "Engine", "Grid", "Optimizer", "Told", "make_optimizer"]


def make_optimizer(engine: Engine, space: Space, prior: Sequence[Told] = ()) -> Optimizer:
    """The optimizer of an engine; raises UserError for an unknown name or one that cannot be built.

    prior: points of an earlier study that `tpe` and `gp` know before their first ask (see warm.py); the others take no notice.
    """
    if engine.grid_points < 1:
        raise mistake(got=f"grid_points={engine.grid_points}", expected="an integer of at least 1", do="correct it")
    if engine.name == "grid":
        return Grid([dimension.axis(engine.grid_points) for dimension in space.dimensions], batch(engine.workers))
    if engine.name == "random":
        return Uniform(len(space.dimensions), engine.seed, batch(engine.workers))
    if engine.name == "cma":
        return Cma(engine, space)
    if engine.name in SAMPLERS:
        return Sampler(engine, space, prior)
    return Nevergrad(engine, space, BUILT_IN)
