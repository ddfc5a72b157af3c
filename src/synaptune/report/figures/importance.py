"""Importance of each parameter by three measures, and the ablation of the optimum."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import Comparison, Evidence
from synaptune.core.text import make_labels
from synaptune.report.figures.layout import (
    RowLayout,
    draw_dots,
    find_limits,
    format_number,
    measure_text,
    set_ticks,
)
from synaptune.report.figures.theme import SMALL_SIZE, TINY_SIZE, Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_ROWS = 30


class _ImportanceColumn(NamedTuple):
    """A measure of importance.

    Attributes:
        head: first line of the heading.
        below: second line of the heading.
        values: (value, low, high) by parameter [%]; low and high are nan without an interval.
        colour: colour of the points.
        significant: parameters whose value differs significantly from zero; the others are grey.
    """

    head: str
    below: str
    values: Mapping[str, tuple[float, ...]]
    colour: str
    significant: Collection[str]


def draw_importance(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw fANOVA, PED-ANOVA and the ablation side by side."""
    columns = [column for column in _make_columns(evidence, palette) if column.values]
    if not columns:
        return None
    all_names = dict.fromkeys(name for column in columns for name in column.values)
    ranked = sorted(all_names, key=lambda name: -columns[0].values.get(name, (-math.inf,))[0])
    names, labels = ranked[:_MAX_ROWS], make_labels(evidence.names or ranked)
    texts = [labels.get(name, name) for name in names]
    layout = RowLayout(texts, palette, top=58, step=30)
    width = (layout.width - layout.left - 8) / len(columns)
    small = TINY_SIZE if palette.is_narrow else SMALL_SIZE
    for index, column in enumerate(columns):
        left = layout.left + index * width
        rows = {row: column.values[name] for row, name in enumerate(names) if name in column.values}
        axes = layout.add_row_axes(left, left + width - 22)
        significant = {row for row in rows if names[row] in column.significant}
        _draw_lollipops(axes, rows, significant, colour=column.colour, palette=palette)
        layout.add_text(
            left, 22, f"{column.head} [%]", colour=column.colour, weight="bold", size=small
        )
        if not palette.is_narrow:
            layout.add_text(left, 41, column.below, colour=palette.muted, size=TINY_SIZE)
    significant = {effect.name for effect in evidence.effects if effect.significant}
    tested = {effect.name for effect in evidence.effects}
    for row, name in enumerate(names):
        is_known = name in significant or not tested
        layout.label_row(
            row,
            texts[row],
            colour=palette.ink if is_known else palette.muted,
            weight="bold" if name in significant else "normal",
        )
    measures = "; ".join(f"{column.head}: {column.below}" for column in columns)
    caption = f"Importance of each parameter. {measures}. {_explain_spread(evidence)}"
    if evidence.ablation:
        caption += (
            " The ablation shows the gain in test perplexity of each tuned value at the optimum, "
            "with its 95 % interval; it compares only the start value and the tuned value."
        )
    if significant:
        caption += (
            f" Bold names have a significant effect on the {evidence.objective} over the search's"
            " trials "
            f"(Holm, {100 * ALPHA:g} %)."
        )
    return Drawing(layout.canvas, "Importance of the parameters", caption)


def draw_screening(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the effects of a screening, the largest first, with their intervals."""
    if evidence.screening is None:
        return None
    effects = evidence.screening.effects[:_MAX_ROWS]
    labels = make_labels([effect.name for effect in evidence.screening.effects])
    layout = RowLayout([labels[effect.name] for effect in effects], palette, top=34, step=24)
    axes = layout.add_row_axes(layout.left, layout.width - 16)
    rows = {row: effect[1:4] for row, effect in enumerate(effects)}
    significant = {row for row, effect in enumerate(effects) if effect.adjusted_p < ALPHA}
    _draw_lollipops(axes, rows, significant, colour=palette.best, palette=palette)
    for row, effect in enumerate(effects):
        colour = palette.ink if effect.chosen else palette.muted
        weight = "bold" if effect.chosen else "normal"
        layout.label_row(row, labels[effect.name], colour=colour, weight=weight)
    layout.label_bottom(axes, "effect on the loss [nats/token]")
    count = len(evidence.screening.effects)
    caption = (
        f"Effect of each of {count} parameters in {evidence.screening.runs} runs, with 95 %"
        " intervals. Left of zero the high level is better. Blue: significant (Holm, 5 %). Bold:"
        " varied by the search."
    )
    if count > len(effects):
        caption += f" The {len(effects)} largest are shown."
    return Drawing(layout.canvas, "What matters", caption)


def _explain_spread(evidence: Evidence) -> str:
    """Explain the bars and the grey points of the importances."""
    entries = [entry for entry in evidence.importances if entry.fanova is not None]
    if not entries:
        return ""
    text = "Shares depend on where the search sampled."
    if any(entry.fanova_spread for entry in entries):
        text += " Bars: their range over fits to resampled trials."
    if entries[0].floor is not None:
        text += (
            " Grey: no significant effect, or a share below the "
            f"{100 * entries[0].floor:.0f} % of fANOVA that shuffled losses reach."
        )
    if all(entry.ped_anova is None for entry in entries):
        text += " PED-ANOVA is left out: shuffled losses give shares as large."
    return text


def _make_columns(evidence: Evidence, palette: Palette) -> list[_ImportanceColumn]:
    fanova, ped_anova = (
        {
            entry.name: tuple(
                100.0 * part
                for part in (
                    getattr(entry, measure),
                    *(getattr(entry, spread) or (math.nan, math.nan)),
                )
            )
            for entry in evidence.importances
            if getattr(entry, measure) is not None
        }
        for measure, spread in (("fanova", "fanova_spread"), ("ped_anova", "ped_spread"))
    )
    worth = {
        entry.name: entry.reverted[1:4] for entry in evidence.ablation if entry.reverted is not None
    }
    with_effect = find_significant(evidence)
    above = {
        entry.name
        for entry in evidence.importances
        if entry.floor is None or (entry.fanova or 0.0) > entry.floor
    }
    return [
        _ImportanceColumn(
            "fANOVA",
            f"of the {evidence.objective}'s variance",
            fanova,
            palette.ink,
            with_effect & above,
        ),
        _ImportanceColumn(
            "PED-ANOVA",
            "in the best trials",
            ped_anova,
            palette.ink,
            with_effect if evidence.effects else above,
        ),
        _ImportanceColumn("ablation", "in test perplexity", worth, palette.best, worth),
    ]


def find_significant(evidence: Evidence) -> set[str]:
    """Find the parameters with a significant effect; all of them if no effect was tested."""
    if not evidence.effects:
        return set(evidence.names)
    return {effect.name for effect in evidence.effects if effect.significant}


def _draw_lollipops(
    axes: Axes,
    rows: Mapping[int, tuple[float, ...]],
    significant: Collection[int],
    *,
    colour: str,
    palette: Palette,
) -> None:
    ends = [end for values in rows.values() for end in values]
    axes.set_xlim(*find_limits(ends, upper=1.0, include=[0.0]))
    axes.axvline(0, color=palette.muted, linewidth=1.0)
    for row, (value, low, high) in rows.items():
        shade = colour if row in significant else palette.other
        style = {"linewidth": 2.0, "solid_capstyle": "butt"}
        if math.isfinite(low):
            axes.plot([low, high], [row, row], color=shade, alpha=0.55, **style)
        else:
            axes.plot([0, value], [row, row], color=palette.other, **style)
    for is_significant, shade in ((True, colour), (False, palette.other)):
        shown = [row for row in rows if (row in significant) == is_significant]
        means = [rows[row][0] for row in shown]
        draw_dots(axes, means, shown, colour=shade, size=9.0, zorder=4)
    set_ticks(axes, x=3)


def draw_ablation(evidence: Evidence, palette: Palette) -> Drawing | None:
    """Draw the gain of each parameter at the optimum and alone, ranked, with intervals."""
    entries = [entry for entry in evidence.ablation if entry.reverted or entry.alone]
    if not entries:
        return None
    entries.sort(key=lambda entry: -(entry.reverted or entry.alone).mean)  # type: ignore[union-attr]
    entries = entries[:_MAX_ROWS]
    gains = [gain for entry in entries for gain in (entry.reverted, entry.alone) if gain]
    labels = make_labels(evidence.names or [entry.name for entry in entries])
    texts = [labels.get(entry.name, entry.name) for entry in entries]
    changes = [
        f"{format_number(entry.default)} → {format_number(entry.tuned)}" for entry in entries
    ]
    wider = [max(pair, key=len) for pair in zip(texts, changes, strict=True)]
    layout = RowLayout(wider, palette, top=50, step=46)
    axes = layout.add_row_axes(layout.left, layout.width - 16)
    _set_limits(axes, gains)
    axes.axvline(0, color=palette.ink, linewidth=1.2, zorder=2)
    set_ticks(axes, x=6)
    for row, entry in enumerate(entries):
        if row % 2:
            axes.axhspan(
                row - 0.5, row + 0.5, facecolor=palette.grid, alpha=0.35, linewidth=0, zorder=0
            )
        for gain, p, y, colour in (
            (entry.reverted, entry.adjusted_reverted, row - 0.17, palette.best),
            (entry.alone, entry.adjusted_alone, row + 0.17, palette.accent),
        ):
            if gain is not None:
                significant = p is not None and p < ALPHA
                _draw_interval(axes, gain, y, colour, hollow=None if significant else palette.paper)
        layout.label_row(row, texts[row], shift=-1.0)
        style = {"colour": palette.muted, "size": TINY_SIZE}
        if palette.is_narrow:
            layout.label_row(row, changes[row], x=layout.width - 4, ha="right", **style)
        else:
            layout.label_row(row, changes[row], shift=15.0, **style)
    worth, left = "worth at the optimum", layout.left
    style = {"weight": "bold", "size": TINY_SIZE if palette.is_narrow else SMALL_SIZE}
    layout.add_text(left, 22, worth, colour=palette.best, **style)
    alone = ""
    if any(entry.alone for entry in entries):
        left_of_alone = left + measure_text(worth, style["size"]) * 1.1 + 18
        layout.add_text(left_of_alone, 22, "alone, from the start", colour=palette.accent, **style)
        alone = " Green: the start values with only this parameter tuned, against the start values."
    note = "filled: significant after Holm's correction"
    layout.add_text(left, 40, note, colour=palette.muted, size=TINY_SIZE)
    layout.label_bottom(axes, "gain in test perplexity, %")
    return Drawing(
        layout.canvas,
        "Ablation of the optimum",
        "One parameter at a time, from start to tuned value, on "
        f"{max(gain.count for gain in gains)} paired seeds with 95 % intervals. Blue: the optimum "
        f"against the optimum with this parameter set back to its start value.{alone} Right of "
        "zero is better.",
    )


def _set_limits(axes: Axes, gains: Sequence[Comparison]) -> None:
    """Set limits that show every mean; the widest intervals may extend beyond them."""
    means = [gain.mean for gain in gains]
    widths = sorted(gain.high - gain.low for gain in gains)
    span = max(max(means) - min(means), *widths[: len(gains) - len(gains) // 4], 0.1)
    low = max(min(gain.low for gain in gains), min(means) - 1.2 * span)
    high = min(max(gain.high for gain in gains), max(means) + 1.2 * span)
    axes.set_xlim(min(low, 0.0) - 0.04 * span, max(high, 0.0) + 0.04 * span)


def _draw_interval(
    axes: Axes, gain: Comparison, y: float, colour: str, *, hollow: str | None
) -> None:
    """Draw a mean with its interval; hollow is the colour inside of a point."""
    alpha = 0.6 if hollow else 1.0
    line = {"linewidth": 2.4, "solid_capstyle": "round", "alpha": alpha}
    axes.plot([gain.low, gain.high], [y, y], color=colour, **line)
    draw_dots(axes, [gain.mean], [y], colour=colour, size=11.0, zorder=4)
    if hollow:
        draw_dots(axes, [gain.mean], [y], colour=hollow, size=6.5, zorder=5)
