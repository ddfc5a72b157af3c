"""First points of a search: the start of the space and a scrambled Sobol sample of the unit box.

A search that begins at the defaults with a small step spends a small budget close to them. Where
few of many parameters carry the effect, points that cover the box find its good part sooner
(docs/results.md, Small budgets).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import SEED_MODULUS, Engine
from synaptune.search.space.space import Space, UnitPoint

StartDesign = Literal["sobol", "defaults"]


def sample_design(space: Space, seed: int, count: int) -> list[UnitPoint]:
    """Return the start of the space and `count - 1` scrambled Sobol points."""
    from scipy.stats import qmc

    points = [space.get_start()]
    if count > 1:
        stream = np.random.default_rng(seed % SEED_MODULUS)
        sampler = qmc.Sobol(len(space.dimensions), scramble=True, rng=stream)
        sample = sampler.random(1 << (count - 2).bit_length())  # balanced for powers of two
        points += [tuple(row) for row in sample[: count - 1].tolist()]
    return points


def check_engine(engine: Engine) -> None:
    """Raise UserError that lists every invalid setting of an optimizer."""
    faults = []
    if engine.grid_points < 1:
        faults.append(f"grid_points={engine.grid_points}: expected an integer of at least 1")
    if engine.start_design not in get_args(StartDesign):
        known = " or ".join(get_args(StartDesign))
        faults.append(f"search.start_design={engine.start_design}: expected {known}")
    if not 0.0 < engine.step <= 1.0:
        faults.append(f"search.step={engine.step:g}: expected above 0 and at most 1")
    if engine.population is not None and engine.population < 4:
        faults.append(f"search.population={engine.population}: expected at least 4, or null")
    if engine.slices < 2:
        faults.append(f"search.slices={engine.slices}: expected at least 2")
    if engine.restarts < 0:
        faults.append(f"search.restarts={engine.restarts}: expected at least 0")
    if faults:
        raise UserError(
            "got an optimizer that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )
