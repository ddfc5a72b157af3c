"""The loss along each parameter."""

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
    """Loss of each trial and a smooth line along each parameter, on one scale of the loss."""
    known = {profile.name: profile for profile in evidence.profiles if len(profile.values) >= 2}
    found, note = choose_dimensions(evidence, _MAX_PANELS, known)
    if not found:
        return None
    across = 2 if len(found) <= 12 else 3
    rows = math.ceil(len(found) / across)
    step, width = 158.0, WIDTH / across
    sheet = FigureLayout(56 + rows * step, palette)
    labels = make_labels(evidence.names)
    losses = [loss for dimension in found for loss in known[dimension.name].losses]
    line = [value for dimension in found for value in known[dimension.name].line]
    highest = sorted(losses)[int(0.98 * (len(losses) - 1))]
    limits = find_limits(losses, upper=0.9, must=[value for value in line if value <= highest])
    for at, dimension in enumerate(found):
        row, column = divmod(at, across)
        axes = sheet.add_axes(column * width + 44, 58 + row * step, width=width - 60, height=98)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(*limits)
        _draw_profile(axes, known[dimension.name], dimension, evidence=evidence, palette=palette)
        words = fit_text(labels[dimension.name], width - 64)
        sheet.label_top(
            axes, words, colour=palette.ink, size=NORMAL_SIZE, weight="bold", x=column * width + 4
        )
    sheet.add_text(
        4,
        18,
        "loss" if not evidence.maximize else f"objective {TIMES} {MINUS}1",
        colour=palette.muted,
    )
    if evidence.start:
        sheet.add_text(WIDTH - 110, 18, "▏start", colour=palette.baseline, weight="bold")
    if evidence.best is not None:
        sheet.add_text(WIDTH - 50, 18, "▏best", colour=palette.best, weight="bold")
    caption = (
        "The loss of the trials along each parameter while the others moved as the search moved them: points are trials, the line a local "
        f"regression with its band. A flat line is a parameter that did not matter where the search was.{note}"
    )
    return Drawing(sheet.canvas, "Loss along each parameter", caption)


def _draw_profile(
    axes: Axes, profile: Profile, dimension: Dimension, *, evidence: Evidence, palette: Palette
) -> None:
    kept = [
        at
        for at in thin_out(len(profile.values), _MAX_DOTS)
        if profile.losses[at] <= axes.get_ylim()[1]
    ]
    draw_dots(
        axes,
        locate_values(dimension, [profile.values[at] for at in kept]),
        [profile.losses[at] for at in kept],
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
