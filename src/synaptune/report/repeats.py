"""Repeated searches in a report: spread of the gain, and moves of each parameter."""

from __future__ import annotations

from synaptune.analysis.repeats import Repeats
from synaptune.core.text import format_parameter
from synaptune.report.table_model import Column, Table, make_table


def describe_repeats(repeats: Repeats) -> str:
    """Describe the spread of the gain in a sentence without its full stop."""
    *first, last = (f"{gain:z.1f}" for gain in repeats.gains)
    return (
        f"{len(repeats.gains)} searches with different search seeds and the same training seeds"
        f" found {', '.join(first)} and {last} % (mean {repeats.mean:z.1f}, standard deviation"
        f" {repeats.deviation:z.1f})"
    )


def tabulate_repeats(repeats: Repeats | None) -> Table:
    """Make the table of the parameters over all searches; the most often moved come first."""
    entries = [] if repeats is None else list(repeats.parameters)
    entries.sort(key=lambda entry: -max(entry.raised, entry.lowered))
    count = 0 if repeats is None else len(repeats.gains)
    cells = {
        Column("parameter", "name"): [entry.name for entry in entries],
        Column("start", "value"): [entry.start for entry in entries],
        Column("best of each search"): [
            ", ".join(map(format_parameter, entry.best)) for entry in entries
        ],
        Column("raised"): [f"{entry.raised} of {count}" for entry in entries],
        Column("lowered"): [f"{entry.lowered} of {count}" for entry in entries],
    }
    note = "Raised and lowered: by at least a tenth of the range."
    if repeats is not None:
        note = f"{describe_repeats(repeats)}. Studies: {', '.join(repeats.studies)}. {note}"
    return make_table("repeats", "Repeated searches", cells, note)
