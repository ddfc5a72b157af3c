"""Figures of the search: the best loss so far, and the distribution by generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.results import Evidence, RandomCurve
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
    format_number,
    set_ticks,
    thin_out,
)
from synaptune.report.figures.theme import NORMAL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_PANELS = 24


def draw_convergence(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the best loss so far by evaluation, beside random search, and by hours."""
    course = evidence.convergence
    if course is None or all(best is None for best in course.best):
        return None
    layout = FigureLayout(550, palette)
    top = layout.add_axes(56, 34, width=WIDTH - 80, height=270)
    ended = _list_ended(evidence)
    best_so_far = [
        (evaluation, best)
        for evaluation, best in zip(course.evaluation, course.best, strict=True)
        if best is not None
    ]
    last_evaluation, last = best_so_far[-1]
    start_loss = _find_start_loss(evidence)
    random = _clip_random_curve(evidence)
    chance = [] if random is None else [random.best[0], min(random.low)]
    limits = find_limits(
        [loss for _, loss in ended],
        upper=0.9,
        include=[last, *chance, *([] if start_loss is None else [start_loss])],
        pad=0.09,
    )
    top.set_xlim(0, max(2, course.evaluation[-1]) * 1.01)
    top.set_ylim(*limits)
    layout.label_top(top, _describe_loss(evidence))
    points = [ended[index] for index in thin_out(len(ended), 1500)]
    visible = [(evaluation, loss) for evaluation, loss in points if loss <= limits[1]]
    draw_dots(
        top,
        [evaluation for evaluation, _ in visible],
        [loss for _, loss in visible],
        colour=palette.other,
        size=4.0,
        alpha=0.75,
        zorder=2,
    )
    _draw_random_curve(layout, top, random)
    if start_loss is not None:
        top.axhline(
            start_loss, color=palette.baseline, linewidth=1.4, linestyle=(0, (4, 3)), zorder=4
        )
        layout.label_point(
            top,
            top.get_xlim()[1],
            start_loss,
            "at the start values",
            colour=palette.baseline,
            shift=(-4, 9),
            ha="right",
        )
    top.step(
        [evaluation for evaluation, _ in best_so_far],
        [best for _, best in best_so_far],
        where="post",
        color=palette.best,
        linewidth=2.4,
        zorder=5,
    )
    best_at = next(evaluation for evaluation, best in best_so_far if best == last)
    draw_dots(top, [best_at], [last], colour=palette.best, size=9.0, zorder=6)
    side = "right" if best_at > 0.6 * last_evaluation else "left"
    layout.label_point(
        top,
        best_at,
        last,
        f"best {format_number(last, 4)}",
        colour=palette.best,
        shift=(0, -13),
        ha=side,
        weight="bold",
    )
    set_ticks(top, x=6, y=6, integer=True)
    layout.label_bottom(top, "evaluation")
    for panel, (hours, name) in enumerate(
        ((course.hours, "wall-clock hours"), (course.device_hours, "device hours"))
    ):
        _draw_hours(layout, 56 + panel * 302, hours=hours, name=name, evidence=evidence)
    hidden = len(ended) - sum(loss <= limits[1] for _, loss in ended)
    caption = (
        f"Best loss so far (blue) over {course.evaluation[-1]:,} ended evaluations; "
        "points are single evaluations"
        + (f" ({hidden:,} lie above the frame)" if hidden else "")
        + (
            "."
            if random is None
            else f"; the grey band is the expected result of random search ({random.source})."
        )
    )
    return Drawing(layout.canvas, "Convergence", caption)


def _list_ended(evidence: Evidence) -> list[tuple[int, float]]:
    """List (evaluation, loss) of each ended trial with a finite loss, counted as in Convergence."""
    losses = [
        loss
        for trial, loss in zip(evidence.trials, evidence.losses, strict=True)
        if trial.state != "running"
    ]
    return [
        (evaluation, loss)
        for evaluation, loss in enumerate(losses, 1)
        if loss is not None and math.isfinite(loss)
    ]


def _find_start_loss(evidence: Evidence) -> float | None:
    for trial, loss in zip(evidence.trials, evidence.losses, strict=True):
        if (
            loss is not None
            and evidence.start
            and all(trial.values.get(name) == value for name, value in evidence.start.items())
        ):
            return loss
    return None


def _describe_loss(evidence: Evidence) -> str:
    return (
        f"objective {TIMES} {MINUS}1 (lower is better)"
        if evidence.maximize
        else "loss (lower is better)"
    )


def _clip_random_curve(evidence: Evidence) -> RandomCurve | None:
    """Cut the curve of random search at the end of this search; None below two points."""
    curve, course = evidence.random_curve, evidence.convergence
    if curve is None or course is None:
        return None
    count = sum(k <= course.evaluation[-1] for k in curve.k)
    if count < 2:
        return None
    return curve._replace(
        k=curve.k[:count],
        best=curve.best[:count],
        low=curve.low[:count],
        high=curve.high[:count],
    )


def _draw_random_curve(layout: FigureLayout, axes: Axes, curve: RandomCurve | None) -> None:
    palette = layout.palette
    if curve is None:
        return
    axes.fill_between(
        curve.k, curve.low, curve.high, color=palette.muted, alpha=0.22, linewidth=0, zorder=2.5
    )
    axes.plot(curve.k, curve.best, color=palette.muted, linewidth=1.4, zorder=3.5)
    end = axes.get_xlim()[1]
    right = curve.k[-1] > 0.55 * end
    shift, side = ((-4, 8), "right") if right else ((7, 0), "left")
    # Where a label begins that ends at the right end of the curve.
    label_start = next(index for index, k in enumerate(curve.k) if k >= curve.k[-1] - 0.37 * end)
    y = curve.high[label_start] if right else curve.low[-1]
    text = "random search, 10 to 90 %" if right else "random search,\n10 to 90 %"
    layout.label_point(
        axes, curve.k[-1], y, text, colour=palette.muted, shift=shift, ha=side, zorder=4.5
    )


def _draw_hours(
    layout: FigureLayout, x: float, *, hours: Sequence[float], name: str, evidence: Evidence
) -> None:
    course, palette = evidence.convergence, layout.palette
    assert course is not None
    axes = layout.add_axes(x, 390, width=WIDTH - 382, height=112)
    known = [
        (hour, best) for hour, best in zip(hours, course.best, strict=True) if best is not None
    ]
    points = [known[index] for index in thin_out(len(known))]
    axes.set_xlim(0, max(hour for hour, _ in points) * 1.02 or 1.0)
    axes.set_ylim(*find_limits([best for _, best in points], upper=1.0, pad=0.12))
    axes.step(
        [hour for hour, _ in points],
        [best for _, best in points],
        where="post",
        color=palette.best,
        linewidth=2.0,
    )
    set_ticks(axes, x=4, y=3)
    layout.label_top(axes, "best so far", colour=palette.best)
    layout.label_bottom(axes, name)


def draw_evolution(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the search distribution of each parameter by generation: mean, deviation, best."""
    dimensions, note = choose_dimensions(evidence, _MAX_PANELS)
    if len(evidence.generations) < 2 or not dimensions:
        return None
    column_count = 2 if len(dimensions) <= 12 else 3
    rows = math.ceil(len(dimensions) / column_count)
    high, step = 96.0, 150.0
    layout = FigureLayout(56 + rows * step + 12, palette)
    labels = make_labels(evidence.names)
    width = WIDTH / column_count
    for index, dimension in enumerate(dimensions):
        row, column = divmod(index, column_count)
        axes = layout.add_axes(column * width + 48, 58 + row * step, width=width - 68, height=high)
        _draw_generations(axes, evidence, dimension, palette)
        label = fit_text(labels[dimension.name], width - 64)
        layout.label_top(
            axes, label, colour=palette.ink, size=NORMAL_SIZE, weight="bold", x=column * width + 4
        )
        set_ticks(axes, x=4, integer=True)
        if row == rows - 1:
            layout.label_bottom(axes, "generation")
    layout.add_text(4, 18, "━ mean ± deviation", colour=palette.best, weight="bold")
    layout.add_text(190, 18, "● best of the generation", colour=palette.ink, alpha=0.75)
    if evidence.start:
        layout.add_text(
            WIDTH - 12, 18, "╌ start", colour=palette.baseline, weight="bold", ha="right"
        )
    caption = (
        "The search distribution by generation, over the whole searched range: mean (line) and one "
        "standard deviation (band), the best trial of each generation (points)"
        f"{', and the start value (dashed)' if evidence.start else ''}.{note}"
    )
    return Drawing(layout.canvas, "Evolution of the parameters", caption)


def _draw_generations(
    axes: Axes, evidence: Evidence, dimension: Dimension, palette: Palette
) -> None:
    generations = [
        evidence.generations[index] for index in thin_out(len(evidence.generations), 160)
    ]
    numbers = [generation.number for generation in generations]
    room = 0.012 * max(1, numbers[-1] - numbers[0])
    axes.set_xlim(numbers[0] - room, numbers[-1] + room)
    axes.set_ylim(-0.03, 1.03)
    mean, low, high = (
        locate_values(
            dimension, [getattr(generation, side).get(dimension.name) for generation in generations]
        )
        for side in ("mean", "low", "high")
    )
    axes.fill_between(numbers, low, high, color=palette.best, alpha=0.2, linewidth=0)
    axes.plot(numbers, mean, color=palette.best, linewidth=2.0)
    best = locate_values(
        dimension, [generation.best.get(dimension.name) for generation in generations]
    )
    draw_dots(axes, numbers, best, colour=palette.ink, size=4.0, alpha=0.6)
    axes.axhline(
        locate_value(dimension, evidence.start.get(dimension.name)),
        color=palette.baseline,
        linewidth=1.4,
        linestyle=(0, (4, 3)),
    )
    set_value_ticks(axes.yaxis, dimension)
