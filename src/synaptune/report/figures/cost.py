"""Figures of the device time that a study used and of its failed trials."""

from __future__ import annotations

from itertools import chain

from synaptune.analysis.results import Evidence
from synaptune.core.text import format_duration
from synaptune.report.figures.layout import RowLayout, draw_dots, set_ticks, thin_out
from synaptune.report.figures.theme import Drawing, Palette

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
    longest = max(seconds_by_phase.values())
    unit, seconds_per_unit = ("hours", 3600.0) if longest >= 1800 else ("minutes", 60.0)
    layout = RowLayout(seconds_by_phase, palette, top=12, step=40)
    axes = layout.add_row_axes(
        layout.left, layout.width - 170, xlim=(0, longest / seconds_per_unit * 1.02)
    )
    for row, (phase, seconds) in enumerate(seconds_by_phase.items()):
        colour = palette.best if phase == evidence.phase else palette.other
        length = seconds / seconds_per_unit
        axes.barh(row, length, height=0.56, color=colour, linewidth=0)
        runs = evidence.runs_by_phase.get(phase)
        run_count = "" if runs is None else f" · {runs:,} {'run' if runs == 1 else 'runs'}"
        layout.label_row(row, phase)
        text = format_duration(seconds) + run_count
        layout.label_point(axes, length, row, text, colour=palette.ink)
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
    numbers_by_kind = {
        _FAILURE_NAMES.get(kind, kind): [trial.number for trial in trials]
        for kind, trials in sorted(evidence.failures.items(), key=lambda entry: -len(entry[1]))
        if trials
    }
    if not numbers_by_kind:
        return None
    total = sum(map(len, numbers_by_kind.values()))
    runs = max(total, len(evidence.trials), sum(evidence.runs_by_phase.values()))
    on_axis = [trial.number for trial in (*evidence.trials, *chain(*evidence.failures.values()))]
    first, last = min(on_axis), max(on_axis)
    room = max(0.5, 0.01 * (last - first))
    layout = RowLayout(numbers_by_kind, palette, top=12, step=40)
    axes = layout.add_row_axes(
        layout.left,
        layout.width - (16 if palette.is_narrow else 120),
        xlim=(first - room, last + room),
    )
    for row, (kind, numbers) in enumerate(numbers_by_kind.items()):
        axes.axhline(row, color=palette.grid, linewidth=1.2)
        shown = [numbers[index] for index in thin_out(len(numbers), _MAX_DOTS)]
        size = max(2.5, min(9.0, 200.0 / len(shown)))
        draw_dots(axes, shown, [row] * len(shown), colour=palette.bad, size=size, alpha=0.75)
        layout.label_row(row, kind)
        share = f"{len(numbers):,} ({100.0 * len(numbers) / runs:.1f} %)"
        layout.label_row(row, share, x=layout.width - 4, ha="right")
    set_ticks(axes, x=5, integer=True)
    layout.label_bottom(axes, "number of the trial")
    return Drawing(
        layout.canvas,
        "Failures",
        f"{total:,} of {runs:,} trials of the study failed: by cause, in the order of their start.",
    )
