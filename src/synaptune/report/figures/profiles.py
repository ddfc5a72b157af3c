"""Figure of the loss along each parameter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from synaptune.analysis.results import Evidence, Profile
from synaptune.core.text import make_labels
from synaptune.report.figures.axis import (
    choose_dimensions,
    locate_value,
    locate_values,
    set_value_ticks,
)
from synaptune.report.figures.layout import (
    MINUS,
    TIMES,
    FigureLayout,
    draw_dots,
    find_limits,
    fit_text,
    set_ticks,
    thin_out,
)
from synaptune.report.figures.theme import NORMAL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_PANELS = 24
_MAX_DOTS = 400


def draw_profiles(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the loss of each trial and a smooth line along each parameter, on one scale."""
    profiles_by_name = {
        profile.name: profile for profile in evidence.profiles if len(profile.values) >= 2
    }
    dimensions, note = choose_dimensions(evidence, _MAX_PANELS, profiles_by_name)
    if not dimensions:
        return None
    column_count = 2 if len(dimensions) <= 12 else 3
    rows = math.ceil(len(dimensions) / column_count)
    step, width = 158.0, WIDTH / column_count
    layout = FigureLayout(56 + rows * step, palette)
    labels = make_labels(evidence.names)
    losses = [loss for dimension in dimensions for loss in profiles_by_name[dimension.name].losses]
    line = [value for dimension in dimensions for value in profiles_by_name[dimension.name].line]
    highest = sorted(losses)[int(0.98 * (len(losses) - 1))]
    limits = find_limits(losses, upper=0.9, include=[value for value in line if value <= highest])
    for index, dimension in enumerate(dimensions):
        row, column = divmod(index, column_count)
        axes = layout.add_axes(column * width + 44, 58 + row * step, width=width - 60, height=98)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(*limits)
        _draw_profile(
            axes, profiles_by_name[dimension.name], dimension, evidence=evidence, palette=palette
        )
        label = fit_text(labels[dimension.name], width - 64)
        layout.label_top(
            axes, label, colour=palette.ink, size=NORMAL_SIZE, weight="bold", x=column * width + 4
        )
    layout.add_text(
        4,
        18,
        "loss" if not evidence.maximize else f"objective {TIMES} {MINUS}1",
        colour=palette.muted,
    )
    if evidence.start:
        layout.add_text(WIDTH - 110, 18, "▏start", colour=palette.baseline, weight="bold")
    if evidence.best is not None:
        layout.add_text(WIDTH - 50, 18, "▏best", colour=palette.best, weight="bold")
    caption = (
        "The loss of the trials along each parameter. The other parameters vary as the search "
        "varied them. Points are trials, the line is a local regression with its band. A flat line "
        f"means that the parameter had no effect where the search sampled.{note}"
    )
    return Drawing(layout.canvas, "Loss along each parameter", caption)


def _draw_profile(
    axes: Axes, profile: Profile, dimension: Dimension, *, evidence: Evidence, palette: Palette
) -> None:
    shown = [
        index
        for index in thin_out(len(profile.values), _MAX_DOTS)
        if profile.losses[index] <= axes.get_ylim()[1]
    ]
    draw_dots(
        axes,
        locate_values(dimension, [profile.values[index] for index in shown]),
        [profile.losses[index] for index in shown],
        colour=palette.other,
        size=3.6,
    )
    best = None if evidence.best is None else evidence.best.values.get(dimension.name)
    for value, colour in (
        (evidence.start.get(dimension.name), palette.baseline),
        (best, palette.best),
    ):
        axes.axvline(locate_value(dimension, value), color=colour, linewidth=1.6, zorder=3)
    if len(profile.line):
        units = locate_values(dimension, profile.line_values)
        axes.fill_between(
            units, profile.low, profile.high, color=palette.ink, alpha=0.16, linewidth=0, zorder=4
        )
        axes.plot(units, profile.line, color=palette.ink, linewidth=2.0, zorder=5)
    set_value_ticks(axes.xaxis, dimension, 5)
    set_ticks(axes, y=3)
