"""What each parameter is worth: its importance by three measures, and the ablation of the optimum."""

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

_MAX_ROWS = 30  # rows


class _ImportanceColumn(NamedTuple):
    """A measure: its two lines of heading, and value with interval [%] by parameter."""

    head: str
    below: str
    values: dict[str, tuple[float, float, float]]
    colour: str


def draw_importance(evidence: Evidence, palette: Palette) -> Drawing | None:
    """fANOVA, PED-ANOVA and the worth by ablation, side by side."""
    columns = [column for column in _make_columns(evidence, palette) if column.values]
    if not columns:
        return None
    mentioned = dict.fromkeys(name for column in columns for name in column.values)
    ranked = sorted(mentioned, key=lambda name: -columns[0].values.get(name, (-math.inf,) * 3)[0])
    names, labels, step = (
        ranked[:_MAX_ROWS],
        make_labels(tuple(evidence.names) or tuple(ranked)),
        30.0,
    )
    left = min(196.0, max(measure_text(labels.get(name, name), SMALL_SIZE) for name in names) + 16)
    sheet = FigureLayout(58 + step * len(names) + 46, palette)
    width = (WIDTH - left - 8) / len(columns)
    for at, column in enumerate(columns):
        axes = sheet.add_axes(
            left + at * width, 58, width=width - 22, height=step * len(names), grid="x"
        )
        _draw_lollipops(axes, column, names, palette)
        sheet.add_text(left + at * width, 22, column.head, colour=column.colour, weight="bold")
        sheet.add_text(left + at * width, 41, column.below, colour=palette.muted, size=12.0)
        sheet.label_bottom(axes, "%")
    known = {effect.name: effect.significant for effect in evidence.effects}
    for at, name in enumerate(names):
        weight = "bold" if known.get(name) else "normal"
        colour = palette.ink if known.get(name, not known) else palette.muted
        words = fit_text(labels.get(name, name), left - 16, SMALL_SIZE)
        sheet.add_text(
            left - 12, 58 + step * (at + 0.5) + 4.5, words, colour=colour, ha="right", weight=weight
        )
    caption = (
        "The same question asked three ways: the share of the loss's spread over the search's trials (fANOVA), the share in being "
        "among its best trials (PED-ANOVA), and what each tuned value is worth at the optimum in test perplexity (ablation, with its "
        "95 % interval). The first two see the points where the search went, the last only the way from start to tuned value."
        if len(columns) == 3
        else "How much each parameter matters. "
        + "; ".join(f"{column.head}: its share {column.below}" for column in columns)
        + "."
    )
    bold = (
        f" Bold names have a significant effect on the loss over the search's trials (Holm, {100 * ALPHA:g} %)."
        if any(known.values())
        else ""
    )
    return Drawing(sheet.canvas, "Importance of the parameters", caption + bold)


def _make_columns(evidence: Evidence, palette: Palette) -> list[_ImportanceColumn]:
    def shares(side: str) -> dict[str, tuple[float, float, float]]:
        known = {entry.name: getattr(entry, side) for entry in evidence.importances}
        return {
            name: (100 * value, math.nan, math.nan)
            for name, value in known.items()
            if value is not None
        }

    worth = {
        entry.name: entry.reverted[1:4] for entry in evidence.ablation if entry.reverted is not None
    }
    return [
        _ImportanceColumn("fANOVA", "of the loss's spread", shares("fanova"), palette.ink),
        _ImportanceColumn("PED-ANOVA", "of being at the top", shares("ped_anova"), palette.ink),
        _ImportanceColumn("ablation", "in test perplexity", worth, palette.best),
    ]


def _draw_lollipops(
    axes: Axes, column: _ImportanceColumn, names: Sequence[str], palette: Palette
) -> None:
    rows = [(at, *column.values[name]) for at, name in enumerate(names) if name in column.values]
    ends = [end for row in rows for end in row[1:] if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0, color=palette.muted, linewidth=1.0)
    axes.yaxis.set_visible(False)
    for at, value, lower, upper in rows:
        if math.isfinite(lower):
            axes.plot(
                [lower, upper],
                [at, at],
                color=column.colour,
                linewidth=2.0,
                alpha=0.55,
                solid_capstyle="butt",
            )
        else:
            axes.plot(
                [0, value], [at, at], color=palette.other, linewidth=2.0, solid_capstyle="butt"
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
    """Each parameter of the optimum reverted, and alone, ranked by worth, with intervals."""
    entries = [
        entry
        for entry in evidence.ablation
        if entry.reverted is not None or entry.alone is not None
    ]
    if not entries:
        return None
    entries = sorted(entries, key=lambda entry: -(entry.reverted or entry.alone).mean)[:_MAX_ROWS]  # type: ignore[union-attr]
    labels, step = (
        make_labels(tuple(evidence.names) or tuple(entry.name for entry in entries)),
        46.0,
    )
    left = min(
        196.0,
        max(measure_text(labels.get(entry.name, entry.name), SMALL_SIZE) for entry in entries) + 16,
    )
    left = max(left, 132.0)
    sheet = FigureLayout(50 + step * len(entries) + 46, palette)
    axes = sheet.add_axes(left, 50, width=WIDTH - left - 16, height=step * len(entries), grid="x")
    _set_limits(axes, entries, palette)
    for at, entry in enumerate(entries):
        if at % 2:
            axes.axhspan(
                at - 0.5, at + 0.5, facecolor=palette.grid, alpha=0.35, linewidth=0, zorder=0
            )
        _draw_interval(
            axes,
            entry.reverted,
            at - 0.17,
            adjusted=entry.adjusted_reverted,
            colour=palette.best,
            paper=palette.paper,
        )
        _draw_interval(
            axes,
            entry.alone,
            at + 0.17,
            adjusted=entry.adjusted_alone,
            colour=palette.accent,
            paper=palette.paper,
        )
        y = 50 + step * (at + 0.5)
        sheet.add_text(
            left - 12,
            y - 1,
            fit_text(labels.get(entry.name, entry.name), left - 16, SMALL_SIZE),
            ha="right",
        )
        change = f"{format_number(entry.default)} → {format_number(entry.tuned)}"
        sheet.add_text(
            left - 12,
            y + 15,
            fit_text(change, left - 16, 11.5),
            colour=palette.muted,
            size=11.5,
            ha="right",
        )
    sheet.add_text(left, 22, "worth at the optimum", colour=palette.best, weight="bold")
    sheet.add_text(
        left + measure_text("worth at the optimum", SMALL_SIZE) * 1.1 + 18,
        22,
        "alone, from the start",
        colour=palette.accent,
        weight="bold",
    )
    sheet.add_text(
        left, 40, "filled: significant after Holm's correction", colour=palette.muted, size=12.0
    )
    sheet.label_bottom(axes, "gain in test perplexity, %")
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
        f"One parameter at a time, from start to tuned value, on {pairs} paired seeds with 95 % intervals. Blue: the optimum against the "
        "same with this parameter back at its start. Green: only this parameter tuned, against the start. Right of zero is better."
    )
    return Drawing(sheet.canvas, "Ablation of the optimum", caption)


def _set_limits(axes: Axes, entries: Sequence[AblationRow], palette: Palette) -> None:
    """Limits in which every mean lies, and the intervals unless some are far wider than the rest."""
    known = [
        comparison
        for entry in entries
        for comparison in (entry.reverted, entry.alone)
        if comparison is not None
    ]
    means = [comparison.mean for comparison in known]
    span = max(
        max(means) - min(means),
        *sorted(comparison.high - comparison.low for comparison in known)[
            : -len(known) // 4 or None
        ],
        0.1,
    )
    low = max(min(comparison.low for comparison in known), min(means) - 1.2 * span)
    high = min(max(comparison.high for comparison in known), max(means) + 1.2 * span)
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
    sure = adjusted is not None and adjusted < ALPHA
    axes.plot(
        [comparison.low, comparison.high],
        [y, y],
        color=colour,
        linewidth=2.4,
        solid_capstyle="round",
        alpha=1.0 if sure else 0.6,
    )
    draw_dots(axes, [comparison.mean], [y], colour=colour, size=11.0, zorder=4)
    if not sure:
        draw_dots(axes, [comparison.mean], [y], colour=paper, size=6.5, zorder=5)
