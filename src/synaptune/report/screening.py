"""The section "What matters" of a report: the effects of a screening, as table and sentences."""

from __future__ import annotations

from synaptune.analysis.results import Evidence, Screening
from synaptune.analysis.screening import ALPHA, group_by_subsystem
from synaptune.core.text import make_labels
from synaptune.report.table_model import Column, Table, make_table

_NAMED = 6


def tabulate_effects(screening: Screening | None, *, limit: int | None = None) -> Table:
    """Make the table of the effects, the largest first; `limit` is the number of rows."""
    effects = [] if screening is None else list(screening.effects)[:limit]
    cells = {
        Column("parameter", "name"): [effect.name for effect in effects],
        Column("effect", "loss", "nats/token"): [round(effect.effect, 5) for effect in effects],
        Column("95 % interval"): [f"{effect.low:z.4f} to {effect.high:z.4f}" for effect in effects],
        Column("p", "p"): [effect.p for effect in effects],
        Column("p (Holm)", "p"): [effect.adjusted_p for effect in effects],
        Column("searched"): ["yes" if effect.chosen else "no" for effect in effects],
    }
    note = ""
    if screening is not None and limit is not None and len(screening.effects) > limit:
        note = f"the largest {limit} of {len(screening.effects)}; screening.json has all"
    return make_table("screening", "What matters: effect on the loss", cells, note)


def tabulate_subsystems(evidence: Evidence) -> Table:
    """Make the table of the shares of the subsystems."""
    shares = {} if evidence.screening is None else group_by_subsystem(evidence.screening)
    cells = {
        Column("subsystem"): list(shares),
        Column("share of the squared effects", "share"): list(shares.values()),
    }
    return make_table("subsystems", "What matters, by subsystem", cells)


def describe_screening(screening: Screening) -> list[str]:
    """Describe a screening in sentences."""
    significant = [effect for effect in screening.effects if effect.adjusted_p < ALPHA]
    chosen = [effect for effect in screening.effects if effect.chosen]
    count = len(screening.effects)
    labels = make_labels([effect.name for effect in screening.effects])
    names = ", ".join(
        f"{labels[effect.name]} ({effect.effect:+z.4f})" for effect in significant[:_NAMED]
    )
    more = f" and {len(significant) - _NAMED} more" if len(significant) > _NAMED else ""
    lines = [
        f"{len(significant)} of {count} effects are significant (Holm, 5 %)"
        + (f": {names}{more}" if significant else ""),
        f"{screening.runs} runs used, {screening.failed} failed;"
        f" standard error of an effect {screening.error:z.4f} nats/token",
        f"the search varies {', '.join(labels[effect.name] for effect in chosen)}",
    ]
    if not screening.is_folded or screening.runs < 2 * count:
        lines.append("few runs for so many parameters: interactions may show as effects")
    lines += [
        f"interaction of {labels[pair.first]} with {labels[pair.second]}:"
        f" {pair.effect:+z.4f} nats/token (p {pair.adjusted_p:.2g})"
        for pair in screening.interactions
    ]
    return lines


def has_significant_effect(evidence: Evidence) -> bool:
    """Return whether the screening of a study has found a significant effect."""
    effects = () if evidence.screening is None else evidence.screening.effects
    return any(effect.adjusted_p < ALPHA for effect in effects)


def explain_screening(evidence: Evidence) -> str:
    """Return the sentences of the section; empty without a screening."""
    if evidence.screening is None:
        return ""
    sentences = [
        f"{line[:1].upper()}{line[1:]}." for line in describe_screening(evidence.screening)
    ]
    return " ".join(
        [
            "Every parameter at two levels, half way from its default to each end of its range;"
            " an effect is the mean loss at the high level less that at the low level.",
            *sentences,
        ]
    )
