"""Where the search was: which parameters move together, and every trial across all parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from synaptune.analysis.results import Evidence
from synaptune.core.text import label_of
from synaptune.report.figures.axis import chosen, shown_value, unit_of
from synaptune.report.figures.sheet import MINUS, TIMES, Sheet, decimal, fitted, lines, number, text_width, thinned
from synaptune.report.figures.theme import NORMAL, SMALL, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_ANNOTATED = 12  # parameters
_PAIRS = 3  # named beside the map
_AXES = 30
_LINES, _TOP = 420, 120  # trials drawn, and of them the best ones


def correlation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """The lower triangle of the correlations, each parameter named once, at the diagonal."""
    names, rows = evidence.names, evidence.correlation
    count = len(names)
    if count < 2 or len(rows) != count:
        return None
    labels = label_of(names)
    few = count <= _ANNOTATED
    size = NORMAL if few else max(6.5, min(SMALL, 420.0 / count))
    widest = max(text_width(labels[name], size) for name in names)
    cell = min(54.0, (WIDTH - min(widest, 210.0) - 16.0) / (count - 0.35))
    sheet = Sheet(count * cell + 12, palette)
    axes = sheet.axes(4, 4, width=WIDTH - 4, height=count * cell, grid="")
    axes.set_xlim(0, (WIDTH - 4) / cell)
    axes.set_ylim(count, 0)
    axes.set_axis_off()
    _cells(axes, rows, palette, few)
    for at, name in enumerate(names):
        room = (WIDTH - 8) - at * cell
        subsystem = _subsystem(name)
        first = few and (at == 0 or _subsystem(names[at - 1]) != subsystem)
        middle = at + (0.66 if first and at else 0.5)
        words = fitted(labels[name], room - 6, size)
        axes.text(at + 0.12, middle, words, fontsize=size, color=palette.ink, va="center")
        if first and subsystem:
            axes.text(at + 0.12, middle - 15.0 / cell, subsystem, fontsize=11.0, color=palette.muted, va="center")
    _key(sheet, evidence, labels)
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


def _cells(axes: Axes, rows: Sequence[Sequence[float]], palette: Palette, few: bool) -> None:
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
            by_colour.setdefault(tone, []).append([(left, top), (right, top), (right, bottom), (left, bottom)])
            if few:
                ink = palette.strong if abs(tone - 5) >= 3 else palette.ink
                words = decimal(value, 2, sign=True).replace("0.", ".")
                axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=12.0, color=ink)
    for tone, cells in sorted(by_colour.items()):
        axes.add_collection(PolyCollection(cells, facecolors=palette.sign[tone], linewidths=0), autolim=False)


def _key(sheet: Sheet, evidence: Evidence, labels: object) -> None:
    """The colours' meaning and the strongest pairs, in the empty corner."""
    palette, names = sheet.palette, evidence.names
    width, right = 14.0, WIDTH - 4.0
    left = right - 11 * width
    axes = sheet.axes(left, 22, width=11 * width, height=12, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 11)
    axes.set_ylim(0, 1)
    for at, colour in enumerate(palette.sign):
        axes.axvspan(at, at + 1, facecolor=colour, linewidth=0)
    for x, words, side in ((left, f"{MINUS}1", "left"), (left + 5.5 * width, "0", "center"), (right, "+1", "right")):
        sheet.text(x, 16, words, colour=palette.muted, ha=side, size=12.0)
    if len(names) < 5:
        return
    pairs = [(evidence.correlation[a][b], a, b) for a in range(len(names)) for b in range(a) if math.isfinite(evidence.correlation[a][b])]
    strongest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:_PAIRS]
    sheet.text(right, 62, "strongest pairs", colour=palette.muted, ha="right", size=12.0)
    for at, (value, a, b) in enumerate(strongest):
        words = f"{labels[names[b]]} {TIMES} {labels[names[a]]}"  # type: ignore[index]
        sheet.text(right, 80 + 19 * at, f"{fitted(words, 300, 12.0)}  {decimal(value, 2, sign=True)}", ha="right", size=12.0)


def parallel(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Every trial as a line from parameter to parameter, each a horizontal axis over its searched range."""
    found, note = chosen(evidence, _AXES)
    complete = [at for at, loss in enumerate(evidence.losses) if loss is not None and math.isfinite(loss)]
    if len(found) < 2 or not complete:
        return None
    labels = label_of(evidence.names)
    step = 46.0 if len(found) <= 16 else 30.0
    left = min(190.0, max(text_width(labels[dimension.name], SMALL) for dimension in found) + 14)
    right = 140.0
    sheet = Sheet(46 + step * (len(found) - 1) + 34, palette)
    axes = sheet.axes(left, 46, width=WIDTH - left - right, height=step * (len(found) - 1), grid="")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(found) - 1, 0)
    axes.set_axis_off()
    axes.hlines(range(len(found)), 0, 1, color=palette.grid, linewidth=1.2, zorder=1, clip_on=False)
    shown = _by_loss(axes, evidence, complete, found=found, palette=palette)
    _highlighted(axes, evidence, found, palette)
    for at, dimension in enumerate(found):
        y = 46 + step * at
        sheet.text(left - 12, y + 4.5, fitted(labels[dimension.name], left - 14, SMALL), ha="right")
        low, high = (shown_value(dimension.value(end)) for end in (0.0, 1.0))
        sheet.text(left, y + 15, low, colour=palette.muted, size=10.5, gid="halo")
        sheet.text(WIDTH - right, y + 15, high, colour=palette.muted, size=10.5, ha="right", gid="halo")
        for x, values, colour in ((72, evidence.start, palette.baseline), (4, evidence.best and evidence.best.values, palette.best)):
            if values and dimension.name in values:
                sheet.text(WIDTH - x, y + 4.5, fitted(number(values[dimension.name]), 64, SMALL), colour=colour, ha="right")
    if evidence.start:
        sheet.text(WIDTH - 72, 20, "start", colour=palette.baseline, ha="right", weight="bold")
    if evidence.best is not None:
        sheet.text(WIDTH - 4, 20, "best", colour=palette.best, ha="right", weight="bold")
    _loss_key(sheet, left)
    caption = (
        f"{'All' if shown == len(complete) else f'{shown:,} of the'} {len(complete):,} evaluations with a result, coloured by the rank of "
        f"their loss{'' if shown == len(complete) else ' (the best, and an even sample of the rest)'}; each row is one parameter over its "
        f"searched range, on the scale the search used.{note}"
    )
    return Drawing(sheet.canvas, "All trials across all parameters", caption)


def _by_loss(axes: Axes, evidence: Evidence, complete: Sequence[int], *, found: Sequence[Dimension], palette: Palette) -> int:
    """Draw the trials, the worst first; how many."""
    order = {} if evidence.space is None else {name: at for at, name in enumerate(evidence.space.names)}
    columns = [order[dimension.name] for dimension in found]
    ranked = sorted(complete, key=lambda at: -(evidence.losses[at] or 0.0))  # worst first
    rest = thinned(max(0, len(ranked) - _TOP), _LINES - _TOP)
    kept = [(at, ranked[at]) for at in (*rest, *range(max(0, len(ranked) - _TOP), len(ranked)))]
    rows = list(range(len(found)))
    for shade, colour in enumerate(palette.loss):
        share = [at for rank, at in kept if min(4, int(5 * rank / len(ranked))) == shade]
        several = [(np.asarray(evidence.units[at])[columns].tolist(), rows) for at in share if len(evidence.units[at]) == len(order)]
        lines(axes, several, colour=colour, linewidth=1.0, alpha=0.75, zorder=2 + 0.1 * shade)
    return len(kept)


def _highlighted(axes: Axes, evidence: Evidence, found: Sequence[Dimension], palette: Palette) -> None:
    rows = range(len(found))
    best = None if evidence.best is None else evidence.best.values
    for values, colour, dashes in ((evidence.start, palette.baseline, (0, (4, 2.5))), (best, palette.best, "-")):
        if values:
            units = [unit_of(dimension, values.get(dimension.name)) for dimension in found]
            axes.plot(units, rows, color=palette.paper, linewidth=6.0, zorder=4, clip_on=False)
            style = {"markersize": 6.0, "marker": "o", "markeredgewidth": 0.0, "clip_on": False}
            axes.plot(units, rows, color=colour, linewidth=2.4, linestyle=dashes, zorder=5, **style)


def _loss_key(sheet: Sheet, left: float) -> None:
    palette, width = sheet.palette, 22.0
    sheet.text(left, 20, "worst", colour=palette.muted)
    begin = left + 46
    axes = sheet.axes(begin, 10, width=5 * width, height=11, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 5)
    axes.set_ylim(0, 1)
    for at, colour in enumerate(palette.loss):
        axes.axvspan(at, at + 1, facecolor=colour, linewidth=0)
    sheet.text(begin + 5 * width + 8, 20, "best fifth by loss", colour=palette.muted)
