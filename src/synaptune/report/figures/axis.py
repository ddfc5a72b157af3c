"""The axis of a parameter: every parameter is drawn over [0, 1], where its search moved, and labelled with its values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.results import Evidence
from synaptune.core.errors import UserError
from synaptune.report.figures.layout import format_number
from synaptune.search.space.space import Dimension

if TYPE_CHECKING:
    from matplotlib.axis import Axis

_LONGEST_CHOICE = 9  # letters of a choice


def list_dimensions(evidence: Evidence) -> list[Dimension]:
    """The ranges of the searched parameters, by subsystem as the evidence orders them; empty when no search has begun."""
    known = (
        {}
        if evidence.space is None
        else {dimension.name: dimension for dimension in evidence.space.dimensions}
    )
    return [known[name] for name in evidence.names if name in known]


def choose_dimensions(
    evidence: Evidence, most: int, drawable: Collection[str] | None = None
) -> tuple[list[Dimension], str]:
    """At most so many parameters, those that matter most, in their order, and a note when some are left out for room.

    drawable: names of those that have something to draw, null is all.
    """
    found = [
        dimension
        for dimension in list_dimensions(evidence)
        if drawable is None or dimension.name in drawable
    ]
    if len(found) <= most:
        return found, ""
    worth = {
        entry.name: abs(entry.reverted.mean)
        for entry in evidence.ablation
        if entry.reverted is not None
    }
    share = {
        entry.name: max(entry.fanova or 0.0, entry.ped_anova or 0.0)
        for entry in evidence.importances
    }
    ranked = sorted(
        found,
        key=lambda dimension: (-worth.get(dimension.name, -1.0), -share.get(dimension.name, 0.0)),
    )
    kept = {dimension.name for dimension in ranked[:most]}
    order = ", by importance" if any(worth.values()) or any(share.values()) else ", the first ones"
    return [
        dimension for dimension in found if dimension.name in kept
    ], f" Shown are {most} of {len(found)} parameters{order}."


def locate_value(dimension: Dimension, value: Any) -> float:
    """Where a value is drawn; nan for one that is not known or not a value of this parameter."""
    if value is None:
        return math.nan
    try:
        return dimension.to_unit(value)
    except (UserError, TypeError, ValueError):
        return math.nan


def locate_values(dimension: Dimension, values: Sequence[Any]) -> list[float]:
    """`unit_of` of each."""
    return [locate_value(dimension, value) for value in values]


def set_value_ticks(axis: Axis, dimension: Dimension, count: int = 4) -> None:
    """Round values of the parameter at their places on an axis over [0, 1]."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    values = list_round_values(dimension, count)
    axis.set_major_locator(FixedLocator([locate_value(dimension, value) for value in values]))
    axis.set_major_formatter(FixedFormatter([format_tick(value) for value in values]))


def list_round_values(dimension: Dimension, count: int) -> list[Any]:
    """At most `count` round values inside the range: all choices, steps of a linear range, 1-2-5 or decades of a logarithmic one."""
    if dimension.scale == "categorical":
        stride = math.ceil(len(dimension.choices) / count)
        return list(dimension.choices[::stride])
    low, high = dimension.low, dimension.high
    if dimension.scale == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
            if len(found) <= count:
                break
        return found[:: math.ceil(len(found) / count)] if found else [low, high]
    from matplotlib.ticker import MaxNLocator

    steps = MaxNLocator(count - 1, steps=[1, 2, 2.5, 5, 10], integer=dimension.integer).tick_values(
        low, high
    )
    return [float(f"{value:.6g}") for value in steps if low - 1e-9 <= value <= high + 1e-9]


def format_tick(value: Any) -> str:
    """A value in few letters; a long choice is cut."""
    words = format_number(value)
    return (
        words
        if len(words) <= _LONGEST_CHOICE or not isinstance(value, str)
        else f"{words[: _LONGEST_CHOICE - 1]}…"
    )
