"""The layout of a figure, in the figure's own units from the top left, and helpers of its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptune.report.figures.theme import NORMAL_SIZE, SMALL_SIZE, WIDTH, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUS, TIMES = "\u2212", "\u00d7"
MAX_POINTS = 700  # of one layer; longer series are thinned out


class FigureLayout:
    """A matplotlib figure of width WIDTH with the colours of a palette."""

    def __init__(self, height: float, palette: Palette) -> None:
        from matplotlib.figure import Figure

        self.height, self.palette = height, palette
        self.canvas = Figure(figsize=(WIDTH / 72.0, height / 72.0), facecolor="none")

    def add_axes(self, x: float, y: float, *, width: float, height: float, grid: str = "y") -> Axes:
        """Add axes whose top left corner is at (x, y); grid is "x", "y", "both" or ""."""
        box = (x / WIDTH, 1.0 - (y + height) / self.height, width / WIDTH, height / self.height)
        axes = self.canvas.add_axes(box, facecolor="none")
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
        text: str,
        *,
        colour: str | None = None,
        size: float = SMALL_SIZE,
        **options: Any,
    ) -> None:
        """Add text whose baseline starts at (x, y)."""
        self.canvas.text(
            x / WIDTH,
            1.0 - y / self.height,
            text,
            color=colour or self.palette.ink,
            fontsize=size,
            **options,
        )

    def label_top(
        self,
        axes: Axes,
        text: str,
        *,
        colour: str | None = None,
        x: float | None = None,
        **options: Any,
    ) -> None:
        """Add a line of text above axes: the label of the vertical axis, or the panel's name.

        x is the left end in the figure's units; None means the left edge of the axes.
        """
        box = axes.get_position()
        left = box.x0 * WIDTH if x is None else x
        self.add_text(
            left,
            (1.0 - box.y1) * self.height - 9.0,
            text,
            colour=colour or self.palette.muted,
            **options,
        )

    def label_bottom(self, axes: Axes, text: str) -> None:
        """Add the label of the horizontal axis below its right end."""
        box = axes.get_position()
        self.add_text(
            box.x1 * WIDTH,
            (1.0 - box.y0) * self.height + 38.0,
            text,
            colour=self.palette.muted,
            ha="right",
        )

    def label_point(
        self,
        axes: Axes,
        x: float,
        y: float,
        text: str,
        *,
        colour: str,
        shift: tuple[float, float] = (6, 0),
        **options: Any,
    ) -> None:
        """Add a label beside a data point, with a paper-coloured margin around its letters."""
        from matplotlib.patheffects import withStroke

        options = {
            "va": "center",
            "fontsize": SMALL_SIZE,
            "annotation_clip": False,
            "zorder": 9,
        } | options
        label = axes.annotate(
            text, (x, y), xytext=shift, textcoords="offset points", color=colour, **options
        )
        label.set_gid("halo")
        # A placeholder colour gets its margin from the SVG's style, see theme.make_inline_svg.
        if not colour.startswith("#0a0b"):
            label.set_path_effects([withStroke(linewidth=4.0, foreground=self.palette.paper)])


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
    """Draw round points as one path, which takes a tenth of the bytes of markers.

    The limits of the axes must be set before.
    """
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
        "snap": False,  # snapping to pixels would make a dot empty
    }
    axes.add_patch(PathPatch(path, alpha=alpha, zorder=zorder, **style))


def draw_lines(
    axes: Axes,
    lines: Iterable[tuple[Sequence[float], Sequence[float]]],
    *,
    colour: str,
    **style: Any,
) -> None:
    """Draw many lines as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points, codes = [], []
    for x, y in lines:
        points += list(zip(x, y, strict=True))
        codes += [Path.MOVETO] + [Path.LINETO] * (len(x) - 1)
    if points:
        path = Path(points, codes)
        path.should_simplify = False
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, **style))


def thin_out(count: int, limit: int = MAX_POINTS) -> list[int]:
    """Select at most `limit` of `count` positions, evenly spaced, both ends included."""
    if count <= limit:
        return list(range(count))
    return sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})


def format_number(value: Any, digits: int = 3) -> str:
    """Format a number briefly: 0.0015, 1e-5, 12.5, 12,000. A choice is not changed."""
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
    """Format a value with `places` decimal places; sign adds "+" to a positive value."""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def fit_text(text: str, width: float, size: float = NORMAL_SIZE) -> str:
    """Shorten a text to a width, with an ellipsis in its middle when it must be cut."""
    if measure_text(text, size) <= width:
        return text
    length = len(text)
    while length > 4 and measure_text(_cut_middle(text, length), size) > width:
        length -= 1
    return _cut_middle(text, length)


def _cut_middle(text: str, length: int) -> str:
    return f"{text[: math.ceil(length / 2)]}…{text[len(text) - length // 2 :]}"


def measure_text(text: str, size: float = NORMAL_SIZE) -> float:
    """Measure the width of a text in the figure's units."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(
        text, FontProperties(family="DejaVu Sans", size=size), ismath=False
    )[0]


def spread_apart(positions: Sequence[float], distance: float) -> list[float]:
    """Move positions as little as needed to be at least `distance` apart, keeping their order."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[tuple[list[int], float]] = []  # members and the position of the first
    for member in order:
        members, first = [member], positions[member]
        while groups and first < groups[-1][1] + distance * len(groups[-1][0]):
            before, _ = groups.pop()
            members = before + members
            first = sum(
                positions[member] - distance * index for index, member in enumerate(members)
            ) / len(members)
        groups.append((members, first))
    moved = [0.0] * len(positions)
    for members, first in groups:
        for index, member in enumerate(members):
            moved[member] = first + distance * index
    return moved


def find_limits(
    values: Iterable[float],
    *,
    upper: float = 0.95,
    include: Iterable[float] = (),
    pad: float = 0.06,
) -> tuple[float, float]:
    """Find axis limits that show the lowest value and most of the others.

    Args:
        values: the data; values that are not finite are ignored.
        upper: quantile of the values that the upper limit reaches.
        include: further values that must be visible.
        pad: margin on both sides, as a fraction of the span.

    Returns:
        The lower and the upper limit.
    """
    finite = np.asarray([value for value in values if math.isfinite(value)])
    needed = [value for value in include if math.isfinite(value)]
    ends = [*needed, *([finite.min(), np.quantile(finite, upper)] if len(finite) else [])]
    if not ends:
        return 0.0, 1.0
    low, high = float(min(ends)), float(max(ends))
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def set_ticks(
    axes: Axes, *, x: int | None = None, y: int | None = None, integer: bool = False
) -> None:
    """Set the approximate number of ticks of each axis, labelled by `format_number`.

    Args:
        axes: axes to change.
        x: ticks of the horizontal axis; None leaves them as they are.
        y: ticks of the vertical axis; None leaves them as they are.
        integer: the horizontal axis has integer ticks only.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, count in ((axes.xaxis, x), (axes.yaxis, y)):
        if count is not None:
            axis.set_major_locator(
                MaxNLocator(count, integer=integer and axis is axes.xaxis, steps=[1, 2, 2.5, 5, 10])
            )
            axis.set_major_formatter(
                FuncFormatter(lambda value, _: format_number(float(f"{value:.6g}"), 6))
            )
