"""Show a refinement: tables on a terminal, and the Markdown file beside the new search space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from synaptune.analysis.refine.exact_tests import CONFIDENCE
from synaptune.analysis.refine.rule import ALPHA, Proposal, Refinement
from synaptune.analysis.refine.runs import ParameterTest, RunTable
from synaptune.report.markdown import escape_markdown, format_table
from synaptune.report.table_model import Column, Table

if TYPE_CHECKING:
    from rich.console import Console

    from synaptune.search.space.space import Dimension

REFINEMENT_TITLE = "Refined search space"  # begins every Markdown file of ours
_PROPOSAL_COLUMNS = (
    Column("parameter", "name"),
    Column("before"),
    Column("proposed"),
    Column("p", "value"),
    Column("p adjusted", "value"),
    Column("supported"),
    Column("reason"),
)
_RULE_NOTES = {
    "tested": (
        f"narrowed where success depends on a parameter, adjusted p below {ALPHA:g}; the others"
        " stay as wide as they were"
    ),
    "plan": "as the focused-sweep plan narrows, whether or not the data support it",
}


def format_headline(refinement: Refinement) -> str:
    """What was ranked by what, in a sentence."""
    runs = refinement.runs
    sign = "at least" if runs.maximize else "at most"
    return (
        f"{refinement.winners} high performers of {len(runs.scores)} runs of {runs.source}:"
        f" {runs.metric} {sign} {refinement.threshold:.6g}"
    )


def tabulate_proposals(refinement: Refinement) -> Table:
    """Tabulate what is proposed, one row for each parameter."""
    rows = [
        (
            proposal.test.parameter.dimension.name,
            describe_range(proposal.test.parameter.dimension),
            describe_narrowing(proposal),
            format_p(proposal.test.p),
            format_p(proposal.adjusted_p),
            "yes" if proposal.supported else "no",
            proposal.narrowing.reason,
        )
        for proposal in refinement.proposals
    ]
    return Table("proposal", format_headline(refinement), _PROPOSAL_COLUMNS, rows)


def describe_narrowing(proposal: Proposal) -> str:
    """What is left of a parameter."""
    if not proposal.is_narrowed:
        return "unchanged"
    dimension, value = proposal.narrowing.after, proposal.narrowing.fixed
    return f"fixed at {value}" if dimension is None else describe_range(dimension)


def describe_range(dimension: Dimension) -> str:
    """What a parameter may be, in words."""
    if dimension.scale != "categorical":
        scale = ", log" if dimension.scale == "log" else ""
        return (
            f"{dimension.low:g} to"
            f" {dimension.high:g}{scale}{', integer' if dimension.integer else ''}"
        )
    total = sum(dimension.weights)
    shares = [f" ({format_percent(weight / total, 0)})" for weight in dimension.weights] or [
        ""
    ] * len(dimension.choices)
    return ", ".join(
        f"{value}{share}" for value, share in zip(dimension.choices, shares, strict=True)
    )


def tabulate_groups(test: ParameterTest, metric: str) -> Table:
    """Tabulate the success rates of a parameter, one row for each of its bins or values."""
    rows = [
        (
            group.label,
            group.runs,
            group.winners,
            format_percent(group.rate) if group.runs else "",
            f"{format_percent(group.low)} to {format_percent(group.high)}" if group.runs else "",
            "" if group.mean is None else group.mean,
        )
        for group in test.groups
    ]
    name = test.parameter.dimension.name
    columns = (
        Column(name),
        Column("runs", "count"),
        Column("high performers", "count"),
        Column("success rate", "value"),
        Column(f"{100 * CONFIDENCE:g} % interval", "value"),
        Column(f"mean {metric}", "value"),
    )
    return Table("groups", f"{name}: success {describe_tests(test)}", columns, rows)


def describe_tests(test: ParameterTest) -> str:
    """How the p-value of a parameter came about."""
    where = "bins" if test.edges else "values"
    among = f"among {where} p = {format_p(test.p_groups)}"
    return (
        among
        if test.p_position is None
        else f"{among}, of position p = {format_p(test.p_position)}"
    )


def list_remarks(refinement: Refinement) -> Iterator[str]:
    """What to know before believing any of it."""
    runs = refinement.runs
    yield f"rule {refinement.rule}: {_RULE_NOTES[refinement.rule]}"
    yield (
        f"p: exact test of success against {'bins or values' if _has_ranges(runs) else 'values'}"
        + (", and of its position in a range, the smaller doubled" if _has_ranges(runs) else "")
        + f"; adjusted for {len(refinement.proposals)} parameters by Holm"
    )
    if runs.adaptive:
        yield (
            f"the runs are of an adaptive search ({runs.adaptive}) and no independent sample:"
            " labels are shuffled within generations only, rates and means are of where it went,"
            " and parameters that it moves together are not told apart"
        )
    if not any(proposal.is_narrowed for proposal in refinement.proposals):
        yield "nothing is narrowed: the data support no smaller space than the one they are from"
    elif all(proposal.narrowing.after is None for proposal in refinement.proposals):
        yield "every parameter is fixed: nothing is left to search"
    yield from runs.notes


def format_refinement(refinement: Refinement, space: str) -> str:
    """Return the Markdown file; space: the search-space file that it explains."""
    runs = refinement.runs
    parts = [
        f"# {REFINEMENT_TITLE} of {escape_markdown(runs.source)}",
        f"{escape_markdown(format_headline(refinement))}.",
        f"Run it with `search_space={space}`.",
        "## Proposal",
        format_table(tabulate_proposals(refinement)),
        "\n".join(f"- {escape_markdown(remark)}" for remark in list_remarks(refinement)),
        "## Success rates",
    ]
    for proposal in refinement.proposals:
        parts += [
            format_table(tabulate_groups(proposal.test, runs.metric)),
            f"Success {escape_markdown(describe_tests(proposal.test))}.",
        ]
    if runs.left_out:
        columns = (Column("column"), Column("reason"))
        parts += [
            "## Columns that are no parameters",
            format_table(Table("left_out", "", columns, runs.left_out)),
        ]
    return "\n\n".join(parts) + "\n"


def print_refinement(refinement: Refinement, console: Console) -> None:
    """Print the proposal, the tables of what is narrowed, and the remarks."""
    from synaptune.report.console import print_lines, print_table

    runs, table = refinement.runs, tabulate_proposals(refinement)
    narrowed = [proposal for proposal in refinement.proposals if proposal.is_narrowed]
    for proposal in narrowed:  # the Markdown file has all of them
        print_table(tabulate_groups(proposal.test, runs.metric), console)
    # The reasons are sentences: they stand below the table.
    rows = [row[:-1] for row in table.rows]
    print_table(table._replace(columns=table.columns[:-1], rows=rows), console)
    lines = [
        f"{proposal.test.parameter.dimension.name}: {proposal.narrowing.reason}"
        for proposal in narrowed
    ]
    lines += list_remarks(refinement)
    if runs.left_out:
        listed = "; ".join(f"{name} ({reason})" for name, reason in runs.left_out)
        lines.append(f"no parameters: {listed}")
    print_lines((f"  {line}" for line in lines), console)


def format_percent(part: float, digits: int = 1) -> str:
    """A part of one in percent."""
    return f"{100.0 * part:.{digits}f} %"


def format_p(p: float) -> str:
    """A p-value with two digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _has_ranges(runs: RunTable) -> bool:
    return any(parameter.dimension.scale != "categorical" for parameter in runs.parameters)
