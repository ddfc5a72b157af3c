"""What the tuning brought: learning curves and the pairs of the validation, baseline against best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.results import Claim, Evidence
from synaptune.report.figures.sheet import Sheet, decimal, dots, lines, number, robust, spaced, ticks
from synaptune.report.figures.theme import NORMAL, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURES = (("test_perplexity", "test perplexity"), ("val_loss", "validation loss [nats/token]"))
_EARLY = 0.12  # of the steps may rise out of the frame


def curves(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Learning curves by seed, and how far the best is ahead at each step."""
    sides: dict[str, list[Mapping[int, float]]] = {}
    for label, curve in sorted(evidence.curves.items()):
        if curve:
            sides.setdefault(_side(label), []).append(curve)
    if not sides:
        return None
    ahead = _ahead(evidence.curves)
    sheet = Sheet(560 if ahead else 380, palette)
    top = sheet.axes(52, 34, width=WIDTH - 52 - 128, height=290)
    steps = sorted({step for several in sides.values() for curve in several for step in curve})
    late = [
        curve[step] for several in sides.values() for curve in several for step in curve if step >= steps[int(_EARLY * (len(steps) - 1))]
    ]
    top.set_xlim(0, steps[-1] or 1)
    top.set_ylim(*robust(late, upper=1.0, pad=0.04))
    colours = {"baseline": palette.baseline, "best": palette.best}
    for side, several in sides.items():
        _curves(top, several, colours.get(side, palette.muted))
    _name_ends(sheet, top, sides, colours)
    ticks(top, x=5, y=6, whole=True)
    sheet.head(top, "validation loss [nats/token]")
    if ahead:
        below = sheet.axes(52, 410, width=WIDTH - 52 - 128, height=100)
        _draw_ahead(sheet, below, ahead, top.get_xlim())
    sheet.foot(below if ahead else top, "optimizer step")
    seeds = max(len(several) for several in sides.values())
    caption = (
        f"Learning curves of the {' and the '.join(sides)} on {seeds} {'seed' if seeds == 1 else 'seeds'} (thin) and their mean (thick)"
    )
    caption += "; below, the best's lead at equal steps, seed by seed and in the mean." if ahead else "."
    return Drawing(sheet.canvas, "Learning curves", caption)


def _side(label: str) -> str:
    return label.split(" seed ")[0]


def _ahead(found: Mapping[str, Mapping[int, float]]) -> list[dict[int, float]]:
    """Baseline minus best by step, for each seed that has both."""
    pairs = []
    for label, curve in sorted(found.items()):
        other = found.get(label.replace("best", "baseline", 1)) if label.startswith("best") else None
        common = sorted(curve.keys() & other.keys()) if other else []
        if other and len(common) > 1:
            pairs.append({step: other[step] - curve[step] for step in common})
    return pairs


def _mean(several: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over curves at the steps that all have."""
    common = set.intersection(*(set(curve) for curve in several))
    return {step: statistics.fmean(curve[step] for curve in several) for step in sorted(common)}


def _curves(axes: Axes, several: Sequence[Mapping[int, float]], colour: str) -> None:
    lines(axes, [(sorted(curve), [curve[step] for step in sorted(curve)]) for curve in several], colour=colour, linewidth=1.0, alpha=0.5)
    mean = _mean(several)
    axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2.6, zorder=4)


def _name_ends(sheet: Sheet, axes: Axes, sides: Mapping[str, Sequence[Mapping[int, float]]], colours: Mapping[str, str]) -> None:
    ends = {side: _mean(several) for side, several in sides.items()}
    last = {side: (list(mean)[-1], list(mean.values())[-1]) for side, mean in ends.items() if mean}
    low, high = axes.get_ylim()
    places = spaced([value for _, value in last.values()], (high - low) * 0.065)
    for (side, (step, value)), y in zip(last.items(), places, strict=True):
        colour = colours.get(side, sheet.palette.muted)
        sheet.mark(axes, step, y, f"{side} {value:.3f}", colour=colour, weight="bold")


def _draw_ahead(sheet: Sheet, axes: Axes, ahead: Sequence[Mapping[int, float]], limits: tuple[float, float]) -> None:
    palette = sheet.palette
    first = limits[0] + _EARLY * (limits[1] - limits[0])
    axes.set_xlim(limits)
    axes.set_ylim(*robust([value for pair in ahead for step, value in pair.items() if step >= first], upper=1.0, must=[0.0], pad=0.1))
    axes.axhline(0, color=palette.ink, linewidth=1.0)
    _curves(axes, ahead, palette.best)
    ticks(axes, x=5, y=3, whole=True)
    sheet.head(axes, "lead of the best [nats/token]", colour=palette.best)
    mean = _mean(ahead)
    if mean:
        sheet.mark(axes, list(mean)[-1], list(mean.values())[-1], decimal(list(mean.values())[-1], 3, sign=True), colour=palette.best)


def seeds(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Each validation seed from baseline to best, and the gains with their interval."""
    claim = evidence.claim
    found = None if claim is None else _pairs(claim)
    if claim is None or found is None:
        return None
    measure, pairs = found
    sheet = Sheet(330, palette)
    left = sheet.axes(102, 52, width=170, height=232, grid="")
    _slopes(sheet, left, pairs)
    sheet.text(4, 20, measure, colour=palette.muted)
    right = sheet.axes(408, 52, width=WIDTH - 408 - 14, height=232, grid="x")
    sheet.text(408, 20, "gain on each seed", colour=palette.muted)
    _gains(sheet, right, claim, pairs)
    better = sum(after < before for _, before, after in pairs)
    caption = (
        f"The validation: {len(pairs)} fresh seeds, each trained at the start values and at the best; {better} of {len(pairs)} improve. "
        f"Mean gain in test perplexity {_interval(claim, '%, 95 % interval')}."
    )
    return Drawing(sheet.canvas, "Validation, seed by seed", caption)


def _interval(claim: Claim, words: str = "") -> str:
    mean, low, high = (decimal(value, 1) for value in claim.gain[1:4])
    return f"{mean} {words}{' ' if words else '('}{low} to {high}{'' if words else ')'}"


def _pairs(claim: Claim) -> tuple[str, list[tuple[str, float, float]]] | None:
    """What is compared, and (seed, before, after) of each pair."""
    for fact, words in _MEASURES:
        rows = [
            (str(old.facts.get("seed", at)), old.facts[fact], new.facts[fact])
            for at, (old, new) in enumerate(zip(claim.before, claim.after, strict=False))
            if fact in old.facts and fact in new.facts
        ]
        if rows:
            return words, rows
    return None


def _slopes(sheet: Sheet, axes: Axes, pairs: Sequence[tuple[str, float, float]]) -> None:
    palette = sheet.palette
    values = [value for _, before, after in pairs for value in (before, after)]
    axes.set_xlim(0, 1)
    axes.set_ylim(*robust(values, upper=1.0, pad=0.06))
    axes.set_axis_off()
    for x in (0, 1):
        axes.axvline(x, color=palette.grid, linewidth=1.2)
    for _, before, after in pairs:
        axes.plot([0, 1], [before, after], color=palette.other if after < before else palette.bad, linewidth=1.6, clip_on=False)
    for x, colour, name in ((0, palette.baseline, "baseline"), (1, palette.best, "best")):
        column = [(before, after)[x] for _, before, after in pairs]
        style = {"color": colour, "linestyle": "none", "marker": "o", "markersize": 8.0, "markeredgewidth": 0.0, "clip_on": False}
        axes.plot([x] * len(pairs), column, zorder=5, **style)
        shift, side = (-12, "right") if x == 0 else (12, "left")
        words = number(statistics.fmean(column), 4)
        sheet.mark(axes, x, statistics.fmean(column), words, colour=colour, shift=(shift, 8), ha=side, weight="bold", fontsize=NORMAL)
        spread = f"{number(min(column), 3)} to {number(max(column), 3)}"
        sheet.mark(axes, x, statistics.fmean(column), spread, colour=palette.muted, shift=(shift, -9), ha=side, fontsize=11.0)
        sheet.text(102 + 170 * x, 44, name, colour=colour, weight="bold", ha="right" if x == 0 else "left")


def _gains(sheet: Sheet, axes: Axes, claim: Claim, pairs: Sequence[tuple[str, float, float]]) -> None:
    palette, gain = sheet.palette, claim.gain
    each = [100.0 * (1.0 - after / before) if before else math.nan for _, before, after in pairs]
    ends = [value for value in (*each, gain.low, gain.high, 0.0) if math.isfinite(value)]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(len(pairs) + 1.2, -0.6)
    axes.set_yticks(range(len(pairs)) if len(pairs) <= 12 else [], [seed for seed, _, _ in pairs] if len(pairs) <= 12 else [])
    axes.axvline(0, color=palette.ink, linewidth=1.2)
    for at, value in enumerate(each):
        axes.plot([0, value], [at, at], color=palette.other if value > 0 else palette.bad, linewidth=2.0, solid_capstyle="butt")
    dots(axes, each, range(len(each)), colour=palette.best, size=9.0, zorder=4)
    y = len(pairs) + 0.35
    axes.plot([gain.low, gain.high], [y, y], color=palette.best, linewidth=3.0, solid_capstyle="round")
    dots(axes, [gain.mean], [y], colour=palette.best, size=12.0, zorder=4)
    side = "right" if gain.mean > sum(axes.get_xlim()) / 2 else "left"
    words = f"mean {_interval(claim)}"
    sheet.mark(axes, gain.high if side == "right" else gain.low, y, words, colour=palette.best, shift=(0, -16), ha=side, weight="bold")
    ticks(axes, x=4)
    sheet.foot(axes, "%")
