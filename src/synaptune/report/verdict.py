"""The verdict of a protocol, for people: perplexity before and after, the interval, the decision, the parameters."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_COLOURS = {"proceed": "green", "re-evaluate": "yellow", "stop": "red"}


def show_verdict(summary: Mapping[str, Any], console: Console) -> None:
    """Print a summary (the content of summary.json)."""
    before, after, gain = summary["baseline"], summary["best"], summary["improvement"]
    results = Table(title=f"Verdict of study {summary['study']}", title_justify="left")
    results.add_column("on fresh seeds")
    for heading in ("start", "tuned"):
        results.add_column(heading, justify="right")
    results.add_column("improvement, 95 % interval", justify="right")
    results.add_row(
        "test perplexity",
        f"{statistics.fmean(before['test_perplexity']):.4g}",
        f"{statistics.fmean(after['test_perplexity']):.4g}",
        f"{gain['mean']:.2f} %  ({gain['low']:.2f} to {gain['high']:.2f})",
    )
    losses = [f"{statistics.fmean(side['validation_loss']):.4f}" for side in (before, after)]
    results.add_row("validation loss [nats/token]", *losses, "")
    console.print(results)
    values = Table(title="Parameters", title_justify="left")
    values.add_column("name")
    for heading in ("start", "tuned"):
        values.add_column(heading, justify="right")
    for name, pair in summary["parameters"].items():
        values.add_row(name, _number(pair["start"]), _number(pair["best"]))
    console.print(values)
    evaluated = f"{summary['evaluations']} evaluations, {summary['failed']} failed, {len(before['seeds'])} paired seeds"
    console.print(f"{evaluated}, {summary['seconds'] / 60:.1f} minutes of runs", highlight=False)
    colour = _COLOURS[summary["decision"]]
    console.print(f"[bold {colour}]{summary['decision']}[/]: {summary['reason']}", highlight=False)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
