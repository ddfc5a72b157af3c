"""The outline of a report: its sections and their content, for the page and the Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.report import advice, findings, next_commands, tables
from synaptune.report.figures import Figure
from synaptune.report.screening import explain_screening, has_significant_effect
from synaptune.report.table_model import Column, Table, format_key, format_plain


class Code(NamedTuple):
    """A block of code with an explanation above it; the explanation may be empty."""

    text: str
    note: str


class Details(NamedTuple):
    """A table that is folded under its title."""

    table: Table


Block = findings.Verdict | Sequence[findings.Finding] | Figure | Table | Details | Code | str


class Section(NamedTuple):
    """A section of a report.

    Attributes:
        key: anchor of the section.
        title: heading.
        blocks: content in its order.
    """

    key: str
    title: str
    blocks: Sequence[Block]


# Key, title and blocks of each section between the advice and the best configuration.
_RESULT_SECTIONS = (
    (
        "validation",
        "Validation and noise",
        (
            "table goals",
            "figure seeds",
            "table validation",
            "table repeats",
            "table gates",
            "table noise",
        ),
    ),
    (
        "screening",
        "What matters",
        ("text screening", "figure screening", "table subsystems", "table screening"),
    ),
    ("regimes", "Mechanisms in their own tasks", ("figure regimes", "table regimes")),
    (
        "parameters",
        "Parameters",
        (
            "table parameters",
            "figure importance",
            "figure ablation",
            "figure profiles",
            "table ablation",
        ),
    ),
    (
        "search",
        "The search",
        (
            "figure convergence",
            "figure evolution",
            "figure lineage",
            "figure correlation",
            "figure parallel",
        ),
    ),
    ("model", "Inside the model", ("figure curves", "figure dynamics", "figure experts")),
    ("hypotheses", "Hypotheses", ("text hypotheses", "table hypotheses")),
    ("cost", "Cost", ("figure cost", "table cost")),
    ("failures", "Failures", ("figure failures", "table failures")),
)


def make_outline(
    evidence: Evidence, drawn_figures: Sequence[Figure], report_tables: Sequence[Table]
) -> list[Section]:
    """Make the sections of a study's report that have content, in their order.

    Args:
        evidence: the study.
        drawn_figures: its figures.
        report_tables: its tables, as made by `tables.make_all_tables`.
    """
    blocks: dict[str, Block] = {f"figure {figure.key}": figure for figure in drawn_figures}
    blocks |= {f"table {table.key}": table for table in report_tables}
    if text := explain_screening(evidence):
        effects = blocks["table screening"]
        assert isinstance(effects, Table)
        blocks |= {"text screening": text, "table screening": Details(effects)}
        if not has_significant_effect(evidence):  # shares of noise would look like a ranking
            for name in ("figure screening", "table subsystems"):
                blocks.pop(name, None)
    if text := findings.explain_no_correlation(evidence):
        blocks["figure correlation"] = text
    hypotheses = blocks.get("table hypotheses")
    if isinstance(hypotheses, Table) and (text := findings.explain_open_hypotheses(evidence)):
        blocks |= {"text hypotheses": text, "table hypotheses": Details(hypotheses)}
    numbers = make_listing("numbers", "Key numbers", tables.list_key_numbers(evidence))
    sections = [
        Section("verdict", "Verdict", [findings.make_verdict(evidence), numbers]),
        Section("next", "What to do next", [advice.advise(evidence)]),
    ]
    sections += [
        Section(key, title, [blocks[name] for name in names if name in blocks])
        for key, title, names in _RESULT_SECTIONS
    ]
    if stale := findings.explain_stale(evidence):
        sections = [
            section._replace(blocks=[stale, *section.blocks])
            if section.key == "validation"
            else section
            for section in sections
        ]
    yaml = tables.render_best_yaml(evidence)
    usage = "Save it as best.yaml and train with it: `python train.py tuned=best.yaml`"
    note = usage if next_commands.is_training_study(evidence) else ""
    sections += [
        Section("best", "Best configuration", [Code(yaml, note)] if yaml is not None else []),
        Section("provenance", "Provenance", _list_provenance(evidence)),
    ]
    return [section for section in sections if any(section.blocks)]


def make_listing(key: str, title: str, rows: Sequence[Sequence[str]]) -> Table:
    """Make a table of names and values."""
    return Table(key, title, (Column("what"), Column("value")), rows)


def _list_provenance(evidence: Evidence) -> list[Details]:
    groups: dict[str, dict] = {"Fingerprints, seeds and versions": {}}
    for key, entry in evidence.provenance.items():
        if isinstance(entry, Mapping):
            groups[format_key(key)] = dict(entry)
        else:
            groups["Fingerprints, seeds and versions"][key] = entry
    listings = [
        make_listing(
            f"provenance-{index}",
            title,
            [[str(key), format_plain(part)] for key, part in entries.items()],
        )
        for index, (title, entries) in enumerate(groups.items())
    ]
    return [Details(table) for table in listings if table.rows]
