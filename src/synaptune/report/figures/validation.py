"""Figures of the validation, baseline against best: learning curves and the result of each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.results import Evidence, ValidationResult
from synaptune.report.figures.layout import (
    SIDE_NAMES,
    FigureLayout,
    draw_dots,
    draw_lines,
    find_limits,
    format_decimal,
    format_number,
    set_ticks,
    spread_apart,
)
from synaptune.report.figures.theme import SMALL_SIZE, TINY_SIZE, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, float]  # loss by optimizer step
Pair = tuple[str, float, float]  # seed, and a measure before and after
_MEASURES = (("test_perplexity", "test perplexity"), ("val_loss", "validation loss [nats/token]"))
_EARLY_SHARE = 0.12  # fraction of the steps whose losses may lie above the frame


def draw_curves(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the learning curves by seed, and the lead of the best at each step."""
    curves_by_side: dict[str, list[Curve]] = {}
    for label, curve in sorted(evidence.curves.items()):
        if curve:
            curves_by_side.setdefault(label.split(" seed ")[0], []).append(curve)
    if not curves_by_side:
        return None
    leads = _compute_leads(evidence.curves)
    layout = FigureLayout(560 if leads else 380, palette)
    size = TINY_SIZE if palette.is_narrow else SMALL_SIZE
    ends_width = 9.1 * size  # of the labels at the right
    axes = layout.add_axes(52, 34, width=layout.width - 52 - ends_width, height=290)
    curves = [curve for group in curves_by_side.values() for curve in group]
    steps = sorted({step for curve in curves for step in curve})
    early = steps[int(_EARLY_SHARE * (len(steps) - 1))]
    late = [curve[step] for curve in curves for step in curve if step >= early]
    axes.set(xlim=(0, steps[-1] or 1), ylim=find_limits(late, upper=1.0, pad=0.04))
    ends = {
        side: _draw_curve_group(axes, group, getattr(palette, side, palette.muted))
        for side, group in curves_by_side.items()
    }
    low, high = axes.get_ylim()
    ends = {side: end for side, end in ends.items() if end is not None}
    places = spread_apart([value for _, value in ends.values()], (high - low) * 0.065)
    for (side, (step, value)), y in zip(ends.items(), places, strict=True):
        colour = getattr(palette, side, palette.muted)
        style = {"weight": "bold", "fontsize": size}
        text = f"{SIDE_NAMES.get(side, side)} {value:.3f}"
        layout.label_point(axes, step, y, text, colour=colour, **style)
    set_ticks(axes, x=5, y=6, integer=True)
    layout.label_top(axes, "validation loss [nats/token]")
    below = ""
    if leads:
        below = "; below, the lead of the best at equal steps, for each seed and in the mean"
        axes = layout.add_axes(
            52, 410, width=layout.width - 52 - ends_width, height=100, xlim=axes.get_xlim()
        )
        _draw_leads(layout, axes, leads)
    layout.label_bottom(axes, "optimizer step")
    seeds = max(map(len, curves_by_side.values()))
    sides = [SIDE_NAMES.get(side, side) for side in curves_by_side]
    return Drawing(
        layout.canvas,
        "Learning curves",
        f"Learning curves of the {' and the '.join(sides)} on {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'} (thin) and their mean (thick){below}.",
    )


def _compute_leads(curves: Mapping[str, Curve]) -> list[Curve]:
    """Subtract best from baseline by step, for each seed that has both."""
    leads = []
    for label, curve in sorted(curves.items()):
        baseline = curves.get(label.replace("best", "baseline", 1), {})
        common = sorted(curve.keys() & baseline.keys())
        if label.startswith("best") and len(common) > 1:
            leads.append({step: baseline[step] - curve[step] for step in common})
    return leads


def _draw_curve_group(axes: Axes, curves: Sequence[Curve], colour: str) -> tuple[int, float] | None:
    """Draw curves and their mean over the steps that all of them have.

    Returns:
        The last step and value of the mean; None when the curves have no step in common.
    """
    lines = [(sorted(curve), [curve[step] for step in sorted(curve)]) for curve in curves]
    draw_lines(axes, lines, colour=colour, linewidth=1.0, alpha=0.5)
    steps = sorted(set.intersection(*map(set, curves)))
    mean = [statistics.fmean(curve[step] for curve in curves) for step in steps]
    axes.plot(steps, mean, color=colour, linewidth=2.6, zorder=4)
    return (steps[-1], mean[-1]) if steps else None


def _draw_leads(layout: FigureLayout, axes: Axes, leads: Sequence[Curve]) -> None:
    colour, (start, end) = layout.palette.best, axes.get_xlim()
    first = start + _EARLY_SHARE * (end - start)
    late = [value for lead in leads for step, value in lead.items() if step >= first]
    axes.set_ylim(*find_limits(late, upper=1.0, include=[0.0], pad=0.1))
    axes.axhline(0, color=layout.palette.ink, linewidth=1.0)
    last = _draw_curve_group(axes, leads, colour)
    set_ticks(axes, x=5, y=3, integer=True)
    layout.label_top(axes, "lead of the best [nats/token]", colour=colour)
    if last:
        layout.label_point(axes, *last, format_decimal(last[1], 3, sign=True), colour=colour)


def draw_seeds(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw each validation seed from baseline to best, and the gains with their interval."""
    validation = evidence.validation
    if validation is None:
        return None
    measure, pairs = _list_pairs(validation)
    if not pairs:
        return None
    layout = FigureLayout(630 if palette.is_narrow else 330, palette)
    _draw_slopes(layout, measure, pairs)
    _draw_gains(layout, validation, pairs)
    better = sum(after < before for _, before, after in pairs)
    mean, low, high = (format_decimal(value, 1) for value in validation.gain[1:4])
    return Drawing(
        layout.canvas,
        "Validation, seed by seed",
        f"Validation on {len(pairs)} fresh seeds, each trained at the start values and at the best "
        f"values; {better} of {len(pairs)} improve. "
        f"Mean gain in test perplexity {mean} %, 95 % interval {low} to {high}.",
    )


def _list_pairs(validation: ValidationResult) -> tuple[str, list[Pair]]:
    """Return the name of the first known measure, and its pairs."""
    for fact, measure in _MEASURES:
        runs = zip(validation.before, validation.after, strict=False)
        pairs = [
            (str(old.facts.get("seed", index)), old.facts[fact], new.facts[fact])
            for index, (old, new) in enumerate(runs)
            if fact in old.facts and fact in new.facts
        ]
        if pairs:
            return measure, pairs
    return "", []


def _draw_slopes(layout: FigureLayout, measure: str, pairs: Sequence[Pair]) -> None:
    palette, left, width = layout.palette, 66, 190
    layout.add_text(4, 20, measure, colour=palette.muted)
    _, *sides = zip(*pairs, strict=True)
    limits = find_limits([*sides[0], *sides[1]], upper=1.0, pad=0.06)
    axes = layout.add_axes(left, 60, width=width, height=224, xlim=(0, 1), ylim=limits)
    axes.set_xticks([])
    set_ticks(axes, y=5)
    for _, before, after in pairs:
        colour = palette.other if after < before else palette.bad
        axes.plot([0, 1], [before, after], color=colour, linewidth=1.6, clip_on=False)
    for x, name in ((0, "baseline"), (1, "best")):
        colour, values = getattr(palette, name), sides[x]
        draw_dots(axes, [x] * len(pairs), values, colour=colour, size=8.0, zorder=5, clip_on=False)
        shown = SIDE_NAMES[name]
        mean = f"{shown} {format_number(statistics.fmean(values), 4)}"
        place, side = left + x * width, "center" if x else "left"
        layout.add_text(place - 8 * (1 - x), 46, mean, colour=colour, weight="bold", ha=side)


def _draw_gains(layout: FigureLayout, validation: ValidationResult, pairs: Sequence[Pair]) -> None:
    palette, gain, count = layout.palette, validation.gain, len(pairs)
    gains = [100.0 * (1.0 - after / before) if before else math.nan for _, before, after in pairs]
    limits = find_limits([*gains, gain.low, gain.high, 0.0], upper=1.0, pad=0.08)
    left, top = (60, 320) if palette.is_narrow else (430, 0)
    width = layout.width - left - 16
    axes = layout.add_axes(left, top + 60, width=width, height=224, grid="x", xlim=limits)
    axes.set_ylim(count + 1.0, -0.6)
    shown = list(range(count)) if count <= 12 else []
    axes.set_yticks([*shown, count + 0.35], [*(pairs[row][0] for row in shown), "mean"])
    axes.axvline(0, color=palette.ink, linewidth=1.2)
    for row, value in enumerate(gains):
        colour = palette.other if value > 0 else palette.bad
        axes.plot([0, value], [row, row], color=colour, linewidth=2.0, solid_capstyle="butt")
    colour, y = palette.best, count + 0.35
    draw_dots(axes, gains, range(count), colour=colour, size=9.0, zorder=4)
    axes.plot([gain.low, gain.high], [y, y], color=colour, linewidth=3.0, solid_capstyle="round")
    draw_dots(axes, [gain.mean], [y], colour=colour, size=12.0, zorder=4)
    mean, low, high = (format_decimal(value, 1) for value in gain[1:4])
    x = 4 if palette.is_narrow else left - 50
    layout.add_text(x, top + 20, "gain on each seed [%]", colour=palette.muted)
    text = f"mean {mean} ({low} to {high})"
    layout.add_text(left, top + 46, text, colour=colour, weight="bold")
    set_ticks(axes, x=5)
