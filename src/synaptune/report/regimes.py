"""Regimes in a report: the table of the gains."""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.analysis.regimes import Regime
from synaptune.report.table_model import Column, Table, make_table


def tabulate_regimes(regimes: Sequence[Regime]) -> Table:
    """Make the table of all variants, in the order in which they were compared."""
    rows = [(regime, variant) for regime in regimes for variant in regime.variants]
    cells = {
        Column("regime"): [regime.name for regime, _ in rows],
        Column("equal"): [regime.equal for regime, _ in rows],
        Column("variant"): [variant.name for _, variant in rows],
        Column("metric"): [regime.metric.replace("_", " ") for regime, _ in rows],
        Column("mean", "loss"): [variant.score for _, variant in rows],
        Column("gain", "gain", "%"): [variant.gain for _, variant in rows],
    }
    note = (
        "Each mechanism in the task of its role, on fresh paired seeds. A gain is the difference to"
        " the first variant of the regime, with its 95 % interval; positive is better."
    )
    return make_table("regimes", "Mechanisms in their own tasks", cells, note)
