"""A search that begins where an earlier study ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import Observation
from synaptune.search.space.space import Dimension, Space, Value


class EarlierTrial(NamedTuple):
    """A trial of another study: values by name (those of other parameters are ignored), and its loss, null when it failed."""

    values: Mapping[str, Value]
    loss: float | None


class WarmStart(NamedTuple):
    """space: begins at the earlier study's best; prior: its trials as points of that space, for the optimizers that take them."""

    space: Space
    prior: tuple[Observation, ...]


def warm_start(space: Space, trials: Sequence[EarlierTrial], study: str) -> WarmStart:
    """Start a space at the best of the trials of another study, the earliest among equals.

    A best value outside its range is clipped to it; a name that the trial lacks, or a value that is no choice any more, keeps
    the space's own start. `prior` holds the trials that lie in the space, in their order; a name they lack is taken to have
    been at the new start. Losses are used as they are: both studies must measure the same thing.
    Raises UserError when no trial has a loss, or none of the searched names is in the best.
    """
    best = min(
        trials, key=lambda trial: math.inf if trial.loss is None else trial.loss, default=None
    )
    if best is None or best.loss is None:
        raise user_error(
            got=f"search.start={study}, a study without a finished trial",
            expected="a study with at least one loss",
            do="choose another, or leave search.start out",
        )
    if not set(best.values) & set(space.names):
        raise user_error(
            got=f"search.start={study}, a study over {', '.join(best.values)}",
            expected=f"a study over some of {', '.join(space.names)}",
            do="choose another, or leave search.start out",
        )
    started = Space(tuple(_set_start(dimension, best.values) for dimension in space.dimensions))
    begin = started.to_values(started.get_start())
    prior = []
    for trial in trials:
        shared = [dimension for dimension in started.dimensions if dimension.name in trial.values]
        if shared and all(dimension.contains(trial.values[dimension.name]) for dimension in shared):
            values = begin | {dimension.name: trial.values[dimension.name] for dimension in shared}
            prior.append(Observation(started.to_unit(values), trial.loss))
    return WarmStart(started, tuple(prior))


def _set_start(dimension: Dimension, values: Mapping[str, Value]) -> Dimension:
    value = values.get(dimension.name)
    if value is None:
        return dimension
    if dimension.scale == "categorical":
        return replace(dimension, start=value) if value in dimension.choices else dimension
    if isinstance(value, str):
        return dimension
    return replace(dimension, start=dimension.to_value(dimension.to_unit(value)))
