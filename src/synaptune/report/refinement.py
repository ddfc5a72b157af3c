"""A refinement for people: tables in a terminal, and the Markdown file that goes with the new search space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.refine.exact_tests import LEVEL
from synaptune.analysis.refine.rule import ALPHA, Proposal, Refinement
from synaptune.analysis.refine.runs import Found, Runs

if TYPE_CHECKING:
    from rich.console import Console

    from synaptune.search.space.space import Dimension

TITLE = "Refined search space"  # begins every Markdown file of ours
Row = tuple[str, ...]
_PROPOSED = ("parameter", "before", "proposed", "p", "p adjusted", "supported", "reason")
_TABULATED = ("parameter", "runs", "high performers", "success rate", f"{100 * LEVEL:g} % interval", "mean")
_RULES = {
    "tested": f"narrowed where success depends on a parameter, adjusted p below {ALPHA:g}; the others stay as wide as they were",
    "plan": "as the focused-sweep plan narrows, whether or not the data support it",
}


def headline(refinement: Refinement) -> str:
    """What was ranked by what, in a sentence."""
    runs = refinement.runs
    sign = "at least" if runs.maximize else "at most"
    return (
        f"{refinement.winners} high performers of {len(runs.scores)} runs of {runs.source}: {runs.metric} {sign} {refinement.threshold:.6g}"
    )


def proposed_rows(refinement: Refinement) -> list[Row]:
    """One row for each parameter, under `_PROPOSED`."""
    return [
        (
            proposal.found.parameter.dimension.name,
            reach(proposal.found.parameter.dimension),
            after(proposal),
            probability(proposal.found.p),
            probability(proposal.adjusted),
            "yes" if proposal.supported else "no",
            proposal.change.reason,
        )
        for proposal in refinement.proposals
    ]


def after(proposal: Proposal) -> str:
    """What is left of a parameter."""
    if not proposal.narrowed:
        return "unchanged"
    dimension, value = proposal.change.after, proposal.change.fixed
    return f"fixed at {value}" if dimension is None else reach(dimension)


def reach(dimension: Dimension) -> str:
    """What a parameter may be, in words."""
    if dimension.scale != "categorical":
        scale = ", log" if dimension.scale == "log" else ""
        return f"{dimension.low:g} to {dimension.high:g}{scale}{', integer' if dimension.integer else ''}"
    total = sum(dimension.weights)
    shares = [f" ({percent(weight / total, 0)})" for weight in dimension.weights] or [""] * len(dimension.choices)
    return ", ".join(f"{value}{share}" for value, share in zip(dimension.choices, shares, strict=True))


def tabulated_rows(found: Found) -> list[Row]:
    """One row for each bin or value of a parameter, under `_TABULATED`."""
    return [
        (
            group.label,
            str(group.runs),
            str(group.winners),
            percent(group.rate) if group.runs else "",
            f"{percent(group.low)} to {percent(group.high)}" if group.runs else "",
            "" if group.mean is None else f"{group.mean:.4g}",
        )
        for group in found.groups
    ]


def tests(found: Found) -> str:
    """How the p-value of a parameter came about."""
    where = "bins" if found.edges else "values"
    among = f"among {where} p = {probability(found.p_groups)}"
    return among if found.p_position is None else f"{among}, of position p = {probability(found.p_position)}"


def remarks(refinement: Refinement) -> Iterator[str]:
    """What to know before believing any of it."""
    runs = refinement.runs
    yield f"rule {refinement.rule}: {_RULES[refinement.rule]}"
    yield (
        f"p: exact test of success against {'bins or values' if _ranges(runs) else 'values'}"
        + (", and of its position in a range, the smaller doubled" if _ranges(runs) else "")
        + f"; adjusted for {len(refinement.proposals)} parameters by Holm"
    )
    if runs.adaptive:
        yield (
            f"the runs are of an adaptive search ({runs.adaptive}) and no independent sample: labels are shuffled within generations only, "
            "rates and means are of where it went, and parameters that it moves together are not told apart"
        )
    if not any(proposal.narrowed for proposal in refinement.proposals):
        yield "nothing is narrowed: the data support no smaller space than the one they are from"
    elif all(proposal.change.after is None for proposal in refinement.proposals):
        yield "every parameter is fixed: nothing is left to search"
    yield from runs.notes


def markdown(refinement: Refinement, space: str) -> str:
    """The Markdown file; space: the search-space file it explains."""
    runs = refinement.runs
    lines = [f"# {TITLE} of {_cell(runs.source)}", "", f"{_cell(headline(refinement))}.", ""]
    lines += [f"Run it with `search_space={space}`.", "", "## Proposal", "", *_table(_PROPOSED, proposed_rows(refinement)), ""]
    lines += [f"- {_cell(remark)}" for remark in remarks(refinement)]
    lines += ["", "## Success rates"]
    for proposal in refinement.proposals:
        found = proposal.found
        head = (_cell(found.parameter.dimension.name), *_TABULATED[1:-1], f"mean {runs.metric}")
        lines += ["", *_table(head, tabulated_rows(found)), "", f"Success {_cell(tests(found))}."]
    if runs.left_out:
        lines += ["", "## Columns that are no parameters", "", *_table(("column", "reason"), runs.left_out)]
    return "\n".join(lines) + "\n"


def show(refinement: Refinement, console: Console) -> None:
    """Print the proposal, the tables of what is narrowed, and the remarks."""
    from rich.markup import escape
    from rich.table import Table

    def table(title: str, head: Sequence[str], rows: Sequence[Row], right: range) -> Table:
        made = Table(title=escape(title), title_justify="left")
        for place, name in enumerate(head):
            made.add_column(escape(name), justify="right" if place in right else "left", overflow="fold")
        for row in rows:
            made.add_row(*map(escape, row))
        return made

    for proposal in (entry for entry in refinement.proposals if entry.narrowed):  # the Markdown file has them all
        found = proposal.found
        head = (*_TABULATED[:-1], f"mean {refinement.runs.metric}")
        name = found.parameter.dimension.name
        console.print(table(f"{name}: success {tests(found)}", ("", *head[1:]), tabulated_rows(found), range(1, len(head))))
    rows = proposed_rows(refinement)
    broken = [(".\n".join(name.rsplit(".", 1)), *rest) for name, *rest, _ in rows]
    console.print(table(headline(refinement), _PROPOSED[:-1], broken, range(3, 5)))  # the two p
    for (name, *_, reason), proposal in zip(rows, refinement.proposals, strict=True):
        if proposal.narrowed:
            console.print(f"  {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    for remark in remarks(refinement):
        console.print(f"  {remark}", highlight=False, soft_wrap=True, markup=False)
    if refinement.runs.left_out:
        listed = "; ".join(f"{name} ({reason})" for name, reason in refinement.runs.left_out)
        console.print(f"  no parameters: {listed}", highlight=False, soft_wrap=True, markup=False)


def percent(part: float, digits: int = 1) -> str:
    """A part of one in percent."""
    return f"{100.0 * part:.{digits}f} %"


def probability(p: float) -> str:
    """A p-value with two digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _ranges(runs: Runs) -> bool:
    return any(parameter.dimension.scale != "categorical" for parameter in runs.parameters)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    for letter in "\\|`*<[":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
