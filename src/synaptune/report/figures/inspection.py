"""What happens inside a trained model: its terminals along a real text, and the life of its experts (portrait.py has the schema)."""

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
    """Calcium, pools, energy and release along a text: the mean over the terminals (thick) and single ones (thin)."""
    known = {side: found for side in _SIDES if (found := _find_part(evidence, side, "dynamics"))}
    rows = [
        (name, words)
        for name, words in _TRACES
        if any(_mean_trace(part, name) for part in known.values())
    ]
    if not rows:
        return None
    step, left = 104.0, 48.0
    sheet = FigureLayout(52 + step * len(rows) + 44, palette)
    text = next((part["text"] for part in known.values() if part.get("text")), [])
    length = max(
        [len(text)] + [len(_mean_trace(part, name)) for part in known.values() for name, _ in rows]
    )
    axes = None
    for at, (name, words) in enumerate(rows):
        axes = sheet.add_axes(left, 62 + step * at, width=WIDTH - left - 8, height=68)
        axes.set_xlim(-0.5, max(1, length) - 0.5)
        _draw_traces(axes, known, name, palette)
        set_ticks(axes, x=6, y=3, whole=True)
        axes.tick_params(labelbottom=False)
        sheet.label_top(axes, words, colour=palette.ink, x=4)
    for at, side in enumerate(known):
        sheet.add_text(
            WIDTH - 8 - 76 * (len(known) - 1 - at),
            22,
            side,
            colour=_choose_colour(side, palette),
            weight="bold",
            ha="right",
            size=NORMAL_SIZE,
        )
    if axes is not None and text:
        _draw_letters(axes, text, palette)
        sheet.add_text(
            WIDTH - 8,
            sheet.height - 6,
            "token of the validation text",
            colour=palette.muted,
            ha="right",
        )
    layer = next(iter(known.values())).get("layer", 0)
    caption = (
        f"The terminals of layer {layer} along the beginning of the validation text, at the {' and at the '.join(known)} values: mean over "
        "all terminals (thick) and single ones (thin, from the token that bore them)."
    )
    return Drawing(sheet.canvas, "Synapse dynamics", caption)


def _find_part(evidence: Evidence, side: str, name: str) -> Mapping[str, Any] | None:
    portrait = evidence.inspections.get(side) or {}
    part = portrait.get(name) if isinstance(portrait, Mapping) else None
    return part if isinstance(part, Mapping) and part else None


def _mean_trace(part: Mapping[str, Any], name: str) -> Sequence[float | None]:
    return (part.get("mean") or {}).get(name) or []


def _choose_colour(side: str, palette: Palette) -> str:
    return {"baseline": palette.baseline, "best": palette.best}.get(side, palette.muted)


def _to_floats(trace: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in trace]


def _draw_traces(
    axes: Axes, known: Mapping[str, Mapping[str, Any]], name: str, palette: Palette
) -> None:
    seen: list[float] = []
    for side, part in known.items():
        colour = _choose_colour(side, palette)
        single = [_to_floats(terminal.get(name) or []) for terminal in part.get("terminals") or []]
        several = [
            [(at, value) for at, value in enumerate(trace) if math.isfinite(value)]
            for trace in single
        ]
        draw_lines(
            axes,
            [tuple(zip(*trace, strict=True)) for trace in several if trace],
            colour=colour,
            linewidth=0.8,
            alpha=0.45,
        )  # type: ignore[misc]
        mean = _to_floats(_mean_trace(part, name))
        axes.plot(range(len(mean)), mean, color=colour, linewidth=2.2, zorder=4)
        seen += [value for trace in (*single, mean) for value in trace if math.isfinite(value)]
    deep = bool(seen) and min(seen) < 0.5 * max(seen)  # else zero is too far away to be shown
    axes.set_ylim(*find_limits(seen, upper=0.995, must=[0.0] if deep else [], pad=0.08))


def _draw_letters(axes: Axes, text: Sequence[str], palette: Palette) -> None:
    """The text itself as the labels of the axis: each token in its place where they are letters, else every few of them."""
    width = axes.get_position().width * WIDTH / max(1, len(text))
    longest = max(len(token) for token in text)
    stride = 1 if longest == 1 else max(1, math.ceil(longest * 6.5 / width))
    low = axes.get_ylim()[0]
    for at in range(0, len(text), stride):
        words = _replace_unprintable(text[at]).replace(" ", "·" if longest > 1 else " ")
        if words.strip():
            size = min(11.0, max(6.5, width * 1.5)) if longest == 1 else 9.0
            axes.annotate(
                words,
                (at, low),
                xytext=(0, -12),
                textcoords="offset points",
                ha="center",
                color=palette.ink,
                fontsize=size,
                annotation_clip=False,
            )


def _replace_unprintable(token: str) -> str:
    """A token with a sign for every character that has no picture, such as the NUL between two documents."""
    known = token.replace("\n", "↵").replace("\t", "→")
    return "".join(letter if letter.isprintable() else "□" for letter in known)


def draw_experts(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Each expert's share of the tokens over the training; merges and splits as marks."""
    known = {
        side: found
        for side in _SIDES
        if (found := _find_part(evidence, side, "life"))
        and found.get("steps")
        and found.get("utilisation")
    }
    if not known:
        return None
    width = (WIDTH - 8) / len(known)
    sheet = FigureLayout(330, palette)
    top = max(
        share
        for part in known.values()
        for row in part["utilisation"]
        for share in row
        if math.isfinite(share)
    )
    for at, (side, part) in enumerate(known.items()):
        axes = sheet.add_axes(at * width + 44, 44, width=width - 62, height=180)
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
        set_ticks(axes, x=4, y=4, whole=True)
        axes.tick_params(labelbottom=False)
        sheet.label_top(
            axes, f"{side}: share of tokens [%]", colour=colour, weight="bold", x=at * width + 4
        )
        _draw_events(sheet, at * width, part=part, width=width, named=at == 0)
    caption = (
        "The share of tokens that each expert receives, mean over the layers, while it trains (dotted: equal shares), and when experts "
        "merged (an expert lost) and split (an expert born)."
    )
    return Drawing(sheet.canvas, "Life of the experts", caption)


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
    set_ticks(axes, x=4, whole=True)
    layout.label_bottom(axes, "optimizer step")
