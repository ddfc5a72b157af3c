"""How the search went: its best so far against chance, and its distribution generation by generation."""

from __future__ import annotations

import math
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
    """Best so far by evaluation, against chance, and by clock and device hours."""
    course = evidence.convergence
    if course is None or all(best is None for best in course.best):
        return None
    sheet = FigureLayout(550, palette)
    top = sheet.add_axes(56, 34, width=WIDTH - 80, height=270)
    ended = _list_ended(evidence)
    known = [
        (at, best)
        for at, best in zip(course.evaluation, course.best, strict=True)
        if best is not None
    ]
    last_at, last = known[-1]
    start = _find_start_loss(evidence)
    random = _clip_random_curve(evidence)
    chance = [] if random is None else [random.best[0], min(random.low)]
    limits = find_limits(
        [loss for _, loss in ended],
        upper=0.9,
        must=[last, *chance, *([] if start is None else [start])],
        pad=0.09,
    )
    top.set_xlim(0, max(2, course.evaluation[-1]) * 1.01)
    top.set_ylim(*limits)
    sheet.label_top(top, _describe_loss(evidence))
    shown = [ended[at] for at in thin_out(len(ended), 1500)]
    inside = [(at, loss) for at, loss in shown if loss <= limits[1]]
    draw_dots(
        top,
        [at for at, _ in inside],
        [loss for _, loss in inside],
        colour=palette.other,
        size=4.0,
        alpha=0.75,
        zorder=2,
    )
    _draw_random_curve(sheet, top, random)
    if start is not None:
        top.axhline(start, color=palette.baseline, linewidth=1.4, linestyle=(0, (4, 3)), zorder=4)
        sheet.label_point(
            top,
            top.get_xlim()[1],
            start,
            "at the start values",
            colour=palette.baseline,
            shift=(-4, 9),
            ha="right",
        )
    top.step(
        [at for at, _ in known],
        [best for _, best in known],
        where="post",
        color=palette.best,
        linewidth=2.4,
        zorder=5,
    )
    found = next(at for at, best in known if best == last)
    draw_dots(top, [found], [last], colour=palette.best, size=9.0, zorder=6)
    side = "right" if found > 0.6 * last_at else "left"
    sheet.label_point(
        top,
        found,
        last,
        f"best {format_number(last, 4)}",
        colour=palette.best,
        shift=(0, -13),
        ha=side,
        weight="bold",
    )
    set_ticks(top, x=6, y=6, whole=True)
    sheet.label_bottom(top, "evaluation")
    for at, (hours, name) in enumerate(
        ((course.hours, "hours by the clock"), (course.device_hours, "device hours"))
    ):
        _draw_hours(sheet, 56 + at * 302, hours=hours, name=name, evidence=evidence)
    over = len(ended) - sum(loss <= limits[1] for _, loss in ended)
    caption = (
        f"Best loss so far (blue) over {course.evaluation[-1]:,} ended evaluations; points are single evaluations"
        + (f" ({over:,} lie above the frame)" if over else "")
        + (
            "."
            if random is None
            else f"; the grey band is what random search would have found ({random.source})."
        )
    )
    return Drawing(sheet.canvas, "Convergence", caption)


def _list_ended(evidence: Evidence) -> list[tuple[int, float]]:
    """Evaluation and loss of each trial that has one, counted as the course counts them when all are there."""
    ended = [
        loss
        for trial, loss in zip(evidence.trials, evidence.losses, strict=True)
        if trial.state != "running"
    ]
    return [
        (at, loss) for at, loss in enumerate(ended, 1) if loss is not None and math.isfinite(loss)
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
    """Random search as far as this one went; null without a line of it."""
    chance, course = evidence.random_curve, evidence.convergence
    if chance is None or course is None:
        return None
    kept = sum(k <= course.evaluation[-1] for k in chance.k)
    if kept < 2:
        return None
    return chance._replace(
        k=chance.k[:kept], best=chance.best[:kept], low=chance.low[:kept], high=chance.high[:kept]
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
    begins = next(
        at for at, k in enumerate(curve.k) if k >= curve.k[-1] - 0.37 * end
    )  # the label, when it ends at the right
    y = curve.high[begins] if right else curve.low[-1]
    words = "random search, 10 to 90 %" if right else "random search,\n10 to 90 %"
    layout.label_point(
        axes, curve.k[-1], y, words, colour=palette.muted, shift=shift, ha=side, zorder=4.5
    )


def _draw_hours(
    layout: FigureLayout, x: float, *, hours: object, name: str, evidence: Evidence
) -> None:
    course, palette = evidence.convergence, layout.palette
    assert course is not None
    axes = layout.add_axes(x, 390, width=WIDTH - 382, height=112)
    known = [
        (hour, best) for hour, best in zip(hours, course.best, strict=True) if best is not None
    ]  # type: ignore[call-overload]
    kept = [known[at] for at in thin_out(len(known))]
    axes.set_xlim(0, max(hour for hour, _ in kept) * 1.02 or 1.0)
    axes.set_ylim(*find_limits([best for _, best in kept], upper=1.0, pad=0.12))
    axes.step(
        [hour for hour, _ in kept],
        [best for _, best in kept],
        where="post",
        color=palette.best,
        linewidth=2.0,
    )
    set_ticks(axes, x=4, y=3)
    layout.label_top(axes, "best so far", colour=palette.best)
    layout.label_bottom(axes, name)


def draw_evolution(evidence: Evidence, palette: Palette) -> Drawing | None:
    """The search distribution along each parameter by generation: mean, one deviation, best."""
    found, note = choose_dimensions(evidence, _MAX_PANELS)
    if len(evidence.generations) < 2 or not found:
        return None
    across = 2 if len(found) <= 12 else 3
    rows = math.ceil(len(found) / across)
    high, step = 96.0, 150.0
    sheet = FigureLayout(56 + rows * step + 12, palette)
    labels = make_labels(evidence.names)
    width = WIDTH / across
    for at, dimension in enumerate(found):
        row, column = divmod(at, across)
        axes = sheet.add_axes(column * width + 48, 58 + row * step, width=width - 68, height=high)
        _draw_generations(axes, evidence, dimension, palette)
        words = fit_text(labels[dimension.name], width - 64)
        sheet.label_top(
            axes, words, colour=palette.ink, size=NORMAL_SIZE, weight="bold", x=column * width + 4
        )
        set_ticks(axes, x=4, whole=True)
        if row == rows - 1:
            sheet.label_bottom(axes, "generation")
    sheet.add_text(4, 18, "━ mean ± deviation", colour=palette.best, weight="bold")
    sheet.add_text(190, 18, "● best of the generation", colour=palette.ink, alpha=0.75)
    if evidence.start:
        sheet.add_text(
            WIDTH - 12, 18, "╌ start", colour=palette.baseline, weight="bold", ha="right"
        )
    caption = (
        "The search distribution by generation, over the whole searched range: mean (line) and one standard deviation (band), the best "
        f"trial of each generation (points){', and the value at the start (dashed)' if evidence.start else ''}.{note}"
    )
    return Drawing(sheet.canvas, "Evolution of the parameters", caption)


def _draw_generations(
    axes: Axes, evidence: Evidence, dimension: Dimension, palette: Palette
) -> None:
    kept = [evidence.generations[at] for at in thin_out(len(evidence.generations), 160)]
    numbers = [generation.number for generation in kept]
    room = 0.012 * max(1, numbers[-1] - numbers[0])
    axes.set_xlim(numbers[0] - room, numbers[-1] + room)
    axes.set_ylim(-0.03, 1.03)
    mean, low, high = (
        locate_values(
            dimension, [getattr(generation, side).get(dimension.name) for generation in kept]
        )
        for side in ("mean", "low", "high")
    )
    axes.fill_between(numbers, low, high, color=palette.best, alpha=0.2, linewidth=0)
    axes.plot(numbers, mean, color=palette.best, linewidth=2.0)
    best = locate_values(dimension, [generation.best.get(dimension.name) for generation in kept])
    draw_dots(axes, numbers, best, colour=palette.ink, size=4.0, alpha=0.6)
    axes.axhline(
        locate_value(dimension, evidence.start.get(dimension.name)),
        color=palette.baseline,
        linewidth=1.4,
        linestyle=(0, (4, 3)),
    )
    set_value_ticks(axes.yaxis, dimension)
