"""Where the search was: which parameters move together, and every trial across all parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

_MAX_ANNOTATED = 12  # parameters
_NAMED_PAIRS = 3  # named beside the map
_MAX_AXES = 30
_MAX_LINES, _BEST_LINES = 420, 120  # trials drawn, and of them the best ones


def draw_correlation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """The lower triangle of the correlations, each parameter named once, at the diagonal."""
    names, rows = evidence.names, evidence.correlation
    count = len(names)
    if count < 2 or len(rows) != count:
        return None
    labels = make_labels(names)
    few = count <= _MAX_ANNOTATED
    size = NORMAL_SIZE if few else max(6.5, min(SMALL_SIZE, 420.0 / count))
    widest = max(measure_text(labels[name], size) for name in names)
    cell = min(54.0, (WIDTH - min(widest, 210.0) - 16.0) / (count - 0.35))
    sheet = FigureLayout(count * cell + 12, palette)
    axes = sheet.add_axes(4, 4, width=WIDTH - 4, height=count * cell, grid="")
    axes.set_xlim(0, (WIDTH - 4) / cell)
    axes.set_ylim(count, 0)
    axes.set_axis_off()
    _draw_cells(axes, rows, palette, few)
    for at, name in enumerate(names):
        room = (WIDTH - 8) - at * cell
        subsystem = _subsystem(name)
        first = few and (at == 0 or _subsystem(names[at - 1]) != subsystem)
        middle = at + (0.66 if first and at else 0.5)
        words = fit_text(labels[name], room - 6, size)
        axes.text(at + 0.12, middle, words, fontsize=size, color=palette.ink, va="center")
        if first and subsystem:
            axes.text(
                at + 0.12,
                middle - 15.0 / cell,
                subsystem,
                fontsize=11.0,
                color=palette.muted,
                va="center",
            )
    _draw_key(sheet, evidence, labels)
    caption = (
        "How the parameters move together in the search's distribution at its end, by subsystem: in a blue pair both rise together, "
        "in an orange pair one rises as the other falls. "
    )
    if evidence.correlation_noise is None:
        caption += "Selection among few points moves pairs too, whether they matter or not."
    else:
        caption += f"Noise alone takes the strongest pair beyond {evidence.correlation_noise:.2f} in one search of twenty."
    return Drawing(sheet.canvas, "Correlation of the parameters", caption)


def _subsystem(name: str) -> str:
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else ""


def _draw_cells(axes: Axes, rows: Sequence[Sequence[float]], palette: Palette, few: bool) -> None:
    from matplotlib.collections import PolyCollection

    by_colour: dict[int, list[list[tuple[float, float]]]] = {}
    for row in range(1, len(rows)):
        for column in range(row):
            value = rows[row][column]
            if not math.isfinite(value):
                continue
            tone = round((max(-1.0, min(1.0, value)) + 1.0) * 5.0)
            gap = 0.02
            left, right, top, bottom = column + gap, column + 1 - gap, row + gap, row + 1 - gap
            by_colour.setdefault(tone, []).append(
                [(left, top), (right, top), (right, bottom), (left, bottom)]
            )
            if few:
                ink = palette.strong if abs(tone - 5) >= 3 else palette.ink
                words = format_decimal(value, 2, sign=True).replace("0.", ".")
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    words,
                    ha="center",
                    va="center",
                    fontsize=12.0,
                    color=ink,
                )
    for tone, cells in sorted(by_colour.items()):
        axes.add_collection(
            PolyCollection(cells, facecolors=palette.sign[tone], linewidths=0), autolim=False
        )


def _draw_key(layout: FigureLayout, evidence: Evidence, labels: object) -> None:
    """The colours' meaning and the strongest pairs, in the empty corner."""
    palette, names = layout.palette, evidence.names
    width, right = 14.0, WIDTH - 4.0
    left = right - 11 * width
    axes = layout.add_axes(left, 22, width=11 * width, height=12, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 11)
    axes.set_ylim(0, 1)
    for at, colour in enumerate(palette.sign):
        axes.axvspan(at, at + 1, facecolor=colour, linewidth=0)
    for x, words, side in (
        (left, f"{MINUS}1", "left"),
        (left + 5.5 * width, "0", "center"),
        (right, "+1", "right"),
    ):
        layout.add_text(x, 16, words, colour=palette.muted, ha=side, size=12.0)
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
    for at, (value, a, b) in enumerate(strongest):
        words = f"{labels[names[b]]} {TIMES} {labels[names[a]]}"  # type: ignore[index]
        layout.add_text(
            right,
            80 + 19 * at,
            f"{fit_text(words, 300, 12.0)}  {format_decimal(value, 2, sign=True)}",
            ha="right",
            size=12.0,
        )


def draw_parallel(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Every trial as a line from parameter to parameter, each a horizontal axis over its searched range."""
    found, note = choose_dimensions(evidence, _MAX_AXES)
    complete = [
        at for at, loss in enumerate(evidence.losses) if loss is not None and math.isfinite(loss)
    ]
    if len(found) < 2 or not complete:
        return None
    labels = make_labels(evidence.names)
    step = 46.0 if len(found) <= 16 else 30.0
    left = min(
        190.0, max(measure_text(labels[dimension.name], SMALL_SIZE) for dimension in found) + 14
    )
    right = 140.0
    sheet = FigureLayout(46 + step * (len(found) - 1) + 34, palette)
    axes = sheet.add_axes(
        left, 46, width=WIDTH - left - right, height=step * (len(found) - 1), grid=""
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(found) - 1, 0)
    axes.set_axis_off()
    axes.hlines(range(len(found)), 0, 1, color=palette.grid, linewidth=1.2, zorder=1, clip_on=False)
    shown = _draw_trials(axes, evidence, complete, found=found, palette=palette)
    _draw_highlights(axes, evidence, found, palette)
    for at, dimension in enumerate(found):
        y = 46 + step * at
        sheet.add_text(
            left - 12, y + 4.5, fit_text(labels[dimension.name], left - 14, SMALL_SIZE), ha="right"
        )
        low, high = (format_tick(dimension.to_value(end)) for end in (0.0, 1.0))
        sheet.add_text(left, y + 15, low, colour=palette.muted, size=10.5, gid="halo")
        sheet.add_text(
            WIDTH - right, y + 15, high, colour=palette.muted, size=10.5, ha="right", gid="halo"
        )
        for x, values, colour in (
            (72, evidence.start, palette.baseline),
            (4, evidence.best and evidence.best.values, palette.best),
        ):
            if values and dimension.name in values:
                sheet.add_text(
                    WIDTH - x,
                    y + 4.5,
                    fit_text(format_number(values[dimension.name]), 64, SMALL_SIZE),
                    colour=colour,
                    ha="right",
                )
    if evidence.start:
        sheet.add_text(WIDTH - 72, 20, "start", colour=palette.baseline, ha="right", weight="bold")
    if evidence.best is not None:
        sheet.add_text(WIDTH - 4, 20, "best", colour=palette.best, ha="right", weight="bold")
    _draw_loss_key(sheet, left)
    caption = (
        f"{'All' if shown == len(complete) else f'{shown:,} of the'} {len(complete):,} evaluations with a result, coloured by the rank of "
        f"their loss{'' if shown == len(complete) else ' (the best, and an even sample of the rest)'}; each row is one parameter over its "
        f"searched range, on the scale the search used.{note}"
    )
    return Drawing(sheet.canvas, "All trials across all parameters", caption)


def _draw_trials(
    axes: Axes,
    evidence: Evidence,
    complete: Sequence[int],
    *,
    found: Sequence[Dimension],
    palette: Palette,
) -> int:
    """Draw the trials, the worst first; how many."""
    order = (
        {} if evidence.space is None else {name: at for at, name in enumerate(evidence.space.names)}
    )
    columns = [order[dimension.name] for dimension in found]
    ranked = sorted(complete, key=lambda at: -(evidence.losses[at] or 0.0))  # worst first
    rest = thin_out(max(0, len(ranked) - _BEST_LINES), _MAX_LINES - _BEST_LINES)
    kept = [
        (at, ranked[at]) for at in (*rest, *range(max(0, len(ranked) - _BEST_LINES), len(ranked)))
    ]
    rows = list(range(len(found)))
    for shade, colour in enumerate(palette.loss):
        share = [at for rank, at in kept if min(4, int(5 * rank / len(ranked))) == shade]
        several = [
            (np.asarray(evidence.units[at])[columns].tolist(), rows)
            for at in share
            if len(evidence.units[at]) == len(order)
        ]
        draw_lines(axes, several, colour=colour, linewidth=1.0, alpha=0.75, zorder=2 + 0.1 * shade)
    return len(kept)


def _draw_highlights(
    axes: Axes, evidence: Evidence, found: Sequence[Dimension], palette: Palette
) -> None:
    rows = range(len(found))
    best = None if evidence.best is None else evidence.best.values
    for values, colour, dashes in (
        (evidence.start, palette.baseline, (0, (4, 2.5))),
        (best, palette.best, "-"),
    ):
        if values:
            units = [locate_value(dimension, values.get(dimension.name)) for dimension in found]
            axes.plot(units, rows, color=palette.paper, linewidth=6.0, zorder=4, clip_on=False)
            style = {"markersize": 6.0, "marker": "o", "markeredgewidth": 0.0, "clip_on": False}
            axes.plot(units, rows, color=colour, linewidth=2.4, linestyle=dashes, zorder=5, **style)


def _draw_loss_key(layout: FigureLayout, left: float) -> None:
    palette, width = layout.palette, 22.0
    layout.add_text(left, 20, "worst", colour=palette.muted)
    begin = left + 46
    axes = layout.add_axes(begin, 10, width=5 * width, height=11, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 5)
    axes.set_ylim(0, 1)
    for at, colour in enumerate(palette.loss):
        axes.axvspan(at, at + 1, facecolor=colour, linewidth=0)
    layout.add_text(begin + 5 * width + 8, 20, "best fifth by loss", colour=palette.muted)
