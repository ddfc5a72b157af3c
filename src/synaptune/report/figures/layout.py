"""The layout of a figure, in the figure's own units from the top left, and helpers of its axes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptune.core.text import format_parameter
from synaptune.report.figures.theme import NORMAL_SIZE, SMALL_SIZE, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUS, TIMES = "\u2212", "\u00d7"
MAX_POINTS = 700  # of one layer; longer series are thinned out
DASHED = (0, (4, 3))  # line style of start values
TICK_STEPS = (1, 2, 2.5, 5, 10)
SIDE_NAMES = {"baseline": "start", "best": "best"}  # words of a page for the two sides
_MAX_LABEL_WIDTH = 180.0
_LABEL_LINE = 18.0  # height of a label above its row


class FigureLayout:
    """A matplotlib figure with the width and the colours of a palette."""

    def __init__(self, height: float, palette: Palette) -> None:
        from matplotlib.figure import Figure

        self.height, self.palette, self.width = height, palette, palette.width
        self.canvas = Figure(figsize=(self.width / 72.0, height / 72.0), facecolor="none")

    def add_axes(
        self, x: float, y: float, *, width: float, height: float, grid: str = "y", **options: Any
    ) -> Axes:
        """Add axes.

        Args:
            x: left edge.
            y: top edge.
            width: width.
            height: height.
            grid: "x", "y" or "both"; without a grid, "", no axis is drawn either.
            options: properties of matplotlib's axes, such as `xlim`.
        """
        left, bottom = x / self.width, 1.0 - (y + height) / self.height
        box = (left, bottom, width / self.width, height / self.height)
        axes = self.canvas.add_axes(box, facecolor="none", **options)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom" and grid == "y", color=self.palette.muted)
        axes.tick_params(colors=self.palette.muted, labelsize=SMALL_SIZE, which="both")
        if grid:
            axes.grid(axis=grid, color=self.palette.grid, linewidth=1.0)  # type: ignore[arg-type]
        else:
            axes.set_axis_off()
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
            x / self.width,
            1.0 - y / self.height,
            text,
            color=colour or self.palette.ink,
            fontsize=size,
            **options,
        )

    def add_colour_key(self, x: float, y: float, colours: Sequence[str], cell: float) -> None:
        """Add a row of colours, each `cell` wide."""
        count = len(colours)
        axes = self.add_axes(x, y, width=count * cell, height=11, grid="", xlim=(0, count))
        for index, colour in enumerate(colours):
            axes.axvspan(index, index + 1, facecolor=colour, linewidth=0)

    def label_top(
        self,
        axes: Axes,
        text: str,
        *,
        colour: str | None = None,
        shift: float = 0.0,
        **options: Any,
    ) -> None:
        """Add a line of text above axes: the label of the vertical axis, or the panel's name.

        The text begins `shift` to the left of the axes.
        """
        box = axes.get_position()
        x, y = box.x0 * self.width - shift, (1.0 - box.y1) * self.height - 9.0
        self.add_text(x, y, text, colour=colour or self.palette.muted, **options)

    def label_bottom(self, axes: Axes, text: str) -> None:
        """Add the label of the horizontal axis below its right end."""
        box = axes.get_position()
        x, y = box.x1 * self.width, (1.0 - box.y0) * self.height + 38.0
        self.add_text(x, y, text, colour=self.palette.muted, ha="right")

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
            "gid": "halo",
        } | options
        label = axes.annotate(
            text, (x, y), xytext=shift, textcoords="offset points", color=colour, **options
        )
        # A placeholder colour gets its margin from the SVG's style, see theme.make_inline_svg.
        if not colour.startswith("#0a0b"):
            label.set_path_effects([withStroke(linewidth=4.0, foreground=self.palette.paper)])


class RowLayout(FigureLayout):
    """A figure of rows, with a label at the left of each row, or above it where it is narrow.

    Attributes:
        left: left edge of the rows.
        top: top edge of the first row.
        step: height of a row.
    """

    def __init__(
        self, labels: Collection[str], palette: Palette, *, top: float, step: float
    ) -> None:
        widest = max(measure_text(text, SMALL_SIZE) for text in labels)
        self.left, self.top, self.step = min(_MAX_LABEL_WIDTH, widest) + 16.0, top, step
        if palette.is_narrow:
            self.left, self.step = 8.0, step + _LABEL_LINE
        self._count = len(labels)
        super().__init__(top + self.step * self._count + 46.0, palette)

    def add_row_axes(self, left: float, right: float, *, grid: str = "x", **options: Any) -> Axes:
        """Add axes over all rows; the vertical coordinate of a row is its index."""
        axes = self.add_axes(
            left,
            self.top,
            width=right - left,
            height=self.step * self._count,
            grid=grid,
            # A label above a row takes the upper part of its height.
            ylim=(self._count - 0.5 - self._shift, -0.5 - self._shift),
            **options,
        )
        axes.yaxis.set_visible(False)
        return axes

    @property
    def _shift(self) -> float:
        """Part of a row by which its data lie below its middle."""
        return _LABEL_LINE / 2.0 / self.step if self.palette.is_narrow else 0.0

    def label_row(
        self,
        row: int,
        text: str,
        *,
        x: float | None = None,
        shift: float = 4.5,
        size: float = SMALL_SIZE,
        beside: bool = False,
        **options: Any,
    ) -> None:
        """Add text in a row, `shift` below the middle of its data.

        In a narrow figure the text goes to the line above the data, unless it belongs `beside`
        them. Without x the text is the row's label, which ends at the left edge of the rows, or
        begins the line above them.
        """
        middle = self.top + self.step * (row + 0.5 + self._shift)
        if self.palette.is_narrow and not beside:
            options.setdefault("gid", "halo")
            y = self.top + self.step * row + 15.0
        else:
            y = middle + shift
        if x is None and self.palette.is_narrow:
            text, x = fit_text(text, self.width - 12.0, size), 4.0
        elif x is None:
            text, x = fit_text(text, self.left - 16, size), self.left - 12
            options["ha"] = "right"
        self.add_text(x, y, text, size=size, **options)


def draw_dots(
    axes: Axes, x: Any, y: Any, *, colour: str, size: float = 5.0, zorder: float = 3.0, **style: Any
) -> None:
    """Draw round points as one path, which takes a tenth of the bytes of markers.

    The limits of the axes must be set before. Values that are not finite are left out.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    left, right = axes.get_xlim()
    style |= {"linewidth": size, "capstyle": "round", "zorder": zorder}
    style["snap"] = False  # snapping to pixels would make a dot empty
    ends = zip(np.stack([x, x + (right - left) * 1e-5], 1), np.stack([y, y], 1), strict=True)
    draw_lines(axes, ends, colour=colour, **style)


def draw_lines(axes: Axes, lines: Iterable[tuple[Any, Any]], *, colour: str, **style: Any) -> None:
    """Draw many lines (x, y) as one path. Points that are not finite are left out."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points, codes = [], []
    for x, y in lines:
        line = np.stack([np.asarray(x, float), np.asarray(y, float)], 1)
        line = line[np.isfinite(line).all(1)]
        points += line.tolist()
        codes += [Path.MOVETO, *[Path.LINETO] * (len(line) - 1)][: len(line)]
    if points:
        path = Path(points, codes)
        path.should_simplify = False
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, **style))


def draw_best_so_far(
    axes: Axes, x: Sequence[float], best: Any, *, colour: str, **style: Any
) -> None:
    """Draw the best loss so far as steps; None before the first complete trial."""
    shown = thin_out(len(x))
    losses = np.asarray(best, float)[shown]
    axes.plot(np.asarray(x)[shown], losses, drawstyle="steps-post", color=colour, **style)


def thin_out(count: int, limit: int = MAX_POINTS) -> list[int]:
    """Select at most `limit` of `count` positions, evenly spaced, both ends included."""
    if count <= limit:
        return list(range(count))
    return sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})


def format_number(value: Any, digits: int = 3) -> str:
    """Format a number briefly: 0.0015, 1e-5, 12.5, 12,000. A choice is a short text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return format_parameter(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    small = f"{value:.{digits - 1}e}" if abs(value) < 1e-3 else f"{value:.{digits}g}"
    head, e, tail = small.partition("e")
    text = f"{head.rstrip('0').rstrip('.')}e{int(tail)}" if e else head
    return text.replace("-", MINUS, 1) if value < 0 else text


def format_decimal(value: float, places: int, *, sign: bool = False) -> str:
    """Format a value with `places` decimal places; sign adds "+" to a positive value."""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def fit_text(text: str, width: float, size: float = NORMAL_SIZE) -> str:
    """Shorten a text to a width, with an ellipsis in its middle when it must be cut."""
    length, fitted = len(text), text
    while length > 4 and measure_text(fitted, size) > width:
        length -= 1
        fitted = f"{text[: math.ceil(length / 2)]}…{text[len(text) - length // 2 :]}"
    return fitted


def measure_text(text: str, size: float = NORMAL_SIZE) -> float:
    """Measure the width of a text in the figure's units."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(
        text, FontProperties(family="DejaVu Sans", size=size), ismath=False
    )[0]


def spread_apart(positions: Sequence[float], distance: float) -> list[float]:
    """Move positions as little as needed to be at least `distance` apart, keeping their order."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(positions, kind="stable")
    offsets = distance * np.arange(len(positions))
    moved = np.empty(len(positions))
    # Without the offsets, positions in their order are apart if they do not decrease.
    moved[order] = isotonic_regression(np.asarray(positions, float)[order] - offsets).x + offsets
    return moved.tolist()


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
    data, ends = (np.asarray([*part], float) for part in (values, include))
    data, ends = data[np.isfinite(data)], ends[np.isfinite(ends)]
    if len(data):
        ends = [*ends, data.min(), np.quantile(data, upper)]
    if not len(ends):
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
    from matplotlib.ticker import MaxNLocator

    for axis, count, is_integer in ((axes.xaxis, x, integer), (axes.yaxis, y, False)):
        if count is not None:
            axis.set_major_locator(MaxNLocator(count, integer=is_integer, steps=TICK_STEPS))
            axis.set_major_formatter(lambda value, _: format_number(float(f"{value:.6g}"), 6))
