"""Importance of each parameter by three measures, and the ablation of the optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import AblationRow, Comparison, Evidence
from synaptune.core.text import make_labels
from synaptune.report.figures.layout import (
    FigureLayout,
    draw_dots,
    fit_text,
    format_number,
    measure_text,
    set_ticks,
)
from synaptune.report.figures.theme import SMALL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_ROWS = 30


class _ImportanceColumn(NamedTuple):
    """A measure of importance.

    Attributes:
        head: first line of the heading.
        below: second line of the heading.
        values: (value, low, high) by parameter [%]; low and high are nan without an interval.
        colour: colour of the points.
    """

    head: str
    below: str
    values: dict[str, tuple[float, float, float]]
    colour: str


def draw_importance(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw fANOVA, PED-ANOVA and the ablation side by side."""
    columns = [column for column in _make_columns(evidence, palette) if column.values]
    if not columns:
        return None
    all_names = dict.fromkeys(name for column in columns for name in column.values)
    ranked = sorted(all_names, key=lambda name: -columns[0].values.get(name, (-math.inf,) * 3)[0])
    names, labels, step = (
        ranked[:_MAX_ROWS],
        make_labels(tuple(evidence.names) or tuple(ranked)),
        30.0,
    )
    left = min(196.0, max(measure_text(labels.get(name, name), SMALL_SIZE) for name in names) + 16)
    layout = FigureLayout(58 + step * len(names) + 46, palette)
    width = (WIDTH - left - 8) / len(columns)
    for row, column in enumerate(columns):
        axes = layout.add_axes(
            left + row * width, 58, width=width - 22, height=step * len(names), grid="x"
        )
        _draw_lollipops(axes, column, names, palette)
        layout.add_text(left + row * width, 22, column.head, colour=column.colour, weight="bold")
        layout.add_text(left + row * width, 41, column.below, colour=palette.muted, size=12.0)
        layout.label_bottom(axes, "%")
    significance = {effect.name: effect.significant for effect in evidence.effects}
    for row, name in enumerate(names):
        weight = "bold" if significance.get(name) else "normal"
        colour = palette.ink if significance.get(name, not significance) else palette.muted
        text = fit_text(labels.get(name, name), left - 16, SMALL_SIZE)
        layout.add_text(
            left - 12, 58 + step * (row + 0.5) + 4.5, text, colour=colour, ha="right", weight=weight
        )
    caption = (
        "Three measures of importance: the share of the variance of the loss over the search's "
        "trials (fANOVA), the share in the difference between the best trials and the others "
        "(PED-ANOVA), and the gain in test perplexity of each tuned value at the optimum "
        "(ablation, with its 95 % interval). The first two depend on where the search sampled; the "
        "ablation compares only the start value and the tuned value."
        if len(columns) == 3
        else "Importance of each parameter. "
        + "; ".join(f"{column.head}: its share {column.below}" for column in columns)
        + "."
    )
    bold = (
        " Bold names have a significant effect on the loss over the search's trials "
        f"(Holm, {100 * ALPHA:g} %)."
        if any(significance.values())
        else ""
    )
    return Drawing(layout.canvas, "Importance of the parameters", caption + bold)


def _make_columns(evidence: Evidence, palette: Palette) -> list[_ImportanceColumn]:
    def shares(side: str) -> dict[str, tuple[float, float, float]]:
        values_by_name = {entry.name: getattr(entry, side) for entry in evidence.importances}
        return {
            name: (100 * value, math.nan, math.nan)
            for name, value in values_by_name.items()
            if value is not None
        }

    worth = {
        entry.name: entry.reverted[1:4] for entry in evidence.ablation if entry.reverted is not None
    }
    return [
        _ImportanceColumn("fANOVA", "of the loss's variance", shares("fanova"), palette.ink),
        _ImportanceColumn("PED-ANOVA", "in the best trials", shares("ped_anova"), palette.ink),
        _ImportanceColumn("ablation", "in test perplexity", worth, palette.best),
    ]


def _draw_lollipops(
    axes: Axes, column: _ImportanceColumn, names: Sequence[str], palette: Palette
) -> None:
    rows = [(row, *column.values[name]) for row, name in enumerate(names) if name in column.values]
    ends = [end for row in rows for end in row[1:] if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0, color=palette.muted, linewidth=1.0)
    axes.yaxis.set_visible(False)
    for row, value, lower, upper in rows:
        if math.isfinite(lower):
            axes.plot(
                [lower, upper],
                [row, row],
                color=column.colour,
                linewidth=2.0,
                alpha=0.55,
                solid_capstyle="butt",
            )
        else:
            axes.plot(
                [0, value], [row, row], color=palette.other, linewidth=2.0, solid_capstyle="butt"
            )
    draw_dots(
        axes,
        [row[1] for row in rows],
        [row[0] for row in rows],
        colour=column.colour,
        size=9.0,
        zorder=4,
    )
    set_ticks(axes, x=3)


def draw_ablation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the gain of each parameter at the optimum and alone, ranked, with intervals."""
    entries = [
        entry
        for entry in evidence.ablation
        if entry.reverted is not None or entry.alone is not None
    ]
    if not entries:
        return None
    ranked = sorted(entries, key=lambda entry: -(entry.reverted or entry.alone).mean)  # type: ignore[union-attr]
    entries = ranked[:_MAX_ROWS]
    labels, step = (
        make_labels(tuple(evidence.names) or tuple(entry.name for entry in entries)),
        46.0,
    )
    left = min(
        196.0,
        max(measure_text(labels.get(entry.name, entry.name), SMALL_SIZE) for entry in entries) + 16,
    )
    left = max(left, 132.0)
    layout = FigureLayout(50 + step * len(entries) + 46, palette)
    axes = layout.add_axes(left, 50, width=WIDTH - left - 16, height=step * len(entries), grid="x")
    _set_limits(axes, entries, palette)
    for row, entry in enumerate(entries):
        if row % 2:
            axes.axhspan(
                row - 0.5, row + 0.5, facecolor=palette.grid, alpha=0.35, linewidth=0, zorder=0
            )
        _draw_interval(
            axes,
            entry.reverted,
            row - 0.17,
            adjusted=entry.adjusted_reverted,
            colour=palette.best,
            paper=palette.paper,
        )
        _draw_interval(
            axes,
            entry.alone,
            row + 0.17,
            adjusted=entry.adjusted_alone,
            colour=palette.accent,
            paper=palette.paper,
        )
        y = 50 + step * (row + 0.5)
        layout.add_text(
            left - 12,
            y - 1,
            fit_text(labels.get(entry.name, entry.name), left - 16, SMALL_SIZE),
            ha="right",
        )
        change = f"{format_number(entry.default)} → {format_number(entry.tuned)}"
        layout.add_text(
            left - 12,
            y + 15,
            fit_text(change, left - 16, 11.5),
            colour=palette.muted,
            size=11.5,
            ha="right",
        )
    layout.add_text(left, 22, "worth at the optimum", colour=palette.best, weight="bold")
    layout.add_text(
        left + measure_text("worth at the optimum", SMALL_SIZE) * 1.1 + 18,
        22,
        "alone, from the start",
        colour=palette.accent,
        weight="bold",
    )
    layout.add_text(
        left, 40, "filled: significant after Holm's correction", colour=palette.muted, size=12.0
    )
    layout.label_bottom(axes, "gain in test perplexity, %")
    pairs = max(
        (
            comparison.count
            for entry in entries
            for comparison in (entry.reverted, entry.alone)
            if comparison
        ),
        default=0,
    )
    caption = (
        f"One parameter at a time, from start to tuned value, on {pairs} paired seeds with 95 % "
        "intervals. Blue: the optimum against the optimum with this parameter set back to its "
        "start value. Green: the start values with only this parameter tuned, against the start "
        "values. Right of zero is better."
    )
    return Drawing(layout.canvas, "Ablation of the optimum", caption)


def _set_limits(axes: Axes, entries: Sequence[AblationRow], palette: Palette) -> None:
    """Set limits that show every mean; the widest intervals may extend beyond them."""
    comparisons = [
        comparison
        for entry in entries
        for comparison in (entry.reverted, entry.alone)
        if comparison is not None
    ]
    means = [comparison.mean for comparison in comparisons]
    span = max(
        max(means) - min(means),
        *sorted(comparison.high - comparison.low for comparison in comparisons)[
            : -len(comparisons) // 4 or None
        ],
        0.1,
    )
    low = max(min(comparison.low for comparison in comparisons), min(means) - 1.2 * span)
    high = min(max(comparison.high for comparison in comparisons), max(means) + 1.2 * span)
    axes.set_xlim(min(low, 0.0) - 0.04 * span, max(high, 0.0) + 0.04 * span)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.axvline(0, color=palette.ink, linewidth=1.2, zorder=2)
    axes.yaxis.set_visible(False)
    set_ticks(axes, x=6)


def _draw_interval(
    axes: Axes,
    comparison: Comparison | None,
    y: float,
    *,
    adjusted: float | None,
    colour: str,
    paper: str,
) -> None:
    if comparison is None:
        return
    significant = adjusted is not None and adjusted < ALPHA
    axes.plot(
        [comparison.low, comparison.high],
        [y, y],
        color=colour,
        linewidth=2.4,
        solid_capstyle="round",
        alpha=1.0 if significant else 0.6,
    )
    draw_dots(axes, [comparison.mean], [y], colour=colour, size=11.0, zorder=4)
    if not significant:
        draw_dots(axes, [comparison.mean], [y], colour=paper, size=6.5, zorder=5)
