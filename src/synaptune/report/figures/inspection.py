"""Figures of a trained model: its terminals along a real text, and the events of its experts.

protocols/inspection.py documents the schema of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptune.analysis.results import Evidence
from synaptune.report.figures.layout import (
    SIDE_NAMES,
    FigureLayout,
    draw_lines,
    find_limits,
    format_number,
    set_ticks,
    spread_apart,
)
from synaptune.report.figures.theme import NORMAL_SIZE, TINY_SIZE, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTER_WIDTH = 6.5  # of a letter under the axis
_MAX_NAMED_EXPERTS = 12  # lines that are named
Part = Mapping[str, Any]  # one part of an inspection, such as the dynamics
_TRACES = {
    "calcium": "calcium [1]",
    "ready": "ready pool [vesicles]",
    "reserve": "reserve [vesicles]",
    "energy": "energy [1]",
    "release": "release [vesicles/token]",
}


def draw_dynamics(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw calcium, pools, energy and release along a text.

    Thick lines are means over the terminals, thin lines single terminals.
    """
    parts = _find_parts(evidence, "dynamics")
    lengths = {
        name: max((len(_get_mean(part, name)) for part in parts.values()), default=0)
        for name in _TRACES
    }
    names = [name for name, length in lengths.items() if length]
    if not names:
        return None
    step, left = 104.0, 48.0
    layout = FigureLayout(52 + step * len(names) + 44, palette)
    text = next((part["text"] for part in parts.values() if part.get("text")), [])
    length, width = max(len(text), *lengths.values()), layout.width - left - 8
    if text and max(map(len, text)) == 1:  # as many letters as can be read
        length = min(length, int(width / _LETTER_WIDTH))
        text = text[:length]
    for row, name in enumerate(names):
        axes = layout.add_axes(
            left,
            62 + step * row,
            width=width,
            height=68,
            xlim=(-0.5, length - 0.5),
        )
        _draw_traces(axes, parts, name, palette)
        set_ticks(axes, x=6, y=3, integer=True)
        axes.tick_params(labelbottom=False)
        layout.label_top(axes, _TRACES[name], colour=palette.ink, shift=left - 4)
        if text and name == names[-1]:
            _draw_letters(layout, axes, text)
    for index, side in enumerate(reversed(parts)):
        layout.add_text(
            layout.width - 8 - 76 * index,
            22,
            SIDE_NAMES[side],
            colour=getattr(palette, side),
            weight="bold",
            ha="right",
            size=NORMAL_SIZE,
        )
    if text:
        note, y = "token of the validation text", layout.height - 6
        layout.add_text(layout.width - 8, y, note, colour=palette.muted, ha="right")
    layer = next(iter(parts.values())).get("layer", 0)
    return Drawing(
        layout.canvas,
        "Synapse dynamics",
        f"The terminals of layer {layer} along the beginning of the validation text, at the "
        f"{' and at the '.join(SIDE_NAMES[side] for side in parts)} values: mean over all "
        "terminals (thick) and single terminals (thin, from the token that created them).",
    )


def _find_parts(evidence: Evidence, name: str) -> dict[str, Part]:
    """Find a part of the inspections of the baseline and the best; a missing one is left out."""
    parts = {}
    for side in ("baseline", "best"):
        part = (evidence.inspections.get(side) or {}).get(name)
        if part:
            parts[side] = part
    return parts


def _get_mean(part: Part, name: str) -> Sequence[float | None]:
    return (part.get("mean") or {}).get(name) or []


def _draw_traces(axes: Axes, parts: Mapping[str, Part], name: str, palette: Palette) -> None:
    values: list[float] = []
    for side, part in parts.items():
        colour = getattr(palette, side)
        mean, *terminals = (
            np.array(trace, float)  # None becomes nan
            for trace in (
                _get_mean(part, name),
                *(terminal.get(name) or [] for terminal in part.get("terminals") or []),
            )
        )
        lines = [(range(len(trace)), trace) for trace in terminals]
        draw_lines(axes, lines, colour=colour, linewidth=0.8, alpha=0.45)
        axes.plot(range(len(mean)), mean, color=colour, linewidth=2.2, zorder=4)
        values += np.concatenate([mean, *terminals]).tolist()
    finite = [value for value in values if math.isfinite(value)]
    # Zero is shown only where it does not compress the traces.
    zero = [0.0] if finite and min(finite) < 0.5 * max(finite) else []
    axes.set_ylim(*find_limits(finite, upper=0.995, include=zero, pad=0.08))


def _draw_letters(layout: FigureLayout, axes: Axes, text: Sequence[str]) -> None:
    """Label the axis with the text: every token where they have room, else every nth."""
    width = axes.get_position().width * layout.width / len(text)
    longest = max(len(token) for token in text)
    stride = max(1, math.ceil(longest * _LETTER_WIDTH / width - 0.01))
    for index in range(0, len(text), stride):
        label = _replace_unprintable(text[index]).replace(" ", "·" if longest > 1 else " ")
        if label.strip():
            axes.annotate(
                label,
                (index, axes.get_ylim()[0]),
                xytext=(0, -13),
                textcoords="offset points",
                ha="center",
                color=layout.palette.ink,
                fontsize=TINY_SIZE,
                annotation_clip=False,
            )


def _replace_unprintable(token: str) -> str:
    """Replace every unprintable character, such as the NUL between two documents, by a symbol."""
    visible = token.replace("\n", "↵").replace("\t", "→")
    return "".join(letter if letter.isprintable() else "□" for letter in visible)


def draw_experts(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw each expert's share of the tokens over the training, with merges and splits as marks."""
    parts = {
        side: part
        for side, part in _find_parts(evidence, "life").items()
        if part.get("steps") and part.get("utilisation")
    }
    if not parts:
        return None
    columns = 1 if palette.is_narrow else len(parts)
    layout = FigureLayout(310 * -(-len(parts) // columns) + 20, palette)
    width = (layout.width - 8) / columns
    shares_by_side = {
        side: 100.0 * np.array(part["utilisation"], float) for side, part in parts.items()
    }
    top = max(float(np.nanmax(shares)) for shares in shares_by_side.values())
    for index, (side, part) in enumerate(parts.items()):
        steps, shares = part["steps"], shares_by_side[side]
        row, column = divmod(index, columns)
        left, y, colour = column * width + 44, 310 * row + 44, getattr(palette, side)
        limits = (steps[0], max(steps[-1], steps[0] + 1))
        axes = layout.add_axes(
            left, y, width=width - 78, height=180, xlim=limits, ylim=(0, top * 1.08)
        )
        equal = 100.0 / shares.shape[1]
        axes.axhline(equal, color=palette.muted, linewidth=1.2, linestyle=(0, (2, 3)))
        lines = [(steps, share) for share in shares.T]
        draw_lines(axes, lines, colour=colour, linewidth=1.8, alpha=0.85)
        _name_experts(layout, axes, shares[-1], colour)
        set_ticks(axes, x=4, y=4, integer=True)
        axes.tick_params(labelbottom=False)
        title = f"{SIDE_NAMES[side]}: share of tokens [%]"
        layout.label_top(axes, title, colour=colour, weight="bold", shift=40.0)
        below = layout.add_axes(
            left, y + 188, width=width - 78, height=44, grid="x", xlim=limits, ylim=(1.6, -0.6)
        )
        _draw_events(layout, below, part, named=column == 0)
    return Drawing(
        layout.canvas,
        "Experts during training",
        "The share of tokens that each expert receives during training, mean over the layers "
        "(dotted: equal shares), and the steps at which experts merged (one expert fewer) and "
        "split (one expert more). Numbers name the experts.",
    )


def _name_experts(layout: FigureLayout, axes: Axes, ends: np.ndarray, colour: str) -> None:
    """Name each expert by its number at the end of its line."""
    known = [index for index, share in enumerate(ends) if math.isfinite(share)]
    if len(known) > _MAX_NAMED_EXPERTS:
        return
    low, high = axes.get_ylim()
    places = spread_apart([float(ends[index]) for index in known], (high - low) * 0.085)
    for index, place in zip(known, places, strict=True):
        x = axes.get_xlim()[1]
        layout.label_point(axes, x, place, str(index), colour=colour, fontsize=TINY_SIZE)


def _draw_events(layout: FigureLayout, axes: Axes, part: Part, *, named: bool) -> None:
    palette, kinds = layout.palette, ("split", "merge")
    axes.grid(False)
    for row, colour, marker in ((0, palette.accent, "^"), (1, palette.bad, "v")):
        steps = [step for step, kind, *_ in part.get("events") or [] if kind == kinds[row]]
        style = {"markersize": 7.5, "markeredgewidth": 0.0, "clip_on": False, "alpha": 0.8}
        axes.plot(steps, [row] * len(steps), marker, color=colour, **style)
        end, count = axes.get_xlim()[1], format_number(len(steps))
        layout.label_point(axes, end, row, count, colour=colour, shift=(14, 0), ha="right")
    set_ticks(axes, x=4, integer=True)
    axes.set_yticks([0, 1], kinds if named else ["", ""])
    axes.tick_params(axis="y", labelsize=TINY_SIZE, pad=3.0)
    layout.label_bottom(axes, "optimizer step")
