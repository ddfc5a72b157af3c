"""Figure of the objective along each parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synaptune.analysis.results import Evidence, Profile
from synaptune.report.figures.axis import (
    MAX_PANELS,
    choose_dimensions,
    locate_value,
    locate_values,
    make_panels,
    set_value_ticks,
    show_objective,
)
from synaptune.report.figures.layout import (
    draw_dots,
    find_limits,
    set_ticks,
    thin_out,
)
from synaptune.report.figures.theme import SMALL_SIZE, TINY_SIZE, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_DOTS = 400


def draw_profiles(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the objective of each trial and a smooth line along each parameter, on one scale."""
    profiles_by_name = {
        profile.name: profile for profile in evidence.profiles if len(profile.values) >= 2
    }
    dimensions, note = choose_dimensions(evidence, MAX_PANELS, profiles_by_name)
    if not dimensions:
        return None
    profiles = [profiles_by_name[dimension.name] for dimension in dimensions]
    losses = [loss for profile in profiles for loss in profile.losses]
    line = [value for profile in profiles for value in profile.line]
    limits = find_limits(losses, upper=0.9, include=line)
    layout, panels = make_panels(dimensions, evidence.names, palette)
    for axes, profile, dimension in zip(panels, profiles, dimensions, strict=True):
        axes.set(xlim=(-0.01, 1.01), ylim=limits)
        _draw_profile(axes, profile, dimension, evidence=evidence, palette=palette)
        show_objective(axes, evidence)
    size = TINY_SIZE if palette.is_narrow else SMALL_SIZE
    text = evidence.label if palette.is_narrow else f"{evidence.label} ({evidence.direction})"
    layout.add_text(4, 18, text, colour=palette.muted, size=size)
    style = {"weight": "bold", "size": size}
    if evidence.start:
        layout.add_text(layout.width - 110, 18, "▏start", colour=palette.baseline, **style)
    if evidence.best is not None:
        layout.add_text(layout.width - 50, 18, "▏best", colour=palette.best, **style)
    smooth = (
        " The line is a local regression with its band; a flat line means that the parameter had"
        " no effect where the search sampled."
        if line
        else ""
    )
    return Drawing(
        layout.canvas,
        f"{evidence.objective.capitalize()} along each parameter",
        f"The {evidence.objective} of the trials along each parameter. The other parameters vary "
        f"as the search varied them. Points are trials.{smooth}{note}",
    )


def _draw_profile(
    axes: Axes, profile: Profile, dimension: Dimension, *, evidence: Evidence, palette: Palette
) -> None:
    shown = [
        index
        for index in thin_out(len(profile.values), _MAX_DOTS)
        if profile.losses[index] <= axes.get_ylim()[1]
    ]
    units = locate_values(dimension, [profile.values[index] for index in shown])
    losses = [profile.losses[index] for index in shown]
    draw_dots(axes, units, losses, colour=palette.other, size=3.6)
    best = {} if evidence.best is None else evidence.best.values
    for values, colour in ((evidence.start, palette.baseline), (best, palette.best)):
        unit = locate_value(dimension, values)
        axes.axvline(unit, color=colour, linewidth=1.6, zorder=3)
    if len(profile.line):
        style = {"color": palette.ink, "zorder": 4}
        units = locate_values(dimension, profile.line_values)
        axes.fill_between(units, profile.low, profile.high, alpha=0.16, linewidth=0, **style)
        axes.plot(units, profile.line, linewidth=2.0, **style)
    set_value_ticks(axes.xaxis, dimension, 5)
    set_ticks(axes, y=3)
