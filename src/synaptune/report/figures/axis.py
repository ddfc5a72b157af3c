"""The axis of a parameter.

Every parameter is drawn over its unit coordinate in [0, 1] and labelled with its values.
"""

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

_LONGEST_CHOICE = 9  # [characters] a longer choice is cut


def list_dimensions(evidence: Evidence) -> list[Dimension]:
    """List the ranges of the searched parameters, in the order of the evidence.

    The list is empty when no search has started.
    """
    known = (
        {}
        if evidence.space is None
        else {dimension.name: dimension for dimension in evidence.space.dimensions}
    )
    return [known[name] for name in evidence.names if name in known]


def choose_dimensions(
    evidence: Evidence, most: int, drawable: Collection[str] | None = None
) -> tuple[list[Dimension], str]:
    """Choose the most important parameters for a figure with limited room.

    Args:
        evidence: the study.
        most: maximum number of parameters.
        drawable: names of the parameters that have data; None means all.

    Returns:
        The parameters in their order, and a note for the caption. The note is empty when no
        parameter is left out.
    """
    dimensions = [
        dimension
        for dimension in list_dimensions(evidence)
        if drawable is None or dimension.name in drawable
    ]
    if len(dimensions) <= most:
        return dimensions, ""
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
        dimensions,
        key=lambda dimension: (-worth.get(dimension.name, -1.0), -share.get(dimension.name, 0.0)),
    )
    names = {dimension.name for dimension in ranked[:most]}
    order = ", by importance" if any(worth.values()) or any(share.values()) else ", the first ones"
    note = f" Shown are {most} of {len(dimensions)} parameters{order}."
    return [dimension for dimension in dimensions if dimension.name in names], note


def locate_value(dimension: Dimension, value: Any) -> float:
    """Map a value to its coordinate on the axis; nan when it is unknown or outside the domain."""
    if value is None:
        return math.nan
    try:
        return dimension.to_unit(value)
    except (UserError, TypeError, ValueError):
        return math.nan


def locate_values(dimension: Dimension, values: Sequence[Any]) -> list[float]:
    """Apply `locate_value` to each value."""
    return [locate_value(dimension, value) for value in values]


def set_value_ticks(axis: Axis, dimension: Dimension, count: int = 4) -> None:
    """Label an axis over [0, 1] with round values of the parameter."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    values = list_round_values(dimension, count)
    axis.set_major_locator(FixedLocator([locate_value(dimension, value) for value in values]))
    axis.set_major_formatter(FixedFormatter([format_tick(value) for value in values]))


def list_round_values(dimension: Dimension, count: int) -> list[Any]:
    """List at most `count` round values inside the range.

    They are choices of a categorical dimension, equal steps of a linear one, and 1-2-5 steps or
    decades of a logarithmic one.
    """
    if dimension.scale == "categorical":
        stride = math.ceil(len(dimension.choices) / count)
        return list(dimension.choices[::stride])
    low, high = dimension.low, dimension.high
    if dimension.scale == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            candidates = [step * 10.0**decade for decade in decades for step in steps]
            values = [
                value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
            ]
            if len(values) <= count:
                break
        return values[:: math.ceil(len(values) / count)] if values else [low, high]
    from matplotlib.ticker import MaxNLocator

    steps = MaxNLocator(count - 1, steps=[1, 2, 2.5, 5, 10], integer=dimension.integer).tick_values(
        low, high
    )
    return [float(f"{value:.6g}") for value in steps if low - 1e-9 <= value <= high + 1e-9]


def format_tick(value: Any) -> str:
    """Format a value briefly; a long choice is cut."""
    text = format_number(value)
    return (
        text
        if len(text) <= _LONGEST_CHOICE or not isinstance(value, str)
        else f"{text[: _LONGEST_CHOICE - 1]}…"
    )
