"""Images of a search as arrays of pixels, for TensorBoard and W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synaptune.core.text import make_label
from synaptune.search.optimizers.diagnostics import Diagnostics

Image = Any  # (height, width, 3) bytes
_MAX_LINES = 1000


def sort_by_subsystem(names: Sequence[str]) -> list[str]:
    """Return the names with those of a mechanism side by side, mechanisms in the order of their
    first one.
    """
    groups = list(dict.fromkeys(_get_subsystem(name) for name in names))
    return sorted(names, key=lambda name: groups.index(_get_subsystem(name)))


def _get_subsystem(name: str) -> str:
    return name.rpartition(".")[0]


def draw_distribution_image(diagnostics: Diagnostics, names: Sequence[str]) -> Image:
    """Draw correlation and covariance of a search distribution side by side, by subsystem.

    Args:
        diagnostics: of the distribution.
        names: of its coordinates, in their order.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = sort_by_subsystem(names)
    order = np.ix_(*2 * ([list(names).index(name) for name in rows],))
    labels = [make_label(name, names) for name in rows]
    cuts = [
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
        axes.vlines(cuts, -0.5, len(rows) - 0.5, color="black", linewidth=0.5)
        axes.hlines(cuts, -0.5, len(rows) - 0.5, color="black", linewidth=0.5)
        figure.colorbar(cells, ax=axes, shrink=0.8)
    return _render_pixels(figure)


def draw_parallel_image(
    points: Sequence[tuple[Sequence[float], float]], names: Sequence[str]
) -> Image:
    """Points of the unit box with their losses, as lines over one axis for each name and one for
    the rank of the loss.

    The best are dark and in front; of more than 1000 (_MAX_LINES) points, the best so many are
    drawn.
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
