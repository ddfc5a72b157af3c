"""The convergence of several studies in one figure."""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.analysis.results import Course, Evidence
from synaptune.report.figures.sheet import Sheet, fitted, robust, spaced, thinned, ticks
from synaptune.report.figures.theme import Drawing, Figure, Palette, rendered
from synaptune.report.tables import objective

_HEIGHT, _LEFT, _TOP, _WIDTH, _TALL = 340.0, 56.0, 34.0, 440.0, 240.0
_DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))
_CAPTION = (
    "Best objective so far, by evaluations that have ended. One seed, chosen as the best of many: it overstates each study's gain alike. "
    "Heights compare only where the objective and the data are the same."
)


def overlaid(several: Sequence[Evidence]) -> Figure | None:
    """The figure; null when no study has a complete trial."""
    shown = [(study, study.course) for study in several if study.course is not None and any(loss is not None for loss in study.course.best)]
    return rendered(lambda palette: _drawn(shown, palette), "convergences") if shown else None


def _drawn(shown: Sequence[tuple[Evidence, Course]], palette: Palette) -> Drawing:
    sheet = Sheet(_HEIGHT, palette)
    axes = sheet.axes(_LEFT, _TOP, width=_WIDTH, height=_TALL)
    colours = (palette.best, palette.baseline, palette.accent, palette.bad, palette.muted)
    lines: list[tuple[str, str, list[float], list[float]]] = []
    for at, (study, course) in enumerate(shown):
        known = [(count, objective(study, loss)) for count, loss in zip(course.evaluation, course.best, strict=True) if loss is not None]
        kept = [known[index] for index in thinned(len(known))]
        x, y = [float(count) for count, _ in kept], [best for _, best in kept]
        colour, dash = colours[at % len(colours)], _DASHES[at // len(colours) % len(_DASHES)]
        axes.plot(x, y, drawstyle="steps-post", color=colour, linestyle=dash, linewidth=2.0, zorder=4)
        if len(x) == 1:
            axes.plot(x, y, marker="o", color=colour, markersize=5.0, zorder=5)
        lines.append((study.name, colour, x, y))
    first = min(x[0] for *_, x, _ in lines)
    last = max(x[-1] for *_, x, _ in lines)
    axes.set_xlim(first - 0.02 * (last - first) - 0.5, last)
    ends = [y[-1] for *_, y in lines]
    low, high = robust([best for *_, y in lines for best in y], upper=1.0, must=ends)
    axes.set_ylim(low, high)
    for (_, colour, x, _), end in zip(lines, ends, strict=True):  # leads the eye from the end of a shorter search to its label
        axes.plot([x[-1], last], [end, end], color=colour, linestyle=(0, (1, 3)), linewidth=1.0, zorder=3)
    places = spaced(ends, (high - low) * 17.0 / _TALL)
    for (name, colour, _, _), place in zip(lines, places, strict=True):
        sheet.mark(axes, last, place, fitted(name, 130.0), colour=colour, shift=(8, 0))
    ticks(axes, x=5, y=5, whole=True)
    sheet.head(axes, "best objective so far", x=0.0)
    sheet.foot(axes, "evaluations")
    return Drawing(sheet.canvas, "Convergence", _CAPTION)
