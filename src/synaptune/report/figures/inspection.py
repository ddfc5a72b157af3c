"""Figures of a trained model: its terminals along a real text, and the events of its experts.

protocols/inspection.py documents the schema of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.results import Evidence
from synaptune.report.figures.layout import (
    FigureLayout,
    draw_lines,
    find_limits,
    format_number,
    set_ticks,
)
from synaptune.report.figures.theme import NORMAL_SIZE, WIDTH, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRACES = (
    ("calcium", "calcium"),
    ("ready", "ready pool [vesicles]"),
    ("reserve", "reserve [vesicles]"),
    ("energy", "energy"),
    ("release", "release [vesicles/token]"),
)
_SIDES = ("baseline", "best")


def draw_dynamics(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw calcium, pools, energy and release along a text.

    Thick lines are means over the terminals, thin lines single terminals.
    """
    parts_by_side = {
        side: part for side in _SIDES if (part := _find_part(evidence, side, "dynamics"))
    }
    rows = [
        (name, label)
        for name, label in _TRACES
        if any(_mean_trace(part, name) for part in parts_by_side.values())
    ]
    if not rows:
        return None
    step, left = 104.0, 48.0
    layout = FigureLayout(52 + step * len(rows) + 44, palette)
    text = next((part["text"] for part in parts_by_side.values() if part.get("text")), [])
    length = max(
        [len(text)]
        + [len(_mean_trace(part, name)) for part in parts_by_side.values() for name, _ in rows]
    )
    axes = None
    for row, (name, label) in enumerate(rows):
        axes = layout.add_axes(left, 62 + step * row, width=WIDTH - left - 8, height=68)
        axes.set_xlim(-0.5, max(1, length) - 0.5)
        _draw_traces(axes, parts_by_side, name, palette)
        set_ticks(axes, x=6, y=3, integer=True)
        axes.tick_params(labelbottom=False)
        layout.label_top(axes, label, colour=palette.ink, x=4)
    for row, side in enumerate(parts_by_side):
        layout.add_text(
            WIDTH - 8 - 76 * (len(parts_by_side) - 1 - row),
            22,
            side,
            colour=_choose_colour(side, palette),
            weight="bold",
            ha="right",
            size=NORMAL_SIZE,
        )
    if axes is not None and text:
        _draw_letters(axes, text, palette)
        layout.add_text(
            WIDTH - 8,
            layout.height - 6,
            "token of the validation text",
            colour=palette.muted,
            ha="right",
        )
    layer = next(iter(parts_by_side.values())).get("layer", 0)
    caption = (
        f"The terminals of layer {layer} along the beginning of the validation text, at the "
        f"{' and row the '.join(parts_by_side)} values: mean over all terminals (thick) and single "
        "terminals (thin, from the token that created them)."
    )
    return Drawing(layout.canvas, "Synapse dynamics", caption)


def _find_part(evidence: Evidence, side: str, name: str) -> Mapping[str, Any] | None:
    inspection = evidence.inspections.get(side) or {}
    part = inspection.get(name) if isinstance(inspection, Mapping) else None
    return part if isinstance(part, Mapping) and part else None


def _mean_trace(part: Mapping[str, Any], name: str) -> Sequence[float | None]:
    return (part.get("mean") or {}).get(name) or []


def _choose_colour(side: str, palette: Palette) -> str:
    return {"baseline": palette.baseline, "best": palette.best}.get(side, palette.muted)


def _to_floats(trace: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in trace]


def _draw_traces(
    axes: Axes, parts_by_side: Mapping[str, Mapping[str, Any]], name: str, palette: Palette
) -> None:
    values: list[float] = []
    for side, part in parts_by_side.items():
        colour = _choose_colour(side, palette)
        single = [_to_floats(terminal.get(name) or []) for terminal in part.get("terminals") or []]
        lines = []
        for trace in single:
            indices = [index for index, value in enumerate(trace) if math.isfinite(value)]
            if indices:
                lines.append((indices, [trace[index] for index in indices]))
        draw_lines(axes, lines, colour=colour, linewidth=0.8, alpha=0.45)
        mean = _to_floats(_mean_trace(part, name))
        axes.plot(range(len(mean)), mean, color=colour, linewidth=2.2, zorder=4)
        values += [value for trace in (*single, mean) for value in trace if math.isfinite(value)]
    # Zero is shown only where it does not compress the traces.
    near_zero = bool(values) and min(values) < 0.5 * max(values)
    axes.set_ylim(*find_limits(values, upper=0.995, include=[0.0] if near_zero else [], pad=0.08))


def _draw_letters(axes: Axes, text: Sequence[str], palette: Palette) -> None:
    """Label the axis with the text: every token when all are single letters, else every nth."""
    width = axes.get_position().width * WIDTH / max(1, len(text))
    longest = max(len(token) for token in text)
    stride = 1 if longest == 1 else max(1, math.ceil(longest * 6.5 / width))
    low = axes.get_ylim()[0]
    for index in range(0, len(text), stride):
        label = _replace_unprintable(text[index]).replace(" ", "·" if longest > 1 else " ")
        if label.strip():
            size = min(11.0, max(6.5, width * 1.5)) if longest == 1 else 9.0
            axes.annotate(
                label,
                (index, low),
                xytext=(0, -12),
                textcoords="offset points",
                ha="center",
                color=palette.ink,
                fontsize=size,
                annotation_clip=False,
            )


def _replace_unprintable(token: str) -> str:
    """Replace every unprintable character, such as the NUL between two documents, by a symbol."""
    visible = token.replace("\n", "↵").replace("\t", "→")
    return "".join(letter if letter.isprintable() else "□" for letter in visible)


def draw_experts(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw each expert's share of the tokens over the training, with merges and splits as marks."""
    parts_by_side = {
        side: part
        for side in _SIDES
        if (part := _find_part(evidence, side, "life"))
        and part.get("steps")
        and part.get("utilisation")
    }
    if not parts_by_side:
        return None
    width = (WIDTH - 8) / len(parts_by_side)
    layout = FigureLayout(330, palette)
    top = max(
        share
        for part in parts_by_side.values()
        for row in part["utilisation"]
        for share in row
        if math.isfinite(share)
    )
    for column, (side, part) in enumerate(parts_by_side.items()):
        axes = layout.add_axes(column * width + 44, 44, width=width - 62, height=180)
        shares = list(zip(*part["utilisation"], strict=True))
        axes.set_xlim(part["steps"][0], max(part["steps"][-1], part["steps"][0] + 1))
        axes.set_ylim(0, 100 * top * 1.08)
        axes.axhline(100.0 / len(shares), color=palette.muted, linewidth=1.2, linestyle=(0, (2, 3)))
        colour = _choose_colour(side, palette)
        draw_lines(
            axes,
            [(part["steps"], [100 * value for value in share]) for share in shares],
            colour=colour,
            linewidth=1.8,
            alpha=0.85,
        )
        set_ticks(axes, x=4, y=4, integer=True)
        axes.tick_params(labelbottom=False)
        layout.label_top(
            axes, f"{side}: share of tokens [%]", colour=colour, weight="bold", x=column * width + 4
        )
        _draw_events(layout, column * width, part=part, width=width, named=column == 0)
    caption = (
        "The share of tokens that each expert receives during training, mean over the layers "
        "(dotted: equal shares), and the steps at which experts merged (one expert fewer) and "
        "split (one expert more)."
    )
    return Drawing(layout.canvas, "Experts during training", caption)


def _draw_events(
    layout: FigureLayout, x: float, *, part: Mapping[str, Any], width: float, named: bool
) -> None:
    palette = layout.palette
    axes = layout.add_axes(x + 44, 232, width=width - 62, height=44)
    axes.set_xlim(part["steps"][0], max(part["steps"][-1], part["steps"][0] + 1))
    axes.set_ylim(1.6, -0.6)
    axes.grid(False)
    axes.set_yticks([0, 1], ["split", "merge"] if named else ["", ""])
    for row, kind, colour, marker in (
        (0, "split", palette.accent, "^"),
        (1, "merge", palette.bad, "v"),
    ):
        steps = [event[0] for event in part.get("events") or [] if event[1] == kind]
        style = {
            "color": colour,
            "linestyle": "none",
            "marker": marker,
            "markersize": 7.5,
            "markeredgewidth": 0.0,
            "clip_on": False,
        }
        axes.plot(steps, [row] * len(steps), alpha=0.8, **style)
        layout.add_text(
            x + width - 4,
            232 + 44 * (row + 0.6) / 2.2 + 4,
            format_number(len(steps)),
            colour=colour,
            ha="right",
            size=12.0,
        )
    axes.tick_params(axis="y", labelsize=11.0, pad=3.0)
    set_ticks(axes, x=4, integer=True)
    layout.label_bottom(axes, "optimizer step")
