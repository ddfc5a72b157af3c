"""Pictures of a search as arrays of pixels, for loggers that take no SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synaptune.core.text import make_label
from synaptune.search.optimizers.diagnostics import Diagnostics

Image = Any  # (height, width, 3) bytes
_MAX_LINES = 1000


def draw_distribution_image(diagnostics: Diagnostics, names: Sequence[str]) -> Image:
    """Correlation and covariance of a search distribution, side by side; rows in the order of names."""
    from matplotlib.figure import Figure

    side = min(14.0, 3.2 + 0.22 * len(names))
    figure = Figure(figsize=(2.0 * side, side), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    largest = (
        max((abs(entry) for row in diagnostics.covariance for entry in row), default=1.0) or 1.0
    )
    for axes, matrix, limit, title in (
        (left, diagnostics.correlation, 1.0, "correlation"),
        (right, diagnostics.covariance, largest, "covariance (unit box)"),
    ):
        drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(f"{title}, generation {diagnostics.generation}", fontsize=9)
        ticks = range(len(names))
        axes.set_xticks(ticks, [make_label(name, names) for name in names], rotation=90, fontsize=6)
        axes.set_yticks(ticks, [make_label(name, names) for name in names], fontsize=6)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    return _render_pixels(figure)


def draw_parallel_image(
    points: Sequence[tuple[Sequence[float], float]], names: Sequence[str]
) -> Image:
    """Points of the unit box with their losses, as lines over one axis for each name and one for the rank of the loss.

    The best are dark and in front; of more than 1000 (_MAX_LINES) points, the best so many are drawn.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    ranked = sorted(points, key=lambda point: point[1])
    worst_first = ranked[:_MAX_LINES][::-1]
    ranks = [
        1.0 - index / max(1, len(worst_first) - 1) for index in range(len(worst_first))
    ]  # 0 is the best
    lines = [
        [*enumerate(unit), (len(names), rank)]
        for (unit, _), rank in zip(worst_first, ranks, strict=True)
    ]
    figure = Figure(figsize=(max(6.0, 0.7 * (len(names) + 1)), 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    drawn = LineCollection(
        lines,
        array=ranks,
        cmap="viridis",
        linewidths=[2.0 if rank < 0.1 else 0.7 for rank in ranks],
        alpha=0.7,
    )
    axes.add_collection(drawn)
    axes.set_xlim(-0.2, len(names) + 0.2)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("place in the range")
    ticks = [*(make_label(name, names) for name in names), "rank of the loss"]
    axes.set_xticks(range(len(names) + 1), ticks, rotation=60, ha="right", fontsize=7)
    axes.grid(axis="x", alpha=0.4)
    return _render_pixels(figure)


def _render_pixels(figure: Any) -> Image:
    """A drawn figure without its transparency; touches no global state of matplotlib."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
