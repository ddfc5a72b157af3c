"""A sheet to draw on, measured in the figure's own units from the top left, and what its axes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptune.report.figures.theme import NORMAL_SIZE, SMALL_SIZE, WIDTH, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUS, TIMES = "\u2212", "\u00d7"
MAX_POINTS = 700  # of one layer; more are thinned


class FigureLayout:
    """A figure WIDTH wide; colours are those of its palette."""

    def __init__(self, height: float, palette: Palette) -> None:
        from matplotlib.figure import Figure

        self.height, self.palette = height, palette
        self.canvas = Figure(figsize=(WIDTH / 72.0, height / 72.0), facecolor="none")

    def add_axes(self, x: float, y: float, *, width: float, height: float, grid: str = "y") -> Axes:
        """Axes whose top left corner is at (x, y); grid: x, y, both or nothing."""
        place = (x / WIDTH, 1.0 - (y + height) / self.height, width / WIDTH, height / self.height)
        axes = self.canvas.add_axes(place, facecolor="none")
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom" and grid == "y")
            spine.set_color(self.palette.muted)
        axes.tick_params(colors=self.palette.muted, labelsize=SMALL_SIZE, which="both")
        if grid:
            axes.grid(axis=grid, color=self.palette.grid, linewidth=1.0)  # type: ignore[arg-type]
        return axes

    def add_text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str | None = None,
        size: float = SMALL_SIZE,
        **options: Any,
    ) -> None:
        """Text whose baseline begins at (x, y)."""
        self.canvas.text(
            x / WIDTH,
            1.0 - y / self.height,
            words,
            color=colour or self.palette.ink,
            fontsize=size,
            **options,
        )

    def label_top(
        self,
        axes: Axes,
        words: str,
        *,
        colour: str | None = None,
        x: float | None = None,
        **options: Any,
    ) -> None:
        """A line of text above axes: what their vertical axis measures, or the panel's name; x: on the sheet."""
        box = axes.get_position()
        left = box.x0 * WIDTH if x is None else x
        self.add_text(
            left,
            (1.0 - box.y1) * self.height - 9.0,
            words,
            colour=colour or self.palette.muted,
            **options,
        )

    def label_bottom(self, axes: Axes, words: str) -> None:
        """What the horizontal axis measures, below its right end."""
        box = axes.get_position()
        self.add_text(
            box.x1 * WIDTH,
            (1.0 - box.y0) * self.height + 38.0,
            words,
            colour=self.palette.muted,
            ha="right",
        )

    def label_point(
        self,
        axes: Axes,
        x: float,
        y: float,
        words: str,
        *,
        colour: str,
        shift: tuple[float, float] = (6, 0),
        **options: Any,
    ) -> None:
        """A label beside a point of the data, with a margin of paper around its letters."""
        from matplotlib.patheffects import withStroke

        options = {
            "va": "center",
            "fontsize": SMALL_SIZE,
            "annotation_clip": False,
            "zorder": 9,
        } | options
        text = axes.annotate(
            words, (x, y), xytext=shift, textcoords="offset points", color=colour, **options
        )
        text.set_gid("halo")
        if not colour.startswith("#0a0b"):
            text.set_path_effects([withStroke(linewidth=4.0, foreground=self.palette.paper)])


def draw_dots(
    axes: Axes,
    x: Any,
    y: Any,
    *,
    colour: str,
    size: float = 5.0,
    alpha: float = 1.0,
    zorder: float = 3.0,
) -> None:
    """Round points as one path, a tenth of the size of a marker each; call it when the limits of the axes are set."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(x):
        return
    left, right = axes.get_xlim()
    ends = np.stack([np.stack([x, y], 1), np.stack([x + (right - left) * 1e-5, y], 1)], 1).reshape(
        -1, 2
    )
    path = Path(ends, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    style = {
        "facecolor": "none",
        "edgecolor": colour,
        "linewidth": size,
        "capstyle": "round",
        "snap": False,
    }  # snapped, a dot would be nothing
    axes.add_patch(PathPatch(path, alpha=alpha, zorder=zorder, **style))


def draw_lines(
    axes: Axes,
    several: Iterable[tuple[Sequence[float], Sequence[float]]],
    *,
    colour: str,
    **style: Any,
) -> None:
    """Many lines as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points, codes = [], []
    for x, y in several:
        points += list(zip(x, y, strict=True))
        codes += [Path.MOVETO] + [Path.LINETO] * (len(x) - 1)
    if points:
        path = Path(points, codes)
        path.should_simplify = False
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, **style))


def thin_out(count: int, limit: int = MAX_POINTS) -> list[int]:
    """At most `limit` of `count` positions, evenly spaced, the ends among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(at * (count - 1) / (limit - 1)) for at in range(limit)})


def format_number(value: Any, digits: int = 3) -> str:
    """A value in few letters: 0.0015, 1e-5, 12.5, 12,000; a choice as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    head, e, tail = (
        f"{value:.{digits - 1}e}" if abs(value) < 1e-3 else f"{value:.{digits}g}"
    ).partition("e")
    text = f"{head.rstrip('0').rstrip('.')}e{int(tail)}" if e else head
    return text.replace("-", MINUS, 1) if value < 0 else text


def format_decimal(value: float, places: int, *, sign: bool = False) -> str:
    """A value with so many decimal places; sign: also of a positive one."""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def fit_text(words: str, width: float, size: float = NORMAL_SIZE) -> str:
    """Words that fit into a width, with an ellipsis in their middle when they must be cut."""
    if measure_text(words, size) <= width:
        return words
    kept = len(words)
    while kept > 4 and measure_text(_cut_middle(words, kept), size) > width:
        kept -= 1
    return _cut_middle(words, kept)


def _cut_middle(words: str, kept: int) -> str:
    return f"{words[: math.ceil(kept / 2)]}…{words[len(words) - kept // 2 :]}"


def measure_text(words: str, size: float = NORMAL_SIZE) -> float:
    """How wide words are in the figure's units."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(
        words, FontProperties(family="DejaVu Sans", size=size), ismath=False
    )[0]


def spread_apart(places: Sequence[float], least: float) -> list[float]:
    """Places moved as little as needed to lie `least` apart, in their order."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    groups: list[tuple[list[int], float]] = []  # members and the place of the first
    for at in order:
        members, first = [at], places[at]
        while groups and first < groups[-1][1] + least * len(groups[-1][0]):
            before, _ = groups.pop()
            members = before + members
            first = sum(
                places[member] - least * index for index, member in enumerate(members)
            ) / len(members)
        groups.append((members, first))
    found = [0.0] * len(places)
    for members, first in groups:
        for index, member in enumerate(members):
            found[member] = first + least * index
    return found


def find_limits(
    values: Iterable[float], *, upper: float = 0.95, must: Iterable[float] = (), pad: float = 0.06
) -> tuple[float, float]:
    """Limits that show the lowest value, most of the others, and all that must be seen."""
    known = np.asarray([value for value in values if math.isfinite(value)])
    needed = [value for value in must if math.isfinite(value)]
    ends = [*needed, *([known.min(), np.quantile(known, upper)] if len(known) else [])]
    if not ends:
        return 0.0, 1.0
    low, high = float(min(ends)), float(max(ends))
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def set_ticks(
    axes: Axes, *, x: int | None = None, y: int | None = None, whole: bool = False
) -> None:
    """About so many ticks on each axis, labelled by `number`; whole: x has integers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, count in ((axes.xaxis, x), (axes.yaxis, y)):
        if count is not None:
            axis.set_major_locator(
                MaxNLocator(count, integer=whole and axis is axes.xaxis, steps=[1, 2, 2.5, 5, 10])
            )
            axis.set_major_formatter(
                FuncFormatter(lambda value, _: format_number(float(f"{value:.6g}"), 6))
            )
