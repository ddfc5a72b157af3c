"""Figures of the search space: correlations of the parameters, and all trials over all axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from synaptune.analysis.results import Evidence
from synaptune.core.text import make_labels
from synaptune.report.figures.axis import choose_dimensions, format_tick, locate_value
from synaptune.report.figures.layout import (
    MINUS,
    TIMES,
    FigureLayout,
    draw_lines,
    fit_text,
    format_decimal,
    format_number,
    measure_text,
    thin_out,
)
from synaptune.report.figures.theme import NORMAL_SIZE, SMALL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_ANNOTATED = 12  # parameters; above it the cells show no numbers
_NAMED_PAIRS = 3  # strongest pairs that are named beside the map
_MAX_AXES = 30
_MAX_LINES, _BEST_LINES = 420, 120  # trials in the figure, and how many of them are the best ones


def draw_correlation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the lower triangle of the correlations, with the parameters' names at the diagonal."""
    names, rows = evidence.names, evidence.correlation
    count = len(names)
    if count < 2 or len(rows) != count:
        return None
    labels = make_labels(names)
    annotated = count <= _MAX_ANNOTATED
    size = NORMAL_SIZE if annotated else max(6.5, min(SMALL_SIZE, 420.0 / count))
    widest = max(measure_text(labels[name], size) for name in names)
    cell = min(54.0, (WIDTH - min(widest, 210.0) - 16.0) / (count - 0.35))
    layout = FigureLayout(count * cell + 12, palette)
    axes = layout.add_axes(4, 4, width=WIDTH - 4, height=count * cell, grid="")
    axes.set_xlim(0, (WIDTH - 4) / cell)
    axes.set_ylim(count, 0)
    axes.set_axis_off()
    _draw_cells(axes, rows, palette, annotated)
    for index, name in enumerate(names):
        room = (WIDTH - 8) - index * cell
        subsystem = _subsystem(name)
        first = annotated and (index == 0 or _subsystem(names[index - 1]) != subsystem)
        middle = index + (0.66 if first and index else 0.5)
        text = fit_text(labels[name], room - 6, size)
        axes.text(index + 0.12, middle, text, fontsize=size, color=palette.ink, va="center")
        if first and subsystem:
            axes.text(
                index + 0.12,
                middle - 15.0 / cell,
                subsystem,
                fontsize=11.0,
                color=palette.muted,
                va="center",
            )
    _draw_key(layout, evidence, labels)
    caption = (
        "Correlations of the parameters in the final distribution of the search, by subsystem: "
        "in a blue pair both rise together, in an orange pair one rises as the other falls. "
    )
    if evidence.correlation_noise is None:
        caption += (
            "Selection among few points also correlates parameters that have no effect on the loss."
        )
    else:
        caption += (
            "From noise alone the strongest pair exceeds "
            f"{evidence.correlation_noise:.2f} in one search of twenty."
        )
    return Drawing(layout.canvas, "Correlation of the parameters", caption)


def _subsystem(name: str) -> str:
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else ""


def _draw_cells(
    axes: Axes, rows: Sequence[Sequence[float]], palette: Palette, annotated: bool
) -> None:
    from matplotlib.collections import PolyCollection

    by_colour: dict[int, list[list[tuple[float, float]]]] = {}
    for row in range(1, len(rows)):
        for column in range(row):
            value = rows[row][column]
            if not math.isfinite(value):
                continue
            shade = round((max(-1.0, min(1.0, value)) + 1.0) * 5.0)
            gap = 0.02
            left, right, top, bottom = column + gap, column + 1 - gap, row + gap, row + 1 - gap
            by_colour.setdefault(shade, []).append(
                [(left, top), (right, top), (right, bottom), (left, bottom)]
            )
            if annotated:
                ink = palette.strong if abs(shade - 5) >= 3 else palette.ink
                text = format_decimal(value, 2, sign=True).replace("0.", ".")
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    text,
                    ha="center",
                    va="center",
                    fontsize=12.0,
                    color=ink,
                )
    for shade, cells in sorted(by_colour.items()):
        axes.add_collection(
            PolyCollection(cells, facecolors=palette.sign[shade], linewidths=0), autolim=False
        )


def _draw_key(layout: FigureLayout, evidence: Evidence, labels: Mapping[str, str]) -> None:
    """Draw the colour scale and the strongest pairs in the empty corner."""
    palette, names = layout.palette, evidence.names
    width, right = 14.0, WIDTH - 4.0
    left = right - 11 * width
    axes = layout.add_axes(left, 22, width=11 * width, height=12, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 11)
    axes.set_ylim(0, 1)
    for index, colour in enumerate(palette.sign):
        axes.axvspan(index, index + 1, facecolor=colour, linewidth=0)
    for x, text, side in (
        (left, f"{MINUS}1", "left"),
        (left + 5.5 * width, "0", "center"),
        (right, "+1", "right"),
    ):
        layout.add_text(x, 16, text, colour=palette.muted, ha=side, size=12.0)
    if len(names) < 5:
        return
    pairs = [
        (evidence.correlation[a][b], a, b)
        for a in range(len(names))
        for b in range(a)
        if math.isfinite(evidence.correlation[a][b])
    ]
    strongest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:_NAMED_PAIRS]
    layout.add_text(right, 62, "strongest pairs", colour=palette.muted, ha="right", size=12.0)
    for index, (value, a, b) in enumerate(strongest):
        text = f"{labels[names[b]]} {TIMES} {labels[names[a]]}"
        layout.add_text(
            right,
            80 + 19 * index,
            f"{fit_text(text, 300, 12.0)}  {format_decimal(value, 2, sign=True)}",
            ha="right",
            size=12.0,
        )


def draw_parallel(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw every trial as a line across the parameters, each on its own horizontal axis."""
    dimensions, note = choose_dimensions(evidence, _MAX_AXES)
    complete = [
        index
        for index, loss in enumerate(evidence.losses)
        if loss is not None and math.isfinite(loss)
    ]
    if len(dimensions) < 2 or not complete:
        return None
    labels = make_labels(evidence.names)
    step = 46.0 if len(dimensions) <= 16 else 30.0
    left = min(
        190.0,
        max(measure_text(labels[dimension.name], SMALL_SIZE) for dimension in dimensions) + 14,
    )
    right = 140.0
    layout = FigureLayout(46 + step * (len(dimensions) - 1) + 34, palette)
    axes = layout.add_axes(
        left, 46, width=WIDTH - left - right, height=step * (len(dimensions) - 1), grid=""
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(dimensions) - 1, 0)
    axes.set_axis_off()
    axes.hlines(
        range(len(dimensions)), 0, 1, color=palette.grid, linewidth=1.2, zorder=1, clip_on=False
    )
    shown = _draw_trials(axes, evidence, complete, dimensions=dimensions, palette=palette)
    _draw_highlights(axes, evidence, dimensions, palette)
    for index, dimension in enumerate(dimensions):
        y = 46 + step * index
        layout.add_text(
            left - 12, y + 4.5, fit_text(labels[dimension.name], left - 14, SMALL_SIZE), ha="right"
        )
        low, high = (format_tick(dimension.to_value(end)) for end in (0.0, 1.0))
        layout.add_text(left, y + 15, low, colour=palette.muted, size=10.5, gid="halo")
        layout.add_text(
            WIDTH - right, y + 15, high, colour=palette.muted, size=10.5, ha="right", gid="halo"
        )
        for x, values, colour in (
            (72, evidence.start, palette.baseline),
            (4, evidence.best and evidence.best.values, palette.best),
        ):
            if values and dimension.name in values:
                layout.add_text(
                    WIDTH - x,
                    y + 4.5,
                    fit_text(format_number(values[dimension.name]), 64, SMALL_SIZE),
                    colour=colour,
                    ha="right",
                )
    if evidence.start:
        layout.add_text(WIDTH - 72, 20, "start", colour=palette.baseline, ha="right", weight="bold")
    if evidence.best is not None:
        layout.add_text(WIDTH - 4, 20, "best", colour=palette.best, ha="right", weight="bold")
    _draw_loss_key(layout, left)
    caption = (
        f"{'All' if shown == len(complete) else f'{shown:,} of the'} {len(complete):,} evaluations "
        "with a result, coloured by the rank of their loss"
        f"{'' if shown == len(complete) else ' (the best, and an even sample of the rest)'}; each "
        "row is one parameter over its searched range, on the scale that the search used."
        f"{note}"
    )
    return Drawing(layout.canvas, "All trials across all parameters", caption)


def _draw_trials(
    axes: Axes,
    evidence: Evidence,
    complete: Sequence[int],
    *,
    dimensions: Sequence[Dimension],
    palette: Palette,
) -> int:
    """Draw the trials, the worst first.

    Returns:
        The number of lines.
    """
    order = (
        {} if evidence.space is None else {name: at for at, name in enumerate(evidence.space.names)}
    )
    columns = [order[dimension.name] for dimension in dimensions]
    ranked = sorted(complete, key=lambda at: -(evidence.losses[at] or 0.0))  # worst first
    rest = thin_out(max(0, len(ranked) - _BEST_LINES), _MAX_LINES - _BEST_LINES)
    best = range(max(0, len(ranked) - _BEST_LINES), len(ranked))
    shown = [(rank, ranked[rank]) for rank in (*rest, *best)]
    rows = list(range(len(dimensions)))
    for shade, colour in enumerate(palette.loss):
        trials = [trial for rank, trial in shown if min(4, int(5 * rank / len(ranked))) == shade]
        lines = [
            (np.asarray(evidence.units[trial])[columns].tolist(), rows)
            for trial in trials
            if len(evidence.units[trial]) == len(order)
        ]
        draw_lines(axes, lines, colour=colour, linewidth=1.0, alpha=0.75, zorder=2 + 0.1 * shade)
    return len(shown)


def _draw_highlights(
    axes: Axes, evidence: Evidence, dimensions: Sequence[Dimension], palette: Palette
) -> None:
    rows = range(len(dimensions))
    best = None if evidence.best is None else evidence.best.values
    for values, colour, dashes in (
        (evidence.start, palette.baseline, (0, (4, 2.5))),
        (best, palette.best, "-"),
    ):
        if values:
            units = [
                locate_value(dimension, values.get(dimension.name)) for dimension in dimensions
            ]
            axes.plot(units, rows, color=palette.paper, linewidth=6.0, zorder=4, clip_on=False)
            style = {"markersize": 6.0, "marker": "o", "markeredgewidth": 0.0, "clip_on": False}
            axes.plot(units, rows, color=colour, linewidth=2.4, linestyle=dashes, zorder=5, **style)


def _draw_loss_key(layout: FigureLayout, left: float) -> None:
    palette, width = layout.palette, 22.0
    layout.add_text(left, 20, "worst", colour=palette.muted)
    start = left + 46
    axes = layout.add_axes(start, 10, width=5 * width, height=11, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 5)
    axes.set_ylim(0, 1)
    for index, colour in enumerate(palette.loss):
        axes.axvspan(index, index + 1, facecolor=colour, linewidth=0)
    layout.add_text(start + 5 * width + 8, 20, "best fifth by loss", colour=palette.muted)
