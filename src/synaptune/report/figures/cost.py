"""What the study spent, and what went wrong in it."""

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
    """Device hours by phase, in the order of the protocol."""
    spent = {phase: seconds for phase, seconds in evidence.seconds_by_phase.items() if seconds > 0}
    if not spent:
        return None
    unit, per = ("hours", 3600.0) if max(spent.values()) >= 1800 else ("minutes", 60.0)
    step = 40.0
    left = min(180.0, max(measure_text(phase, NORMAL_SIZE) for phase in spent) + 18)
    sheet = FigureLayout(12 + step * len(spent) + 46, palette)
    axes = sheet.add_axes(left, 12, width=WIDTH - left - 170, height=step * len(spent), grid="x")
    axes.set_xlim(0, max(spent.values()) / per * 1.02)
    axes.set_ylim(len(spent) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    for at, (phase, seconds) in enumerate(spent.items()):
        axes.barh(
            at,
            seconds / per,
            height=0.56,
            color=palette.best if phase == evidence.phase else palette.other,
            linewidth=0,
        )
        runs = evidence.runs_by_phase.get(phase)
        counted = "" if runs is None else f" · {runs:,} {'run' if runs == 1 else 'runs'}"
        sheet.add_text(
            left - 12,
            12 + step * (at + 0.5) + 5,
            fit_text(phase, left - 16),
            size=NORMAL_SIZE,
            ha="right",
        )
        sheet.label_point(
            axes, seconds / per, at, format_duration(seconds) + counted, colour=palette.ink
        )
    axes.axvline(0, color=palette.muted, linewidth=1.0)
    set_ticks(axes, x=5)
    sheet.label_bottom(axes, f"device {unit}")
    total = sum(spent.values())
    caption = f"Time of the runs by phase, {format_duration(total)} on devices in all"
    if evidence.started_at and evidence.ended_at:
        clock = (evidence.ended_at - evidence.started_at).total_seconds()
        caption += f", {format_duration(clock)} by the clock from the first run to the last"
    return Drawing(sheet.canvas, "Cost", caption + ".")


def draw_failures(evidence: Evidence, palette: Palette) -> Drawing | None:
    """When trials failed, by kind."""
    kinds = sorted(
        ((kind, trials) for kind, trials in evidence.failures.items() if trials),
        key=lambda entry: -len(entry[1]),
    )
    if not kinds:
        return None
    known = [trial.number for trial in evidence.trials] + [
        trial.number for _, trials in kinds for trial in trials
    ]
    total = sum(len(trials) for _, trials in kinds)
    runs = max(total, len(evidence.trials), sum(evidence.runs_by_phase.values()))
    step = 40.0
    names = {kind: _FAILURE_NAMES.get(kind, kind) for kind, _ in kinds}
    left = min(180.0, max(measure_text(words, NORMAL_SIZE) for words in names.values()) + 18)
    sheet = FigureLayout(12 + step * len(kinds) + 46, palette)
    axes = sheet.add_axes(left, 12, width=WIDTH - left - 120, height=step * len(kinds), grid="x")
    first, last = min(known), max(known)
    room = max(0.5, 0.01 * (last - first))
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    for at, (kind, trials) in enumerate(kinds):
        axes.axhline(at, color=palette.grid, linewidth=1.2)
        numbers = [trials[index].number for index in thin_out(len(trials), _MAX_DOTS)]
        size = max(2.5, min(9.0, 200.0 / len(numbers)))
        draw_dots(axes, numbers, [at] * len(numbers), colour=palette.bad, size=size, alpha=0.75)
        sheet.add_text(
            left - 12,
            12 + step * (at + 0.5) + 5,
            fit_text(names[kind], left - 16),
            size=NORMAL_SIZE,
            ha="right",
        )
        sheet.add_text(
            WIDTH - 108,
            12 + step * (at + 0.5) + 5,
            f"{len(trials):,} ({100.0 * len(trials) / runs:.1f} %)",
        )
    set_ticks(axes, x=5, whole=True)
    sheet.label_bottom(axes, "number of the trial")
    caption = (
        f"{total:,} of {runs:,} trials of the study failed, by cause and in the order they began."
    )
    return Drawing(sheet.canvas, "Failures", caption)
