"""The axis of a parameter.

Every parameter is drawn over its unit coordinate in [0, 1] and labelled with its values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.results import Evidence
from synaptune.core.errors import UserError
from synaptune.core.text import make_labels
from synaptune.report.figures.layout import (
    TICK_STEPS,
    FigureLayout,
    fit_text,
    format_number,
)
from synaptune.report.figures.theme import NORMAL_SIZE, Palette
from synaptune.report.table_model import show_value
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_LONGEST_CHOICE = 9  # [characters] a longer choice is cut
MAX_PANELS = 24


def map_dimensions(evidence: Evidence) -> Mapping[str, Dimension]:
    """Map each searched parameter to its range, in the order of the evidence.

    The mapping is empty when no search has started.
    """
    dimensions = () if evidence.space is None else evidence.space.dimensions
    known = {dimension.name: dimension for dimension in dimensions}
    return {name: known[name] for name in evidence.names if name in known}


def show_objective(axes: Axes, evidence: Evidence) -> None:
    """Show the objectives on a vertical axis of losses: a maximised one is the negative loss."""
    if evidence.maximize:
        axes.invert_yaxis()
        axes.yaxis.set_major_formatter(lambda loss, _: format_number(float(f"{-loss:.6g}"), 6))


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
        for name, dimension in map_dimensions(evidence).items()
        if drawable is None or name in drawable
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
    chosen = ranked[:most]
    order = ", by importance" if any(worth.values()) or any(share.values()) else ", the first ones"
    note = f" Shown are {most} of {len(dimensions)} parameters{order}."
    return [dimension for dimension in dimensions if dimension in chosen], note


def make_panels(
    dimensions: Sequence[Dimension], names: Sequence[str], palette: Palette, below: str = ""
) -> tuple[FigureLayout, list[Axes]]:
    """Lay out a panel for each parameter, in three columns, or in one where it is narrow.

    Args:
        dimensions: parameters to draw.
        names: names of all parameters of the study, among which a panel's title is unique.
        palette: colours.
        below: label of the horizontal axes, written under the lowest panels.

    Returns:
        The layout, and the axes of the panels.
    """
    column_count = 1 if palette.is_narrow else 3
    step, width = 158.0, palette.width / column_count
    layout = FigureLayout(68 + step * math.ceil(len(dimensions) / column_count), palette)
    labels, panels = make_labels(names), []
    for index, dimension in enumerate(dimensions):
        row, column = divmod(index, column_count)
        axes = layout.add_axes(column * width + 48, 58 + row * step, width=width - 68, height=98)
        label = fit_text(labels[dimension.name], width - 64)
        layout.label_top(
            axes, label, colour=palette.ink, size=NORMAL_SIZE, weight="bold", shift=44.0
        )
        panels.append(axes)
        if below and index + column_count >= len(dimensions):
            layout.label_bottom(axes, below)
    return layout, panels


def locate_value(dimension: Dimension, values: Mapping[str, Value]) -> float:
    """Map a parameter's value among values by name to its coordinate; nan when it is unknown."""
    known = [values[dimension.name]] if dimension.name in values else []
    return next(iter(locate_values(dimension, known)), math.nan)


def locate_values(dimension: Dimension, values: Iterable[Value]) -> list[float]:
    """Map values of a parameter to their coordinates on the axis; nan outside the domain."""

    def locate(value: Value) -> float:
        try:
            return dimension.to_unit(value)
        except (UserError, TypeError, ValueError):
            return math.nan

    return [locate(value) for value in values]


def set_value_ticks(axis: Axis, dimension: Dimension, count: int = 4) -> None:
    """Label an axis over [0, 1] with round values of the parameter."""
    values = list_round_values(dimension, count)
    axis.set_ticks(
        locate_values(dimension, values), labels=[format_tick(dimension, value) for value in values]
    )


def list_round_values(dimension: Dimension, count: int) -> list[Any]:
    """List at most `count` round values inside the range.

    They are choices of a categorical dimension, equal steps of a linear one, 1-2-5 steps or decades
    of a logarithmic one, and 0.9, 0.99, ... of a decay.
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
    if dimension.scale == "decay":
        nines = [round(1.0 - 10.0**-digits, digits) for digits in range(1, 16)]
        inside = [value for value in nines if low <= value <= high]
        if len(inside) > 1:
            return inside[:: math.ceil(len(inside) / count)]
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(count - 1, steps=TICK_STEPS, integer=dimension.integer)
    values = [float(f"{value:.6g}") for value in locator.tick_values(low, high)]
    return [value for value in values if low - 1e-9 <= value <= high + 1e-9]


def format_tick(dimension: Dimension, value: Value) -> str:
    """Format a value briefly; a long choice is cut."""
    shown = show_value(value, dimension)
    text = format_number(shown)
    if not isinstance(shown, int | float) and len(text) > _LONGEST_CHOICE:
        return f"{text[: _LONGEST_CHOICE - 1]}…"
    return text
