"""Figures of the device time that a study used and of its failed trials."""

from __future__ import annotations

from synaptune.analysis.results import Evidence
from synaptune.core.text import format_duration
from synaptune.report.figures.layout import (
    FigureLayout,
    draw_dots,
    fit_text,
    measure_text,
    set_ticks,
    thin_out,
)
from synaptune.report.figures.theme import NORMAL_SIZE, WIDTH, Drawing, Palette

_FAILURE_NAMES = {
    "number": "not a number",
    "memory": "out of memory",
    "device": "device fault",
    "timeout": "took too long",
    "worker": "worker lost",
    "mistake": "mistake",
    "disk": "disk full",
    "error": "other error",
}
_MAX_DOTS = 1500


def draw_cost(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the device hours by phase, in the order of the protocol."""
    seconds_by_phase = {
        phase: seconds for phase, seconds in evidence.seconds_by_phase.items() if seconds > 0
    }
    if not seconds_by_phase:
        return None
    unit, seconds_per_unit = (
        ("hours", 3600.0) if max(seconds_by_phase.values()) >= 1800 else ("minutes", 60.0)
    )
    step = 40.0
    left = min(180.0, max(measure_text(phase, NORMAL_SIZE) for phase in seconds_by_phase) + 18)
    layout = FigureLayout(12 + step * len(seconds_by_phase) + 46, palette)
    axes = layout.add_axes(
        left, 12, width=WIDTH - left - 170, height=step * len(seconds_by_phase), grid="x"
    )
    axes.set_xlim(0, max(seconds_by_phase.values()) / seconds_per_unit * 1.02)
    axes.set_ylim(len(seconds_by_phase) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    for row, (phase, seconds) in enumerate(seconds_by_phase.items()):
        axes.barh(
            row,
            seconds / seconds_per_unit,
            height=0.56,
            color=palette.best if phase == evidence.phase else palette.other,
            linewidth=0,
        )
        runs = evidence.runs_by_phase.get(phase)
        run_count = "" if runs is None else f" · {runs:,} {'run' if runs == 1 else 'runs'}"
        layout.add_text(
            left - 12,
            12 + step * (row + 0.5) + 5,
            fit_text(phase, left - 16),
            size=NORMAL_SIZE,
            ha="right",
        )
        layout.label_point(
            axes,
            seconds / seconds_per_unit,
            row,
            format_duration(seconds) + run_count,
            colour=palette.ink,
        )
    axes.axvline(0, color=palette.muted, linewidth=1.0)
    set_ticks(axes, x=5)
    layout.label_bottom(axes, f"device {unit}")
    total = sum(seconds_by_phase.values())
    caption = f"Device time of the runs by phase, {format_duration(total)} in total"
    if evidence.started_at and evidence.ended_at:
        elapsed = (evidence.ended_at - evidence.started_at).total_seconds()
        caption += f"; {format_duration(elapsed)} of wall-clock time from the first run to the last"
    return Drawing(layout.canvas, "Cost", caption + ".")


def draw_failures(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the numbers of the failed trials, by kind of failure."""
    kinds = sorted(
        ((kind, trials) for kind, trials in evidence.failures.items() if trials),
        key=lambda entry: -len(entry[1]),
    )
    if not kinds:
        return None
    numbers_on_axis = [trial.number for trial in evidence.trials] + [
        trial.number for _, trials in kinds for trial in trials
    ]
    total = sum(len(trials) for _, trials in kinds)
    runs = max(total, len(evidence.trials), sum(evidence.runs_by_phase.values()))
    step = 40.0
    names = {kind: _FAILURE_NAMES.get(kind, kind) for kind, _ in kinds}
    left = min(180.0, max(measure_text(name, NORMAL_SIZE) for name in names.values()) + 18)
    layout = FigureLayout(12 + step * len(kinds) + 46, palette)
    axes = layout.add_axes(left, 12, width=WIDTH - left - 120, height=step * len(kinds), grid="x")
    first, last = min(numbers_on_axis), max(numbers_on_axis)
    room = max(0.5, 0.01 * (last - first))
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    for row, (kind, trials) in enumerate(kinds):
        axes.axhline(row, color=palette.grid, linewidth=1.2)
        numbers = [trials[index].number for index in thin_out(len(trials), _MAX_DOTS)]
        size = max(2.5, min(9.0, 200.0 / len(numbers)))
        draw_dots(axes, numbers, [row] * len(numbers), colour=palette.bad, size=size, alpha=0.75)
        layout.add_text(
            left - 12,
            12 + step * (row + 0.5) + 5,
            fit_text(names[kind], left - 16),
            size=NORMAL_SIZE,
            ha="right",
        )
        layout.add_text(
            WIDTH - 108,
            12 + step * (row + 0.5) + 5,
            f"{len(trials):,} ({100.0 * len(trials) / runs:.1f} %)",
        )
    set_ticks(axes, x=5, integer=True)
    layout.label_bottom(axes, "number of the trial")
    caption = (
        f"{total:,} of {runs:,} trials of the study failed: by cause, in the order of their start."
    )
    return Drawing(layout.canvas, "Failures", caption)
