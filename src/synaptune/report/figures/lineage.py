"""Figure of population-based training: which member continued which, slice by slice."""

from __future__ import annotations

import numpy as np

from synaptune.analysis.results import Evidence
from synaptune.report.figures.layout import (
    DASHED,
    FigureLayout,
    draw_dots,
    draw_lines,
    find_limits,
    set_ticks,
)
from synaptune.report.figures.theme import Drawing, Palette
from synaptune.search.trial import PARENT, SLICE, SLICES, Trial, find_best


def draw_lineage(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the objective of each member after each slice, above the best of that slice."""
    trials = {
        trial.number: trial
        for trial in evidence.trials
        if SLICE in trial.facts and trial.objective is not None
    }
    best = find_best(trials.values(), evidence.maximize)
    if best is None:
        return None
    above = _measure_above_best(trials, maximize=evidence.maximize)
    slices = int(best.facts[SLICES])
    layout = FigureLayout(380, palette)
    limits = find_limits(above.values(), upper=0.95, include=[0.0])
    axes = layout.add_axes(
        56, 34, width=layout.width - 80, height=290, xlim=(0.8, slices + 0.2), ylim=limits
    )
    layout.label_top(axes, f"{evidence.label} above the best of its slice", shift=52)
    edges = [
        (trials[trial.facts[PARENT]], trial) for trial in trials.values() if _has_parent(trial)
    ]
    copies = {child.number for parent, child in edges if _is_copy(parent, child)}
    ancestors = _list_ancestors(best, trials)
    for is_best in (False, True):
        colour = palette.best if is_best else palette.other
        width, level = (2.4, 4.0) if is_best else (1.2, 3.0)
        for is_copy in (False, True):
            lines = [
                ((_get_end(parent), _get_end(child)), (above[parent.number], above[child.number]))
                for parent, child in edges
                if (child.number in ancestors, child.number in copies) == (is_best, is_copy)
            ]
            style = {"linestyle": DASHED} if is_copy else {}
            draw_lines(axes, lines, colour=colour, linewidth=width, zorder=level, **style)
    for numbers, colour, size in (
        (trials.keys() - ancestors, palette.muted, 5.0),
        (ancestors, palette.best, 8.0),
    ):
        ends = [_get_end(trials[number]) for number in numbers]
        draw_dots(
            axes, ends, [above[number] for number in numbers], colour=colour, size=size, zorder=5
        )
    set_ticks(axes, x=slices, y=5, integer=True)
    layout.label_bottom(axes, "slice")
    hidden = int(np.sum(np.array(list(above.values())) > limits[1]))
    outside = f"; {hidden} lie above the frame" if hidden else ""
    return Drawing(
        layout.canvas,
        "Lineage of the population",
        f"{len(trials):,} trials, each one slice of a member's training, connected with the trial"
        f" that it continues. {len(copies)} of them continue a copy of a better member with changed"
        " parameters (dashed). Blue: the best member of the latest slice and its"
        f" ancestors{outside}.",
    )


def _measure_above_best(trials: dict[int, Trial], *, maximize: bool) -> dict[int, float]:
    """Return the distance of each objective from the best of its slice, at least 0."""
    sign = -1.0 if maximize else 1.0
    losses = {number: sign * (trial.objective or 0.0) for number, trial in trials.items()}
    lowest: dict[int, float] = {}
    for number, trial in trials.items():
        part = trial.facts[SLICE]
        lowest[part] = min(losses[number], lowest.get(part, losses[number]))
    return {number: losses[number] - lowest[trial.facts[SLICE]] for number, trial in trials.items()}


def _get_end(trial: Trial) -> int:
    """Return the number of slices that a member has trained after a trial."""
    return int(trial.facts[SLICE]) + 1


def _has_parent(trial: Trial) -> bool:
    return trial.facts[PARENT] is not None


def _is_copy(parent: Trial, child: Trial) -> bool:
    """Return whether a trial has other parameters than the one that it continues."""
    return parent.unit != child.unit


def _list_ancestors(trial: Trial, trials: dict[int, Trial]) -> set[int]:
    """Return the numbers of a trial and of those that it continues, directly or not."""
    numbers = {trial.number}
    while _has_parent(trial):
        trial = trials[trial.facts[PARENT]]
        numbers.add(trial.number)
    return numbers
