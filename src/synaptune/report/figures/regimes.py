"""Figure of the regimes: the gain of each variant over the first one of its regime."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from synaptune.analysis.regimes import Gain, Regime
from synaptune.report.figures.layout import FigureLayout, draw_dots, measure_text, set_ticks
from synaptune.report.figures.theme import SMALL_SIZE, Drawing, Palette

_ROW, _HEAD, _FOOT = 26.0, 40.0, 40.0  # heights of a row, of a title and of the ticks
_LINE, _GAP = 13.0, 26.0  # height of a line of a label, space around a label
_SHARE = 0.5  # of the widest interval that is drawn over the span of the means


def draw_regimes(regimes: Sequence[Regime], palette: Palette) -> Drawing | None:
    """Draw one panel for each regime: mean gain and 95 % interval of its variants."""
    gains = [
        (regime, {variant.name: variant.gain for variant in regime.variants if variant.gain})
        for regime in regimes
    ]
    gains = [(regime, rows) for regime, rows in gains if rows]
    if not gains:
        return None
    heights = [_HEAD + _ROW * len(rows) + _FOOT for _, rows in gains]
    layout = FigureLayout(sum(heights), palette)
    labels = [label for _, rows in gains for label in rows]
    space = min(max(measure_text(label, SMALL_SIZE) for label in labels), 0.5 * layout.width)
    top = 0.0
    for (regime, rows), height in zip(gains, heights, strict=True):
        title = regime.name if regime.equal == "steps" else f"{regime.name}, equal {regime.equal}"
        layout.add_text(8, top + 24, title, weight="bold")
        against = f"gain over {regime.variants[0].name}, %"
        layout.add_text(layout.width - 16, top + 24, against, colour=palette.muted, ha="right")
        _draw_panel(layout, rows, space, top + _HEAD)
        top += height
    return Drawing(
        layout.canvas, "Regimes", "Mean gains and 95 % intervals; right of zero is better."
    )


def _draw_panel(layout: FigureLayout, rows: Mapping[str, Gain], space: float, top: float) -> None:
    left = space + _GAP
    palette, ends = layout.palette, [0.0, *(gain.mean for gain in rows.values())]
    span = max(max(ends) - min(ends), 1.0)
    lowest = min(0.0, *(gain.low for gain in rows.values()))
    highest = max(0.0, *(gain.high for gain in rows.values()))
    axes = layout.add_axes(
        left,
        top,
        width=layout.width - 16 - left,
        height=_ROW * len(rows),
        grid="x",
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(
            max(lowest, min(ends) - _SHARE * span) - 0.04 * span,
            min(highest, max(ends) + _SHARE * span) + 0.04 * span,
        ),
    )
    axes.yaxis.set_visible(False)
    axes.axvline(0, color=palette.ink, linewidth=1.2, zorder=2)
    set_ticks(axes, x=5)
    for row, (label, gain) in enumerate(rows.items()):
        is_better, is_worse = gain.low > 0, gain.high < 0
        colour = palette.best if is_better else palette.bad if is_worse else palette.other
        axes.plot(
            [gain.low, gain.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round"
        )
        draw_dots(axes, [gain.mean], [row], colour=colour, size=10.0, zorder=4)
        lines = _wrap(label, space)
        first = top + _ROW * (row + 0.5) + 4.5 - 0.5 * _LINE * (len(lines) - 1)
        for number, line in enumerate(lines):
            layout.add_text(left - 12, first + _LINE * number, line, ha="right")


def _wrap(label: str, width: float) -> list[str]:
    """Return a label in lines of about a width."""
    size = measure_text(label, SMALL_SIZE)
    return [label] if size <= width else textwrap.wrap(label, int(len(label) * width / size))
