"""Figures of the search space: correlations of the parameters, and all trials over all axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptune.analysis.results import Evidence
from synaptune.core.text import make_labels
from synaptune.report.figures.axis import choose_dimensions, format_tick, locate_value
from synaptune.report.figures.layout import (
    MINUS,
    TIMES,
    FigureLayout,
    RowLayout,
    draw_lines,
    fit_text,
    format_decimal,
    format_number,
    measure_text,
    thin_out,
)
from synaptune.report.figures.theme import NORMAL_SIZE, SMALL_SIZE, TINY_SIZE, Drawing, Palette
from synaptune.report.table_model import show_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from synaptune.search.space.space import Dimension

_MAX_ANNOTATED = 12  # parameters; above it the cells show no numbers
_NAMED_PAIRS = 3  # strongest pairs that are named beside the map
_MAX_AXES = 30
_BEST_LINES, _OTHER_LINES = 60, 30  # trials in the figure: the best ones, and of the others


def draw_correlation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the lower triangle of the correlations, with the parameters' names at the diagonal."""
    names, rows = evidence.names, np.array(evidence.correlation)
    if len(names) < 2 or len(rows) != len(names):
        return None
    names, rows, note = _choose_pairs(evidence, rows)
    count, labels = len(names), make_labels(evidence.names)
    annotated = count <= _MAX_ANNOTATED and not palette.is_narrow
    size = NORMAL_SIZE if annotated else TINY_SIZE
    widest = max(measure_text(labels[name], size) for name in names)
    limit = 150.0 if palette.is_narrow else 210.0
    cell = min(54.0, (palette.width - min(widest, limit) - 16.0) / (count - 0.35))
    height = max(cell, size + 1.0)  # of a row, which also has room for its name
    layout = FigureLayout(count * height + 12, palette)
    limits = {"xlim": (0, (layout.width - 4) / cell), "ylim": (count, 0)}
    width = layout.width - 4
    axes = layout.add_axes(4, 4, width=width, height=count * height, grid="", **limits)
    _draw_cells(axes, rows, palette, annotated)
    subsystem = None
    for index, name in enumerate(names):
        before, subsystem = subsystem, name.rpartition(".")[0].rpartition(".")[2]
        first = annotated and before != subsystem
        middle = index + (0.66 if first and index else 0.5)
        style = {"va": "center", "color": palette.ink, "fontsize": size}
        text = fit_text(labels[name], layout.width - 14 - index * cell, size)
        axes.text(index + 0.12, middle, text, **style)
        if first:
            style |= {"color": palette.muted, "fontsize": TINY_SIZE}
            axes.text(index + 0.12, middle - 16.0 / cell, subsystem, **style)
    _draw_key(layout, names, rows)
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
    return Drawing(layout.canvas, "Correlation of the parameters", caption + note)


def _choose_pairs(evidence: Evidence, rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, str]:
    """Choose the parameters of the map: those of the strongest correlations if there are many."""
    names = evidence.names
    if len(names) <= _MAX_AXES:
        return names, rows, ""
    strength = np.nan_to_num(np.abs(rows - np.diag(np.diag(rows)))).max(axis=1)
    chosen = sorted(np.argsort(-strength, kind="stable")[:_MAX_AXES].tolist())
    note = f" Shown are the {_MAX_AXES} of {len(names)} parameters with the strongest pairs."
    return tuple(names[index] for index in chosen), rows[np.ix_(chosen, chosen)], note


def _draw_cells(axes: Axes, rows: np.ndarray, palette: Palette, annotated: bool) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells: dict[int, list[Rectangle]] = {}
    for row, column in zip(*np.tril_indices(len(rows), -1), strict=True):
        value = float(rows[row, column])
        if not math.isfinite(value):
            continue
        shade = round((max(-1.0, min(1.0, value)) + 1.0) * 5.0)
        cells.setdefault(shade, []).append(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96))
        if annotated:
            ink = palette.strong if abs(shade - 5) >= 3 else palette.ink
            text = format_decimal(value, 2, sign=True).replace("0.", ".")
            style = {"ha": "center", "va": "center", "fontsize": 12.0, "color": ink}
            axes.text(column + 0.5, row + 0.5, text, **style)
    for shade, patches in sorted(cells.items()):
        collection = PatchCollection(patches, facecolors=palette.sign[shade], linewidths=0)
        axes.add_collection(collection, autolim=False)


def _draw_key(layout: FigureLayout, names: tuple[str, ...], rows: np.ndarray) -> None:
    """Draw the colour scale and the strongest pairs in the empty corner."""
    palette, right, cell = layout.palette, layout.width - 4.0, 14.0
    left = right - cell * len(palette.sign)
    layout.add_colour_key(left, 22, palette.sign, cell)
    style = {"colour": palette.muted, "size": 12.0}
    for x, text, side in (
        (left, f"{MINUS}1", "left"),
        ((left + right) / 2.0, "0", "center"),
        (right, "+1", "right"),
    ):
        layout.add_text(x, 16, text, ha=side, **style)
    if len(names) < 5 or palette.is_narrow:
        return
    layout.add_text(right, 62, "strongest pairs", ha="right", **style)
    labels = make_labels(names)
    pairs = zip(*np.tril_indices(len(names), -1), strict=True)
    known = [(float(rows[a, b]), a, b) for a, b in pairs if np.isfinite(rows[a, b])]
    strongest = sorted(known, key=lambda entry: -abs(entry[0]))[:_NAMED_PAIRS]
    for index, (value, a, b) in enumerate(strongest):
        pair = fit_text(f"{labels[names[b]]} {TIMES} {labels[names[a]]}", 300, 12.0)
        text = f"{pair}  {format_decimal(value, 2, sign=True)}"
        layout.add_text(right, 80 + 19 * index, text, ha="right", size=12.0)


def draw_parallel(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw every trial as a line across the parameters, each on its own horizontal axis."""
    dimensions, note = choose_dimensions(evidence, _MAX_AXES)
    losses = np.array(evidence.losses, float)
    complete = int(np.isfinite(losses).sum())
    if len(dimensions) < 2 or not complete:
        return None
    labels = make_labels(evidence.names)
    step, count = (46.0 if len(dimensions) <= 16 else 30.0), len(dimensions)
    texts = [labels[dimension.name] for dimension in dimensions]
    layout = RowLayout(texts, palette, top=46 - step / 2, step=step)
    right = layout.width - (8.0 if palette.is_narrow else 148.0)
    axes = layout.add_row_axes(layout.left, right, xlim=(0, 1), grid="")
    axes.hlines(range(count), 0, 1, color=palette.grid, linewidth=1.2, zorder=1, clip_on=False)
    shown = _draw_trials(axes, evidence, losses, dimensions=dimensions, palette=palette)
    _draw_highlights(layout, axes, evidence, dimensions)
    for row, dimension in enumerate(dimensions):
        layout.label_row(row, texts[row])
        low, high = (format_tick(dimension, dimension.to_value(end)) for end in (0.0, 1.0))
        style = {"shift": 15.0, "colour": palette.muted, "size": TINY_SIZE, "gid": "halo"}
        style["beside"] = True
        layout.label_row(row, low, x=layout.left, **style)
        layout.label_row(row, high, x=right, ha="right", **style)
    cell, best_fifth = (14.0, "best") if palette.is_narrow else (22.0, "best fifth")
    layout.add_text(layout.left, 20, "worst", colour=palette.muted)
    layout.add_colour_key(layout.left + 46, 10, palette.loss, cell)
    layout.add_text(layout.left + 54 + 5 * cell, 20, best_fifth, colour=palette.muted)
    what, sample = f"All {complete:,}", ""
    if shown < complete:
        what = f"{shown:,} of the {complete:,}"
        sample = " (of the better half as many as fit, and an even sample of the others)"
    return Drawing(
        layout.canvas,
        "All trials across all parameters",
        f"{what} evaluations with a result, coloured by the rank of their "
        f"{evidence.objective}{sample}; each row is one parameter over its searched range, on the "
        f"scale that the search used.{note}",
    )


def _draw_trials(
    axes: Axes,
    evidence: Evidence,
    losses: np.ndarray,
    *,
    dimensions: Sequence[Dimension],
    palette: Palette,
) -> int:
    """Draw the trials, the worst first.

    Returns:
        The number of lines.
    """
    names = () if evidence.space is None else evidence.space.names
    columns = [names.index(dimension.name) for dimension in dimensions]
    finite = np.flatnonzero(np.isfinite(losses))
    ranked = finite[np.argsort(-losses[finite], kind="stable")]  # worst first
    # The lines below the median would hide the better ones.
    first_best = max(len(ranked) // 2, len(ranked) - _BEST_LINES)
    others = max(2, min(_OTHER_LINES, len(ranked) // 8))
    shown = [*thin_out(first_best, others), *range(first_best, len(ranked))]
    lines_by_shade: list[list[tuple[Any, Any]]] = [[] for _ in palette.loss]
    for rank in shown:
        unit = evidence.units[ranked[rank]]
        if len(unit) == len(names):
            line = ([unit[column] for column in columns], range(len(columns)))
            lines_by_shade[5 * rank // len(ranked)].append(line)
    for shade, lines in enumerate(lines_by_shade):
        style = {"linewidth": 1.0, "alpha": 0.75, "zorder": 2 + 0.1 * shade}
        draw_lines(axes, lines, colour=palette.loss[shade], **style)
    return len(shown)


def _draw_highlights(
    layout: RowLayout, axes: Axes, evidence: Evidence, dimensions: Sequence[Dimension]
) -> None:
    """Draw the start values and the best values as lines, with their numbers at the right."""
    palette, rows = layout.palette, range(len(dimensions))
    best = {} if evidence.best is None else evidence.best.values
    for name, x, values, colour, dashes in (
        ("start", layout.width - 76, evidence.start, palette.baseline, (0, (4, 2.5))),
        ("best", layout.width - 4, best, palette.best, "-"),
    ):
        if not values:
            continue
        units = [locate_value(dimension, values) for dimension in dimensions]
        axes.plot(units, rows, color=palette.paper, linewidth=6.0, zorder=4, clip_on=False)
        style = {"markersize": 6.0, "marker": "o", "markeredgewidth": 0.0, "clip_on": False}
        axes.plot(units, rows, color=colour, linewidth=2.4, linestyle=dashes, zorder=5, **style)
        layout.add_text(x, 20, name, colour=colour, ha="right", weight="bold")
        for row, dimension in enumerate(dimensions):
            shown = format_number(show_value(values.get(dimension.name), dimension))
            text = fit_text(shown, 64, SMALL_SIZE) if dimension.name in values else ""
            layout.label_row(row, text, x=x, colour=colour, ha="right")
