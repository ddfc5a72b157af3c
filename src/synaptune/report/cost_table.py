"""Printing of the expected cost of a plan."""

from __future__ import annotations

from rich.console import Console

from synaptune.analysis.cost import PlanCost, SecondsRange
from synaptune.core.text import format_duration
from synaptune.report.console import print_lines, print_table
from synaptune.report.table_model import Column, Table


def print_cost(cost: PlanCost, console: Console, *, title: str, notes: list[str]) -> None:
    """Print the cost of each stage, the sums, and the assumptions.

    Args:
        cost: the expected cost.
        console: where to print.
        title: title of the table.
        notes: assumptions of the estimate, one a line.
    """
    columns = (
        Column("stage"),
        Column("runs", "count"),
        Column("one run", "value"),
        Column("device hours", "value"),
    )
    rows: list[tuple[object, ...]] = [
        (row.stage, row.runs, _format_seconds(row.seconds), f"{row.device_hours:.3g}")
        for row in cost.rows
    ]
    hours = f"{cost.device_hours:.3g}"
    print_table(Table("cost", title, columns, [*rows, ("all", "", None, hours)]), console)
    interval, money = "", "" if cost.money is None else f", money {cost.money:.4g}"
    if cost.low is not None and cost.high is not None:
        interval = f" (10 to 90 %: {cost.low:.3g} to {cost.high:.3g})"
    days = (
        f"{cost.days:.2g} calendar days"
        if cost.days >= 0.1
        else f"{format_duration(cost.days * 86400)} of wall-clock time"
    )
    total = f"{hours} device hours{interval}{money}, {days}"
    print_lines([total, *(f"  {note}" for note in notes)], console)


def _format_seconds(seconds: SecondsRange) -> str:
    if seconds.low is None or seconds.high is None or seconds.low == seconds.high:
        return format_duration(seconds.median)
    interval = f"{format_duration(seconds.low)} to {format_duration(seconds.high)}"
    return f"{format_duration(seconds.median)} ({interval})"
