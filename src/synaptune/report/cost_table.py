"""Print the cost of a plan: a table and the assumptions behind it."""

from __future__ import annotations

from rich.console import Console

from synaptune.analysis.cost import PlanCost, SecondsRange
from synaptune.core.text import format_duration
from synaptune.report.console import print_lines, print_table
from synaptune.report.table_model import Column, Table


def print_cost(cost: PlanCost, console: Console, *, title: str, notes: list[str]) -> None:
    """Print the table, the sums and the notes on where they come from."""
    columns = (
        Column("stage"),
        Column("runs", "count"),
        Column("one run", "value"),
        Column("device hours", "value"),
    )
    rows: list[tuple[object, ...]] = [
        (row.stage, row.runs, _format_run(row.seconds), _format_hours(row.device_hours))
        for row in cost.rows
    ]
    rows.append(("all", "", "", _format_hours(cost.device_hours)))
    print_table(Table("cost", title, columns, rows), console)
    between = (
        f" (10 to 90 %: {_format_hours(cost.low)} to {_format_hours(cost.high)})"
        if cost.low is not None and cost.high is not None
        else ""
    )
    money = f", money {cost.money:.4g}" if cost.money is not None else ""
    days = (
        f"{cost.days:.2g} calendar days"
        if cost.days >= 0.1
        else f"{format_duration(cost.days * 86400)} by the clock"
    )
    total = f"{_format_hours(cost.device_hours)} device hours{between}{money}, {days}"
    print_lines([total, *(f"  {line}" for line in notes)], console)


def _format_run(seconds: SecondsRange) -> str:
    between = (
        f" ({format_duration(seconds.low)} to {format_duration(seconds.high)})"
        if seconds.low is not None and seconds.high is not None
        else ""
    )
    return format_duration(seconds.median) + between


def _format_hours(hours: float) -> str:
    return f"{hours:.3g}"
