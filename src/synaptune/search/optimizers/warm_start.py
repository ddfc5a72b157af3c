"""Warm start: a search that starts at the best trial of an earlier study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import Observation
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import Value


class EarlierTrial(NamedTuple):
    """A trial of another study.

    Attributes:
        values: parameter values by name; other parameters than the searched ones are ignored.
        loss: loss of the trial; None if it failed.
    """

    values: Mapping[str, Value]
    loss: float | None


class WarmStart(NamedTuple):
    """Start of a search from an earlier study.

    Attributes:
        space: search space that starts at the best trial of the earlier study.
        prior: trials of the earlier study as points of that space, for optimizers that use them.
    """

    space: Space
    prior: tuple[Observation, ...]


def warm_start(space: Space, trials: Sequence[EarlierTrial], study: str) -> WarmStart:
    """Start a search space at the best trial of another study, the earliest among equals.

    A value outside its range is clipped to the range. A parameter keeps its own start if the trial
    lacks it, or if its value is no longer one of the choices. `prior` contains the trials that lie
    in the space, in their order; a parameter that a trial lacks is set to the new start. Losses are
    used without conversion: both studies must minimize the same quantity.

    Args:
        space: the search space.
        trials: trials of the other study.
        study: name of the other study, for messages.

    Raises:
        UserError: no trial has a loss, or the best trial has none of the searched parameters.
    """
    best = min(
        trials, key=lambda trial: math.inf if trial.loss is None else trial.loss, default=None
    )
    if best is None or best.loss is None:
        raise user_error(
            got=f"search.start={study}, a study without a finished trial",
            expected="a study with at least one loss",
            do="choose another study, or omit search.start",
        )
    if not set(best.values) & set(space.names):
        raise user_error(
            got=f"search.start={study}, a study over {', '.join(best.values)}",
            expected=f"a study over some of {', '.join(space.names)}",
            do="choose another study, or omit search.start",
        )
    new_space = Space(tuple(_set_start(dimension, best.values) for dimension in space.dimensions))
    start = new_space.to_values(new_space.get_start())
    prior = []
    for trial in trials:
        shared = [dimension for dimension in new_space.dimensions if dimension.name in trial.values]
        if shared and all(dimension.contains(trial.values[dimension.name]) for dimension in shared):
            values = start | {dimension.name: trial.values[dimension.name] for dimension in shared}
            prior.append(Observation(new_space.to_unit(values), trial.loss))
    return WarmStart(new_space, tuple(prior))


def _set_start(dimension: Dimension, values: Mapping[str, Value]) -> Dimension:
    if dimension.name not in values:
        return dimension
    value = values[dimension.name]
    if dimension.scale == "categorical":
        return replace(dimension, start=value) if dimension.contains(value) else dimension
    if not isinstance(value, int | float):
        return dimension
    return replace(dimension, start=dimension.to_value(dimension.to_unit(value)))
