"""The cost of a plan as a table for the console, with its assumptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synaptune.analysis.cost import PlanCost, SecondsRange
from synaptune.core.text import format_duration

if TYPE_CHECKING:
    from rich.console import Console


def print_cost(cost: PlanCost, console: Console, *, title: str, notes: list[str]) -> None:
    """Print the table, the sums and the notes on their sources."""
    from rich.table import Table

    table = Table("stage", title=title, title_justify="left")
    for name in ("runs", "one run", "device hours"):
        table.add_column(name, justify="right")
    for row in cost.rows:
        table.add_row(
            row.stage, str(row.runs), _format_run(row.seconds), _format_hours(row.device_hours)
        )
    table.add_section()
    table.add_row("all", "", "", _format_hours(cost.device_hours))
    console.print(table)
    between = (
        f" (10 to 90 %: {_format_hours(cost.low)} to {_format_hours(cost.high)})"
        if cost.low is not None and cost.high is not None
        else ""
    )
    money = f", money {cost.money:.4g}" if cost.money is not None else ""
    days = (
        f"{cost.days:.2g} calendar days"
        if cost.days >= 0.1
        else f"{format_duration(cost.days * 86400)} of wall-clock time"
    )
    console.print(
        f"{_format_hours(cost.device_hours)} device hours{between}{money}, {days}",
        highlight=False,
        soft_wrap=True,
    )
    for line in notes:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _format_run(seconds: SecondsRange) -> str:
    between = (
        f" ({format_duration(seconds.low)} to {format_duration(seconds.high)})"
        if seconds.low is not None and seconds.high is not None
        else ""
    )
    return format_duration(seconds.median) + between


def _format_hours(hours: float) -> str:
    return f"{hours:.3g}"
