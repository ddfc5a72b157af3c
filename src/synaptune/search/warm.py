"""A search that begins where an earlier study ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from synaptune.errors import mistake
from synaptune.search.contract import Told
from synaptune.search.space import Dimension, Space, Value


class Known(NamedTuple):
    """A trial of another study: values by name (those of other parameters are ignored), and its loss, null when it failed."""

    values: Mapping[str, Value]
    loss: float | None


class WarmStart(NamedTuple):
    """space: begins at the earlier study's best; prior: its trials as points of that space, for the optimizers that take them."""

    space: Space
    prior: tuple[Told, ...]


def warm_start(space: Space, trials: Sequence[Known], study: str) -> WarmStart:
    """Start a space at the best of the trials of another study, the earliest among equals.

    A best value outside its range is clipped to it; a name that the trial lacks, or a value that is no choice any more, keeps
    the space's own start. `prior` holds the trials that lie in the space, in their order; a name they lack is taken to have
    been at the new start. Losses are used as they are: both studies must measure the same thing.
    Raises UserError when no trial has a loss, or none of the searched names is in the best.
    """
    finished = [trial for trial in trials if trial.loss is not None]
    best = min(finished, key=lambda trial: trial.loss or 0.0, default=None)
    if best is None:
        raise mistake(
            got=f"search.start={study}, a study without a finished trial",
            expected="a study with at least one loss",
            do="choose another, or leave search.start out",
        )
    if not set(best.values) & set(space.names):
        raise mistake(
            got=f"search.start={study}, a study over {', '.join(best.values)}",
            expected=f"a study over some of {', '.join(space.names)}",
            do="choose another, or leave search.start out",
        )
    started = Space(tuple(_started(dimension, best.values) for dimension in space.dimensions))
    inside = [trial for trial in trials if all(_holds(entry, trial.values[entry.name]) for entry in _shared(started, trial))]
    begin = started.values(started.start())
    points = tuple(
        Told(started.unit({**begin, **{name: trial.values[name] for name in _names(started, trial)}}), trial.loss) for trial in inside
    )
    return WarmStart(started, points)


def _started(dimension: Dimension, values: Mapping[str, Value]) -> Dimension:
    value = values.get(dimension.name)
    if value is None:
        return dimension
    if dimension.scale == "categorical":
        return replace(dimension, start=value) if value in dimension.choices else dimension
    if isinstance(value, str):
        return dimension
    return replace(dimension, start=dimension.value(dimension.unit(value)))


def _shared(space: Space, trial: Known) -> list[Dimension]:
    return [dimension for dimension in space.dimensions if dimension.name in trial.values]


def _names(space: Space, trial: Known) -> list[str]:
    return [dimension.name for dimension in _shared(space, trial)]


def _holds(dimension: Dimension, value: Value) -> bool:
    """Whether a value lies in a dimension's range."""
    if dimension.scale == "categorical":
        return value in dimension.choices
    return not isinstance(value, str) and dimension.low <= value <= dimension.high
