"""A plan's price for people: a small table and the assumptions behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synaptune.analysis.cost import Bill, Spread
from synaptune.core.text import duration

if TYPE_CHECKING:
    from rich.console import Console


def show_bill(bill: Bill, console: Console, *, title: str, notes: list[str]) -> None:
    """Print the table, the sums and the notes on where they come from."""
    from rich.table import Table

    table = Table("stage", title=title, title_justify="left")
    for name in ("runs", "one run", "device hours"):
        table.add_column(name, justify="right")
    for row in bill.rows:
        table.add_row(row.stage, str(row.runs), _run(row.seconds), _hours(row.device_hours))
    table.add_section()
    table.add_row("all", "", "", _hours(bill.device_hours))
    console.print(table)
    between = f" (10 to 90 %: {_hours(bill.low)} to {_hours(bill.high)})" if bill.low is not None and bill.high is not None else ""
    money = f", money {bill.money:.4g}" if bill.money is not None else ""
    days = f"{bill.days:.2g} calendar days" if bill.days >= 0.1 else f"{duration(bill.days * 86400)} by the clock"
    console.print(f"{_hours(bill.device_hours)} device hours{between}{money}, {days}", highlight=False, soft_wrap=True)
    for line in notes:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _run(seconds: Spread) -> str:
    between = f" ({duration(seconds.low)} to {duration(seconds.high)})" if seconds.low is not None and seconds.high is not None else ""
    return duration(seconds.median) + between


def _hours(hours: float) -> str:
    return f"{hours:.3g}"
