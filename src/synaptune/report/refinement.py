"""A refined search space: tables on a terminal, and the Markdown file beside its YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from synaptune.analysis.refine.exact_tests import CONFIDENCE
from synaptune.analysis.refine.rule import ALPHA, Proposal, Refinement
from synaptune.analysis.refine.runs import ParameterTest
from synaptune.core.text import format_parameter
from synaptune.report.markdown import escape_markdown, format_table
from synaptune.report.table_model import (
    Column,
    Table,
    describe_range,
    format_cell,
    format_percent,
    make_table,
)

if TYPE_CHECKING:
    from rich.console import Console

REFINEMENT_TITLE = "Refined search space"  # every Markdown file of this module begins with it
_RULE_NOTES = {
    "tested": (
        "a range is narrowed where success depends on the parameter, with an adjusted p below "
        f"{ALPHA:g}; the other ranges are unchanged"
    ),
    "plan": "ranges are narrowed as in the focused-sweep plan, even without support of the data",
}


def format_headline(refinement: Refinement) -> str:
    """Describe in one line which runs count as high performers."""
    runs = refinement.runs
    bound = "at least" if runs.maximize else "at most"
    return (
        f"{refinement.winners} high performers of {len(runs.scores)} runs of {runs.source}:"
        f" {runs.metric} {bound} {refinement.threshold:.6g}"
    )


def tabulate_proposals(refinement: Refinement) -> Table:
    """Make the table of the proposed ranges, with a row for each parameter."""
    proposals = refinement.proposals
    cells = {
        Column("parameter", "name"): [entry.test.parameter.dimension.name for entry in proposals],
        Column("before", "range"): [entry.test.parameter.dimension for entry in proposals],
        Column("proposed"): [describe_narrowing(entry) for entry in proposals],
        Column("p", "p"): [entry.test.p for entry in proposals],
        Column("p adjusted", "p"): [entry.adjusted_p for entry in proposals],
        Column("p of the effect", "p"): [entry.effect_p for entry in proposals],
        Column("supported"): ["yes" if entry.supported else "no" for entry in proposals],
        Column("reason"): [entry.narrowing.reason for entry in proposals],
    }
    if not refinement.runs.effects:
        del cells[Column("p of the effect", "p")]
    return make_table("proposal", format_headline(refinement), cells)


def describe_narrowing(proposal: Proposal) -> str:
    """Describe the proposed range of a parameter."""
    if not proposal.is_narrowed:
        return "unchanged"
    dimension, value = proposal.narrowing.after, proposal.narrowing.fixed
    return f"fixed at {format_parameter(value)}" if dimension is None else describe_range(dimension)


def tabulate_groups(test: ParameterTest, metric: str) -> Table:
    """Make the table of the success rates of a parameter, with a row for each bin or value."""
    rows = [
        (
            group.label,
            group.runs,
            group.winners,
            format_percent(group.rate) if group.runs else None,
            f"{format_percent(group.low)} to {format_percent(group.high)}" if group.runs else None,
            group.mean,
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
    """Describe the p-values of the tests of a parameter."""
    groups = "bins" if test.edges else "values"
    text = f"among {groups} p = {format_cell(test.p_groups, 'p')}"
    if test.p_position is not None:
        text += f", of position p = {format_cell(test.p_position, 'p')}"
    return text


def list_remarks(refinement: Refinement) -> Iterator[str]:
    """List what limits the proposal: its rule, its tests and the origin of the runs."""
    runs = refinement.runs
    yield f"rule {refinement.rule}: {_RULE_NOTES[refinement.rule]}"
    tests = "p: exact test of success against values"
    if any(parameter.dimension.scale != "categorical" for parameter in runs.parameters):
        tests = (
            "p: exact test of success against bins or values, and of its position in a range, "
            "the smaller one doubled"
        )
    yield f"{tests}; adjusted for {len(refinement.proposals)} parameters by Holm"
    if runs.effects:
        yield (
            "p of the effect: adjusted p of the report, whether the loss of all trials depends on "
            "the parameter; p asks whether the high performers lie elsewhere in its range, and the "
            "two differ; a range is narrowed only if both are significant"
        )
    if runs.adaptive:
        yield (
            f"the runs are from an adaptive search ({runs.adaptive}) and no independent sample: "
            "labels are shuffled within generations only, rates and means describe the points that "
            "the search chose, and parameters that it changes together cannot be separated"
        )
    if not any(proposal.is_narrowed for proposal in refinement.proposals):
        yield "nothing is narrowed: the data do not support a smaller search space"
    elif all(proposal.narrowing.after is None for proposal in refinement.proposals):
        yield "every parameter is fixed: no parameter is left to search"
    yield from runs.notes


def format_refinement(refinement: Refinement, space: str) -> str:
    """Format the Markdown file.

    Args:
        refinement: the refined search space.
        space: name of the search-space file that the Markdown file explains.
    """
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
            "## Columns that are not parameters",
            format_table(Table("left_out", "", columns, runs.left_out)),
        ]
    return "\n\n".join(parts) + "\n"


def print_refinement(refinement: Refinement, console: Console) -> None:
    """Print the proposal, the success rates of the narrowed parameters, and the remarks."""
    from synaptune.report.console import print_lines, print_table

    runs, table = refinement.runs, tabulate_proposals(refinement)
    narrowed = [proposal for proposal in refinement.proposals if proposal.is_narrowed]
    for proposal in narrowed:
        print_table(tabulate_groups(proposal.test, runs.metric), console)
    # The reasons are sentences, which are printed below the table.
    rows = [row[:-1] for row in table.rows]
    print_table(table._replace(columns=table.columns[:-1], rows=rows), console)
    reasons = [f"{row[0]}: {row[-1]}" for row in table.rows if row[2] != "unchanged"]
    columns = "; ".join(f"{name} ({reason})" for name, reason in runs.left_out)
    left_out = [f"columns that are not parameters: {columns}"] if columns else []
    lines = [*reasons, *list_remarks(refinement), *left_out]
    print_lines((f"  {line}" for line in lines), console)
