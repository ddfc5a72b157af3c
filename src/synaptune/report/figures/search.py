"""Figures of the search: the best objective so far, and the distribution by generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from synaptune.analysis.results import Evidence, RandomCurve
from synaptune.report.figures.axis import (
    MAX_PANELS,
    choose_dimensions,
    locate_value,
    make_panels,
    set_value_ticks,
    show_objective,
)
from synaptune.report.figures.layout import (
    DASHED,
    FigureLayout,
    draw_best_so_far,
    draw_dots,
    find_limits,
    format_number,
    set_ticks,
    thin_out,
)
from synaptune.report.figures.theme import SMALL_SIZE, TINY_SIZE, Drawing, Palette
from synaptune.search.space.values import find_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_DOTS = 1500
_MAX_GENERATIONS = 160  # in a panel


def draw_convergence(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the best objective so far by evaluation, beside random search, and by hours."""
    course = evidence.convergence
    if course is None or all(best is None for best in course.best):
        return None
    best, count = np.array(course.best, float), course.evaluation[-1]
    losses, start_loss = _list_ended(evidence), _find_start_loss(evidence)
    random = _clip_random_curve(evidence)
    chance = [] if random is None else [random.best[0], min(random.low)]
    limits = find_limits(losses, upper=0.9, include=[best[-1], start_loss, *chance], pad=0.09)
    layout = FigureLayout(730 if palette.is_narrow else 550, palette)
    axes = layout.add_axes(
        56, 34, width=layout.width - 80, height=270, xlim=(0, max(2, count) * 1.01), ylim=limits
    )
    layout.label_top(axes, f"{evidence.label} ({evidence.direction})", shift=52)
    visible = np.flatnonzero(losses <= limits[1])
    shown = visible[thin_out(len(visible), _MAX_DOTS)]
    draw_dots(axes, shown + 1, losses[shown], colour=palette.other, size=4.0, alpha=0.75, zorder=2)
    _draw_random_curve(layout, axes, random)
    _draw_start(layout, axes, start_loss)
    draw_best_so_far(axes, course.evaluation, best, colour=palette.best, linewidth=2.4, zorder=5)
    best_at = course.evaluation[int(np.nanargmin(best))]
    draw_dots(axes, [best_at], [best[-1]], colour=palette.best, size=9.0, zorder=6)
    layout.label_point(
        axes,
        best_at,
        best[-1],
        f"best {format_number(float(-best[-1] if evidence.maximize else best[-1]), 4)}",
        colour=palette.best,
        shift=(0, 13 if evidence.maximize else -13),
        ha="right" if best_at > 0.6 * count else "left",
        weight="bold",
    )
    set_ticks(axes, x=6, y=6, integer=True)
    show_objective(axes, evidence)
    layout.label_bottom(axes, "evaluation")
    x, y = (56, 570) if palette.is_narrow else (layout.width / 2 + 46, 390)
    for place, hours, name in (
        ((56, 390), course.hours, "wall-clock"),
        ((x, y), course.device_hours, "device"),
    ):
        show_objective(_draw_hours(layout, *place, hours=hours, name=name, best=best), evidence)
    hidden = int(np.isfinite(losses).sum()) - len(visible)
    place = "below" if evidence.maximize else "above"
    outside = f" ({hidden:,} lie {place} the frame)" if hidden else ""
    band = (
        ""
        if random is None
        else f"; the grey band is the expected result of random search ({random.source})"
    )
    return Drawing(
        layout.canvas,
        "Convergence",
        f"Best {evidence.objective} so far (blue) over {count:,} ended evaluations; "
        f"points are single evaluations{outside}{band}.",
    )


def _list_ended(evidence: Evidence) -> np.ndarray:
    """List the losses of the ended trials, counted as in Convergence; nan without a loss."""
    pairs = zip(evidence.trials, evidence.losses, strict=True)
    return np.array([loss for trial, loss in pairs if trial.state != "running"], float)


def _find_start_loss(evidence: Evidence) -> float:
    """Find the loss at the start values; nan when it is unknown."""
    for trial, loss in zip(evidence.trials, evidence.losses, strict=True):
        is_start = all(
            name in trial.values and find_choice([trial.values[name]], value) is not None
            for name, value in evidence.start.items()
        )
        if loss is not None and evidence.start and is_start:
            return loss
    return math.nan


def _clip_random_curve(evidence: Evidence) -> RandomCurve | None:
    """Cut the curve of random search at the end of this search; None below two points."""
    curve, course = evidence.random_curve, evidence.convergence
    if curve is None or course is None:
        return None
    count = sum(k <= course.evaluation[-1] for k in curve.k)
    series = {name: getattr(curve, name)[:count] for name in ("k", "best", "low", "high")}
    return curve._replace(**series) if count >= 2 else None


def _draw_start(layout: FigureLayout, axes: Axes, loss: float) -> None:
    colour = layout.palette.baseline
    if math.isfinite(loss):
        axes.axhline(loss, color=colour, linewidth=1.4, linestyle=DASHED, zorder=4)
        end, text = axes.get_xlim()[1], "at the start values"
        layout.label_point(axes, end, loss, text, colour=colour, shift=(-4, 9), ha="right")


def _draw_random_curve(layout: FigureLayout, axes: Axes, curve: RandomCurve | None) -> None:
    colour = layout.palette.muted
    if curve is None:
        return
    axes.fill_between(
        curve.k, curve.low, curve.high, color=colour, alpha=0.22, linewidth=0, zorder=2.5
    )
    axes.plot(curve.k, curve.best, color=colour, linewidth=1.4, zorder=3.5)
    last, end = curve.k[-1], axes.get_xlim()[1]
    # The label ends at the right end of the curve, or begins there where it has room.
    style, text, y = {"shift": (7, 0)}, "random search,\n10 to 90 %", curve.low[-1]
    if last > 0.55 * end:
        style, text = {"shift": (-4, 8), "ha": "right"}, "random search, 10 to 90 %"
        y = next(
            high for k, high in zip(curve.k, curve.high, strict=True) if k >= last - 0.37 * end
        )
        bottom, top = axes.get_ylim()
        y = min(y, top - 0.07 * (top - bottom))  # above the frame is the label of the axis
    layout.label_point(axes, last, y, text, colour=colour, zorder=4.5, **style)


def _draw_hours(
    layout: FigureLayout,
    x: float,
    y: float,
    *,
    hours: Sequence[float],
    name: str,
    best: np.ndarray,
) -> Axes:
    colour = layout.palette.best
    unit, per_hour = ("hours", 1.0) if hours[-1] >= 1.0 else ("minutes", 60.0)
    times = [per_hour * hour for hour in hours]
    axes = layout.add_axes(
        x,
        y,
        width=layout.width / (1 if layout.palette.is_narrow else 2) - 80,
        height=112,
        xlim=(0, times[-1] * 1.02 or 1.0),
        ylim=find_limits(best, upper=1.0, pad=0.12),
    )
    draw_best_so_far(axes, times, best, colour=colour, linewidth=2.0)
    set_ticks(axes, x=4, y=3)
    layout.label_top(axes, "best so far", colour=colour, shift=52)
    layout.label_bottom(axes, f"{name} time [{unit}]")
    return axes


def draw_evolution(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the search distribution of each parameter by generation: mean, deviation, best."""
    dimensions, note = choose_dimensions(evidence, MAX_PANELS)
    if len(evidence.generations) < 2 or not dimensions:
        return None
    layout, panels = make_panels(dimensions, evidence.names, palette, "generation")
    for axes, dimension in zip(panels, dimensions, strict=True):
        _draw_generations(axes, evidence, dimension, palette)
        set_ticks(axes, x=4, integer=True)
    size = TINY_SIZE if palette.is_narrow else SMALL_SIZE
    style = {"size": size, "weight": "bold"}
    layout.add_text(4, 18, "━ mean ± deviation", colour=palette.best, **style)
    x = 12.5 * size
    layout.add_text(x, 18, "● best of each", colour=palette.ink, alpha=0.75, size=size)
    start = ""
    if evidence.start:
        start = ", and the start value (dashed)"
        layout.add_text(
            layout.width - 12, 18, "╌ start", colour=palette.baseline, ha="right", **style
        )
    return Drawing(
        layout.canvas,
        "Evolution of the parameters",
        "The search distribution by generation, over the whole searched range: mean (line) and one "
        f"standard deviation (band), the best trial of each generation (points){start}.{note}",
    )


def _draw_generations(
    axes: Axes, evidence: Evidence, dimension: Dimension, palette: Palette
) -> None:
    shown = thin_out(len(evidence.generations), _MAX_GENERATIONS)
    generations = [evidence.generations[index] for index in shown]
    numbers = [generation.number for generation in generations]
    room = 0.012 * max(1, numbers[-1] - numbers[0])
    axes.set(xlim=(numbers[0] - room, numbers[-1] + room), ylim=(-0.03, 1.03))
    mean, low, high, best = (
        [locate_value(dimension, getattr(each, part)) for each in generations]
        for part in ("mean", "low", "high", "best")
    )
    axes.fill_between(numbers, low, high, color=palette.best, alpha=0.2, linewidth=0)
    axes.plot(numbers, mean, color=palette.best, linewidth=2.0)
    draw_dots(axes, numbers, best, colour=palette.ink, size=4.0, alpha=0.6)
    start = locate_value(dimension, evidence.start)
    axes.axhline(start, color=palette.baseline, linewidth=1.4, linestyle=DASHED)
    set_value_ticks(axes.yaxis, dimension)
