"""Figures of the validation, baseline against best: learning curves and the result of each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.results import Evidence, ValidationResult
from synaptune.report.figures.layout import (
    FigureLayout,
    draw_dots,
    draw_lines,
    find_limits,
    format_decimal,
    format_number,
    set_ticks,
    spread_apart,
)
from synaptune.report.figures.theme import NORMAL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURES = (("test_perplexity", "test perplexity"), ("val_loss", "validation loss [nats/token]"))
_EARLY_SHARE = 0.12  # fraction of the steps whose losses may lie above the frame


def draw_curves(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the learning curves by seed, and the lead of the best at each step."""
    curves_by_side: dict[str, list[Mapping[int, float]]] = {}
    for label, curve in sorted(evidence.curves.items()):
        if curve:
            curves_by_side.setdefault(_read_side(label), []).append(curve)
    if not curves_by_side:
        return None
    leads = _compute_lead(evidence.curves)
    layout = FigureLayout(560 if leads else 380, palette)
    top = layout.add_axes(52, 34, width=WIDTH - 52 - 128, height=290)
    steps = sorted(
        {step for curves in curves_by_side.values() for curve in curves for step in curve}
    )
    late = [
        curve[step]
        for curves in curves_by_side.values()
        for curve in curves
        for step in curve
        if step >= steps[int(_EARLY_SHARE * (len(steps) - 1))]
    ]
    top.set_xlim(0, steps[-1] or 1)
    top.set_ylim(*find_limits(late, upper=1.0, pad=0.04))
    colours = {"baseline": palette.baseline, "best": palette.best}
    for side, curves in curves_by_side.items():
        _draw_curve_group(top, curves, colours.get(side, palette.muted))
    _label_ends(layout, top, curves_by_side, colours)
    set_ticks(top, x=5, y=6, integer=True)
    layout.label_top(top, "validation loss [nats/token]")
    if leads:
        below = layout.add_axes(52, 410, width=WIDTH - 52 - 128, height=100)
        _draw_lead(layout, below, leads, top.get_xlim())
    layout.label_bottom(below if leads else top, "optimizer step")
    seeds = max(len(curves) for curves in curves_by_side.values())
    caption = (
        f"Learning curves of the {' and the '.join(curves_by_side)} on {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'} (thin) and their mean (thick)"
    )
    caption += (
        "; below, the lead of the best at equal steps, for each seed and in the mean."
        if leads
        else "."
    )
    return Drawing(layout.canvas, "Learning curves", caption)


def _read_side(label: str) -> str:
    return label.split(" seed ")[0]


def _compute_lead(curves: Mapping[str, Mapping[int, float]]) -> list[dict[int, float]]:
    """Subtract best from baseline by step, for each seed that has both."""
    leads = []
    for label, curve in sorted(curves.items()):
        if not label.startswith("best"):
            continue
        baseline = curves.get(label.replace("best", "baseline", 1))
        common = sorted(curve.keys() & baseline.keys()) if baseline else []
        if baseline and len(common) > 1:
            leads.append({step: baseline[step] - curve[step] for step in common})
    return leads


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Average curves over the steps that all of them have."""
    common = set.intersection(*(set(curve) for curve in curves))
    return {step: statistics.fmean(curve[step] for curve in curves) for step in sorted(common)}


def _draw_curve_group(axes: Axes, curves: Sequence[Mapping[int, float]], colour: str) -> None:
    draw_lines(
        axes,
        [(sorted(curve), [curve[step] for step in sorted(curve)]) for curve in curves],
        colour=colour,
        linewidth=1.0,
        alpha=0.5,
    )
    mean = _mean_curve(curves)
    axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2.6, zorder=4)


def _label_ends(
    layout: FigureLayout,
    axes: Axes,
    curves_by_side: Mapping[str, Sequence[Mapping[int, float]]],
    colours: Mapping[str, str],
) -> None:
    ends = {side: _mean_curve(curves) for side, curves in curves_by_side.items()}
    last = {side: (list(mean)[-1], list(mean.values())[-1]) for side, mean in ends.items() if mean}
    low, high = axes.get_ylim()
    places = spread_apart([value for _, value in last.values()], (high - low) * 0.065)
    for (side, (step, value)), y in zip(last.items(), places, strict=True):
        colour = colours.get(side, layout.palette.muted)
        layout.label_point(axes, step, y, f"{side} {value:.3f}", colour=colour, weight="bold")


def _draw_lead(
    layout: FigureLayout,
    axes: Axes,
    lead: Sequence[Mapping[int, float]],
    limits: tuple[float, float],
) -> None:
    palette = layout.palette
    first = limits[0] + _EARLY_SHARE * (limits[1] - limits[0])
    axes.set_xlim(limits)
    axes.set_ylim(
        *find_limits(
            [value for pair in lead for step, value in pair.items() if step >= first],
            upper=1.0,
            include=[0.0],
            pad=0.1,
        )
    )
    axes.axhline(0, color=palette.ink, linewidth=1.0)
    _draw_curve_group(axes, lead, palette.best)
    set_ticks(axes, x=5, y=3, integer=True)
    layout.label_top(axes, "lead of the best [nats/token]", colour=palette.best)
    mean = _mean_curve(lead)
    if mean:
        layout.label_point(
            axes,
            list(mean)[-1],
            list(mean.values())[-1],
            format_decimal(list(mean.values())[-1], 3, sign=True),
            colour=palette.best,
        )


def draw_seeds(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw each validation seed from baseline to best, and the gains with their interval."""
    validation = evidence.validation
    measured_pairs = None if validation is None else _list_pairs(validation)
    if validation is None or measured_pairs is None:
        return None
    measure, pairs = measured_pairs
    layout = FigureLayout(330, palette)
    left = layout.add_axes(102, 52, width=170, height=232, grid="")
    _draw_slopes(layout, left, pairs)
    layout.add_text(4, 20, measure, colour=palette.muted)
    right = layout.add_axes(408, 52, width=WIDTH - 408 - 14, height=232, grid="x")
    layout.add_text(408, 20, "gain on each seed", colour=palette.muted)
    _draw_gains(layout, right, validation, pairs)
    better = sum(after < before for _, before, after in pairs)
    caption = (
        f"Validation on {len(pairs)} fresh seeds, each trained at the start values and at the best "
        f"values; {better} of {len(pairs)} improve. "
        f"Mean gain in test perplexity {_format_interval(validation, '%, 95 % interval')}."
    )
    return Drawing(layout.canvas, "Validation, seed by seed", caption)


def _format_interval(validation: ValidationResult, unit: str = "") -> str:
    mean, low, high = (format_decimal(value, 1) for value in validation.gain[1:4])
    return f"{mean} {unit}{' ' if unit else '('}{low} to {high}{'' if unit else ')'}"


def _list_pairs(validation: ValidationResult) -> tuple[str, list[tuple[str, float, float]]] | None:
    """Return the name of the measure, and (seed, before, after) of each pair."""
    for fact, measure in _MEASURES:
        rows = [
            (str(old.facts.get("seed", index)), old.facts[fact], new.facts[fact])
            for index, (old, new) in enumerate(
                zip(validation.before, validation.after, strict=False)
            )
            if fact in old.facts and fact in new.facts
        ]
        if rows:
            return measure, rows
    return None


def _draw_slopes(
    layout: FigureLayout, axes: Axes, pairs: Sequence[tuple[str, float, float]]
) -> None:
    palette = layout.palette
    values = [value for _, before, after in pairs for value in (before, after)]
    axes.set_xlim(0, 1)
    axes.set_ylim(*find_limits(values, upper=1.0, pad=0.06))
    axes.set_axis_off()
    for x in (0, 1):
        axes.axvline(x, color=palette.grid, linewidth=1.2)
    for _, before, after in pairs:
        axes.plot(
            [0, 1],
            [before, after],
            color=palette.other if after < before else palette.bad,
            linewidth=1.6,
            clip_on=False,
        )
    for x, colour, name in ((0, palette.baseline, "baseline"), (1, palette.best, "best")):
        column = [(before, after)[x] for _, before, after in pairs]
        style = {
            "color": colour,
            "linestyle": "none",
            "marker": "o",
            "markersize": 8.0,
            "markeredgewidth": 0.0,
            "clip_on": False,
        }
        axes.plot([x] * len(pairs), column, zorder=5, **style)
        shift, side = (-12, "right") if x == 0 else (12, "left")
        text = format_number(statistics.fmean(column), 4)
        layout.label_point(
            axes,
            x,
            statistics.fmean(column),
            text,
            colour=colour,
            shift=(shift, 8),
            ha=side,
            weight="bold",
            fontsize=NORMAL_SIZE,
        )
        spread = f"{format_number(min(column), 3)} to {format_number(max(column), 3)}"
        layout.label_point(
            axes,
            x,
            statistics.fmean(column),
            spread,
            colour=palette.muted,
            shift=(shift, -9),
            ha=side,
            fontsize=11.0,
        )
        layout.add_text(
            102 + 170 * x, 44, name, colour=colour, weight="bold", ha="right" if x == 0 else "left"
        )


def _draw_gains(
    layout: FigureLayout,
    axes: Axes,
    validation: ValidationResult,
    pairs: Sequence[tuple[str, float, float]],
) -> None:
    palette, gain = layout.palette, validation.gain
    gains = [100.0 * (1.0 - after / before) if before else math.nan for _, before, after in pairs]
    ends = [value for value in (*gains, gain.low, gain.high, 0.0) if math.isfinite(value)]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(len(pairs) + 1.2, -0.6)
    axes.set_yticks(
        range(len(pairs)) if len(pairs) <= 12 else [],
        [seed for seed, _, _ in pairs] if len(pairs) <= 12 else [],
    )
    axes.axvline(0, color=palette.ink, linewidth=1.2)
    for row, value in enumerate(gains):
        axes.plot(
            [0, value],
            [row, row],
            color=palette.other if value > 0 else palette.bad,
            linewidth=2.0,
            solid_capstyle="butt",
        )
    draw_dots(axes, gains, range(len(gains)), colour=palette.best, size=9.0, zorder=4)
    y = len(pairs) + 0.35
    axes.plot(
        [gain.low, gain.high], [y, y], color=palette.best, linewidth=3.0, solid_capstyle="round"
    )
    draw_dots(axes, [gain.mean], [y], colour=palette.best, size=12.0, zorder=4)
    side = "right" if gain.mean > sum(axes.get_xlim()) / 2 else "left"
    text = f"mean {_format_interval(validation)}"
    layout.label_point(
        axes,
        gain.high if side == "right" else gain.low,
        y,
        text,
        colour=palette.best,
        shift=(0, -16),
        ha=side,
        weight="bold",
    )
    set_ticks(axes, x=4)
    layout.label_bottom(axes, "%")
