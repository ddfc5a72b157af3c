"""A refined search space as tables in a terminal, and as a Markdown file beside the space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.refine.exact_tests import CONFIDENCE
from synaptune.analysis.refine.rule import ALPHA, Proposal, Refinement
from synaptune.analysis.refine.runs import ParameterTest, RunTable

if TYPE_CHECKING:
    from rich.console import Console

    from synaptune.search.space.space import Dimension

REFINEMENT_TITLE = "Refined search space"  # the first words of every such Markdown file
TextRow = tuple[str, ...]
_PROPOSAL_COLUMNS = ("parameter", "before", "proposed", "p", "p adjusted", "supported", "reason")
_GROUP_COLUMNS = (
    "parameter",
    "runs",
    "high performers",
    "success rate",
    f"{100 * CONFIDENCE:g} % interval",
    "mean",
)
_RULE_NOTES = {
    "tested": f"narrowed where success depends on a parameter, adjusted p below {ALPHA:g}; "
    "the other ranges do not change",
    "plan": "narrowed as in the focused-sweep plan, whether or not the data support it",
}


def format_headline(refinement: Refinement) -> str:
    """Describe the high performers in a sentence."""
    runs = refinement.runs
    bound = "at least" if runs.maximize else "at most"
    return (
        f"{refinement.winners} high performers of {len(runs.scores)} runs of {runs.source}: "
        f"{runs.metric} {bound} {refinement.threshold:.6g}"
    )


def make_proposal_rows(refinement: Refinement) -> list[TextRow]:
    """Make one row for each parameter, with the columns `_PROPOSAL_COLUMNS`."""
    return [
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


def describe_narrowing(proposal: Proposal) -> str:
    """Describe the proposed range of a parameter."""
    if not proposal.is_narrowed:
        return "unchanged"
    dimension, value = proposal.narrowing.after, proposal.narrowing.fixed
    return f"fixed at {value}" if dimension is None else describe_range(dimension)


def describe_range(dimension: Dimension) -> str:
    """Describe the range or the choices of a parameter."""
    if dimension.scale != "categorical":
        scale = ", log" if dimension.scale == "log" else ""
        integer = ", integer" if dimension.integer else ""
        return f"{dimension.low:g} to {dimension.high:g}{scale}{integer}"
    total = sum(dimension.weights)
    shares = [f" ({format_percent(weight / total, 0)})" for weight in dimension.weights] or [
        ""
    ] * len(dimension.choices)
    return ", ".join(
        f"{value}{share}" for value, share in zip(dimension.choices, shares, strict=True)
    )


def make_group_rows(test: ParameterTest) -> list[TextRow]:
    """Make one row for each bin or value of a parameter, with the columns `_GROUP_COLUMNS`."""
    return [
        (
            group.label,
            str(group.runs),
            str(group.winners),
            format_percent(group.rate) if group.runs else "",
            f"{format_percent(group.low)} to {format_percent(group.high)}" if group.runs else "",
            "" if group.mean is None else f"{group.mean:.4g}",
        )
        for group in test.groups
    ]


def describe_tests(test: ParameterTest) -> str:
    """Describe the tests behind the p-value of a parameter."""
    groups = "bins" if test.edges else "values"
    among = f"among {groups} p = {format_p(test.p_groups)}"
    return (
        among
        if test.p_position is None
        else f"{among}, of position p = {format_p(test.p_position)}"
    )


def list_remarks(refinement: Refinement) -> Iterator[str]:
    """List the remarks on the rule, the tests and the runs."""
    runs = refinement.runs
    yield f"rule {refinement.rule}: {_RULE_NOTES[refinement.rule]}"
    yield (
        f"p: exact test of success against {'bins or values' if _has_ranges(runs) else 'values'}"
        + (", and of its position in a range, the smaller doubled" if _has_ranges(runs) else "")
        + f"; adjusted for {len(refinement.proposals)} parameters by Holm"
    )
    if runs.adaptive:
        yield (
            f"the runs are of an adaptive search ({runs.adaptive}) and no independent sample: "
            "labels are shuffled within generations only, rates and means are those of the sampled "
            "region, and correlated parameters cannot be separated"
        )
    if not any(proposal.is_narrowed for proposal in refinement.proposals):
        yield "nothing is narrowed: the data support no smaller space"
    elif all(proposal.narrowing.after is None for proposal in refinement.proposals):
        yield "every parameter is fixed: nothing is left to search"
    yield from runs.notes


def format_refinement(refinement: Refinement, space: str) -> str:
    """Format the Markdown file that explains the search-space file `space`."""
    runs = refinement.runs
    lines = [
        f"# {REFINEMENT_TITLE} of {_escape_cell(runs.source)}",
        "",
        f"{_escape_cell(format_headline(refinement))}.",
        "",
    ]
    lines += [
        f"Run it with `search_space={space}`.",
        "",
        "## Proposal",
        "",
        *_format_table(_PROPOSAL_COLUMNS, make_proposal_rows(refinement)),
        "",
    ]
    lines += [f"- {_escape_cell(remark)}" for remark in list_remarks(refinement)]
    lines += ["", "## Success rates"]
    for proposal in refinement.proposals:
        test = proposal.test
        head = (
            _escape_cell(test.parameter.dimension.name),
            *_GROUP_COLUMNS[1:-1],
            f"mean {runs.metric}",
        )
        lines += [
            "",
            *_format_table(head, make_group_rows(test)),
            "",
            f"Success {_escape_cell(describe_tests(test))}.",
        ]
    if runs.left_out:
        lines += [
            "",
            "## Columns that are not parameters",
            "",
            *_format_table(("column", "reason"), runs.left_out),
        ]
    return "\n".join(lines) + "\n"


def print_refinement(refinement: Refinement, console: Console) -> None:
    """Print the proposal, the tables of the narrowed parameters, and the remarks."""
    from rich.markup import escape
    from rich.table import Table

    def table(title: str, head: Sequence[str], rows: Sequence[TextRow], right: range) -> Table:
        made = Table(title=escape(title), title_justify="left")
        for place, name in enumerate(head):
            made.add_column(
                escape(name), justify="right" if place in right else "left", overflow="fold"
            )
        for row in rows:
            made.add_row(*map(escape, row))
        return made

    # The Markdown file has the tables of all parameters.
    for proposal in (entry for entry in refinement.proposals if entry.is_narrowed):
        found = proposal.test
        head = (*_GROUP_COLUMNS[:-1], f"mean {refinement.runs.metric}")
        name = found.parameter.dimension.name
        console.print(
            table(
                f"{name}: success {describe_tests(found)}",
                ("", *head[1:]),
                make_group_rows(found),
                range(1, len(head)),
            )
        )
    rows = make_proposal_rows(refinement)
    broken = [(".\n".join(name.rsplit(".", 1)), *rest) for name, *rest, _ in rows]
    console.print(
        table(format_headline(refinement), _PROPOSAL_COLUMNS[:-1], broken, range(3, 5))
    )  # the two p
    for (name, *_, reason), proposal in zip(rows, refinement.proposals, strict=True):
        if proposal.is_narrowed:
            console.print(f"  {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    for remark in list_remarks(refinement):
        console.print(f"  {remark}", highlight=False, soft_wrap=True, markup=False)
    if refinement.runs.left_out:
        listed = "; ".join(f"{name} ({reason})" for name, reason in refinement.runs.left_out)
        console.print(f"  not parameters: {listed}", highlight=False, soft_wrap=True, markup=False)


def format_percent(part: float, digits: int = 1) -> str:
    """Format a fraction as percent."""
    return f"{100.0 * part:.{digits}f} %"


def format_p(p: float) -> str:
    """Format a p-value with two significant digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _has_ranges(runs: RunTable) -> bool:
    return any(parameter.dimension.scale != "categorical" for parameter in runs.parameters)


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_format_line(head), "|" + "---|" * len(head), *map(_format_line, rows)]


def _format_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape_cell, cells)) + " |"


def _escape_cell(text: str) -> str:
    """Escape a text for Markdown and put it on one line."""
    for letter in "\\|`*<[":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
