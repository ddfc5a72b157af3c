"""A refinement for people: tables in a terminal, and the Markdown file that goes with the new search space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from synaptune.analysis.refine.exact_tests import CONFIDENCE
from synaptune.analysis.refine.rule import ALPHA, Proposal, Refinement
from synaptune.analysis.refine.runs import ParameterTest, RunTable

if TYPE_CHECKING:
    from rich.console import Console

    from synaptune.search.space.space import Dimension

REFINEMENT_TITLE = "Refined search space"  # begins every Markdown file of ours
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
    "tested": f"narrowed where success depends on a parameter, adjusted p below {ALPHA:g}; the others stay as wide as they were",
    "plan": "as the focused-sweep plan narrows, whether or not the data support it",
}


def format_headline(refinement: Refinement) -> str:
    """What was ranked by what, in a sentence."""
    runs = refinement.runs
    sign = "at least" if runs.maximize else "at most"
    return f"{refinement.winners} high performers of {len(runs.scores)} runs of {runs.source}: {runs.metric} {sign} {refinement.threshold:.6g}"


def make_proposal_rows(refinement: Refinement) -> list[TextRow]:
    """One row for each parameter, under `_PROPOSAL_COLUMNS`."""
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
    """What is left of a parameter."""
    if not proposal.is_narrowed:
        return "unchanged"
    dimension, value = proposal.narrowing.after, proposal.narrowing.fixed
    return f"fixed at {value}" if dimension is None else describe_range(dimension)


def describe_range(dimension: Dimension) -> str:
    """What a parameter may be, in words."""
    if dimension.scale != "categorical":
        scale = ", log" if dimension.scale == "log" else ""
        return f"{dimension.low:g} to {dimension.high:g}{scale}{', integer' if dimension.integer else ''}"
    total = sum(dimension.weights)
    shares = [f" ({format_percent(weight / total, 0)})" for weight in dimension.weights] or [
        ""
    ] * len(dimension.choices)
    return ", ".join(
        f"{value}{share}" for value, share in zip(dimension.choices, shares, strict=True)
    )


def make_group_rows(test: ParameterTest) -> list[TextRow]:
    """One row for each bin or value of a parameter, under `_GROUP_COLUMNS`."""
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
            f"the runs are of an adaptive search ({runs.adaptive}) and no independent sample: labels are shuffled within generations only, "
            "rates and means are of where it went, and parameters that it moves together are not told apart"
        )
    if not any(proposal.is_narrowed for proposal in refinement.proposals):
        yield "nothing is narrowed: the data support no smaller space than the one they are from"
    elif all(proposal.narrowing.after is None for proposal in refinement.proposals):
        yield "every parameter is fixed: nothing is left to search"
    yield from runs.notes


def format_refinement(refinement: Refinement, space: str) -> str:
    """The Markdown file; space: the search-space file it explains."""
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
        found = proposal.test
        head = (
            _escape_cell(found.parameter.dimension.name),
            *_GROUP_COLUMNS[1:-1],
            f"mean {runs.metric}",
        )
        lines += [
            "",
            *_format_table(head, make_group_rows(found)),
            "",
            f"Success {_escape_cell(describe_tests(found))}.",
        ]
    if runs.left_out:
        lines += [
            "",
            "## Columns that are no parameters",
            "",
            *_format_table(("column", "reason"), runs.left_out),
        ]
    return "\n".join(lines) + "\n"


def print_refinement(refinement: Refinement, console: Console) -> None:
    """Print the proposal, the tables of what is narrowed, and the remarks."""
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

    for proposal in (
        entry for entry in refinement.proposals if entry.is_narrowed
    ):  # the Markdown file has them all
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
        console.print(f"  no parameters: {listed}", highlight=False, soft_wrap=True, markup=False)


def format_percent(part: float, digits: int = 1) -> str:
    """A part of one in percent."""
    return f"{100.0 * part:.{digits}f} %"


def format_p(p: float) -> str:
    """A p-value with two digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _has_ranges(runs: RunTable) -> bool:
    return any(parameter.dimension.scale != "categorical" for parameter in runs.parameters)


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_format_line(head), "|" + "---|" * len(head), *map(_format_line, rows)]


def _format_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape_cell, cells)) + " |"


def _escape_cell(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    for letter in "\\|`*<[":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
