"""The figure of the regimes: the gain of each variant over the first one of its regime."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synaptune.report.figures.layout import FigureLayout, draw_dots, measure_text, set_ticks
from synaptune.report.figures.theme import (
    SMALL_SIZE,
    Drawing,
    Palette,
    make_figure,
    make_svg_file,
)
from synaptune.study.artifacts import write_text

_ROW, _HEAD, _FOOT = 26.0, 40.0, 40.0  # heights of a row, of a title and of the ticks
_SHARE = 0.5  # of the widest interval that is drawn over the span of the means


def write_figure(folder: Path) -> Path | None:
    """Draw the regimes whose tables are in a folder, as regimes.svg; None without one."""
    records = {
        path.stem.removesuffix("-equal-steps"): json.loads(path.read_text())
        for path in sorted(folder.glob("*-equal-steps.json"))
    }
    shown = {
        name: record
        for name, record in records.items()
        if any(entry["gain"] for entry in record["variants"].values())
    }
    figure = make_figure(functools.partial(draw_regimes, shown), "regimes") if shown else None
    if figure is None:
        return None
    write_text(folder / "regimes.svg", make_svg_file(figure))
    return folder / "regimes.svg"


def draw_regimes(records: Mapping[str, Mapping[str, Any]], palette: Palette) -> Drawing:
    """Draw one panel for each regime: mean gain and 95 % interval of its variants."""
    gains = {
        name: {label: entry["gain"] for label, entry in record["variants"].items() if entry["gain"]}
        for name, record in records.items()
    }
    heights = [_HEAD + _ROW * len(rows) + _FOOT for rows in gains.values()]
    layout = FigureLayout(sum(heights), palette)
    labels = [label for rows in gains.values() for label in rows]
    left = min(max(measure_text(label, SMALL_SIZE) for label in labels), 0.5 * layout.width) + 26.0
    top = 0.0
    for (name, rows), height in zip(gains.items(), heights, strict=True):
        reference = next(iter(records[name]["variants"]))
        layout.add_text(8, top + 24, name, weight="bold")
        against = f"gain over {reference}, %"
        layout.add_text(layout.width - 16, top + 24, against, colour=palette.muted, ha="right")
        _draw_panel(layout, rows, left, top + _HEAD)
        top += height
    return Drawing(
        layout.canvas, "Regimes", "Mean gains and 95 % intervals; right of zero is better."
    )


def _draw_panel(
    layout: FigureLayout, rows: Mapping[str, tuple[float, float, float]], left: float, top: float
) -> None:
    palette, ends = layout.palette, [0.0, *(gain[0] for gain in rows.values())]
    span = max(max(ends) - min(ends), 1.0)
    lows, highs = ([0.0, *(gain[index] for gain in rows.values())] for index in (1, 2))
    axes = layout.add_axes(
        left,
        top,
        width=layout.width - 16 - left,
        height=_ROW * len(rows),
        grid="x",
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(
            max(min(lows), min(ends) - _SHARE * span) - 0.04 * span,
            min(max(highs), max(ends) + _SHARE * span) + 0.04 * span,
        ),
    )
    axes.yaxis.set_visible(False)
    axes.axvline(0, color=palette.ink, linewidth=1.2, zorder=2)
    set_ticks(axes, x=5)
    for row, (label, (mean, low, high)) in enumerate(rows.items()):
        colour = palette.best if low > 0 else palette.bad if high < 0 else palette.other
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        draw_dots(axes, [mean], [row], colour=colour, size=10.0, zorder=4)
        y = top + _ROW * (row + 0.5) + 4.5
        layout.add_text(left - 12, y, label, ha="right")
