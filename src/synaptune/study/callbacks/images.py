"""Images of a search as arrays of pixels, for TensorBoard and W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synaptune.core.text import make_label
from synaptune.search.optimizers.diagnostics import Diagnostics

Image = Any  # (height, width, 3) bytes
_MAX_LINES = 1000


def sort_by_subsystem(names: Sequence[str]) -> list[str]:
    """Return the names grouped by subsystem; the subsystems keep the order of their first names."""
    subsystems = list(dict.fromkeys(map(_get_subsystem, names)))
    return sorted(names, key=lambda name: subsystems.index(_get_subsystem(name)))


def _get_subsystem(name: str) -> str:
    return name.rpartition(".")[0]


def draw_distribution_image(diagnostics: Diagnostics, names: Sequence[str]) -> Image:
    """Draw the correlation and covariance of a search distribution, grouped by subsystem.

    Args:
        diagnostics: diagnostics of the distribution.
        names: names of its parameters, in their order.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = sort_by_subsystem(names)
    indices = [list(names).index(name) for name in rows]
    order = np.ix_(indices, indices)
    labels = [make_label(name, names) for name in rows]
    boundaries = [
        index - 0.5
        for index in range(1, len(rows))
        if _get_subsystem(rows[index]) != _get_subsystem(rows[index - 1])
    ]
    side = min(14.0, 3.2 + 0.22 * len(names))
    figure = Figure(figsize=(2.0 * side, side), dpi=100, layout="constrained")
    covariance = np.array(diagnostics.covariance)[order]
    for axes, matrix, limit, title in zip(
        figure.subplots(1, 2),
        (np.array(diagnostics.correlation)[order], covariance),
        (1.0, float(np.abs(covariance).max(initial=0.0)) or 1.0),
        ("correlation", "covariance (unit box)"),
        strict=True,
    ):
        cells = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(f"{title}, generation {diagnostics.generation}", fontsize=9)
        axes.set_xticks(range(len(rows)), labels, rotation=90, fontsize=6)
        axes.set_yticks(range(len(rows)), labels, fontsize=6)
        axes.vlines(boundaries, -0.5, len(rows) - 0.5, color="black", linewidth=0.5)
        axes.hlines(boundaries, -0.5, len(rows) - 0.5, color="black", linewidth=0.5)
        figure.colorbar(cells, ax=axes, shrink=0.8)
    return _render_pixels(figure)


def draw_parallel_image(
    points: Sequence[tuple[Sequence[float], float]], names: Sequence[str]
) -> Image:
    """Draw points of the unit box as parallel coordinates, with an axis for the rank of the loss.

    The best points are drawn last. Only the best 1000 (_MAX_LINES) points are drawn.

    Args:
        points: points of the unit box, each with its loss.
        names: names of the parameters, in their order.
    """
    import numpy as np
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    worst_first = sorted(points, key=lambda point: point[1])[:_MAX_LINES][::-1]
    ranks = np.linspace(1.0, 0.0, len(worst_first))  # 0 is the best
    lines = [
        [*enumerate(unit), (len(names), rank)]
        for (unit, _), rank in zip(worst_first, ranks, strict=True)
    ]
    figure = Figure(figsize=(max(6.0, 0.7 * (len(names) + 1)), 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    widths = np.where(ranks < 0.1, 2.0, 0.7)
    axes.add_collection(
        LineCollection(lines, array=ranks, cmap="viridis", linewidths=widths, alpha=0.7)
    )
    axes.set(xlim=(-0.2, len(names) + 0.2), ylim=(-0.02, 1.02), ylabel="position in the range")
    ticks = [*(make_label(name, names) for name in names), "rank of the loss"]
    axes.set_xticks(range(len(names) + 1), ticks, rotation=60, ha="right", fontsize=7)
    axes.grid(axis="x", alpha=0.4)
    return _render_pixels(figure)


def _render_pixels(figure: Any) -> Image:
    """Return the pixels of a figure without using the global state of matplotlib."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
