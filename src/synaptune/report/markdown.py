"""A study as GitHub-flavoured Markdown, with its figures as SVG files and its tables as CSV files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synaptune.analysis.results import Evidence
from synaptune.core.files import write_atomic
from synaptune.report import findings as words
from synaptune.report import table_model as cells
from synaptune.report import tables
from synaptune.report.figures import Figure, figures, standalone
from synaptune.report.table_model import Column, Table

_LEFT = ("text", "name", "range")
_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|$~&]|\b_|_\b)")
_CODE = re.compile(r"(`[a-z][^`<>&|]*`)")


def markdown(evidence: Evidence, folder: Path, drawn: Sequence[Figure] | None = None) -> Path:
    """Write report.md, figures/*.svg and tables/*.csv below folder; returns the path of report.md.

    drawn: the study's figures, which take seconds to draw. Raises UserError: no space.
    """
    drawn = list(figures(evidence)) if drawn is None else drawn
    for figure in drawn:
        write_atomic(folder / "figures" / f"{figure.key}.svg", standalone(figure).encode())
    made = list(tables.all_tables(evidence))
    for table in made:
        write_atomic(folder / "tables" / f"{table.key}.csv", cells.as_csv(table).encode())
    path = folder / "report.md"
    write_atomic(path, (text(evidence, drawn, made)).encode())
    return path


def text(evidence: Evidence, drawn: Sequence[Figure], made: Sequence[Table]) -> str:
    """The Markdown of a study whose figures and tables lie beside it."""
    found = words.verdict(evidence)
    parts = [f"# Study {escaped(evidence.name)}", f"**{escaped(found.headline)}**"]
    if words.running(evidence):
        parts.append("*Running: trials have begun and not ended.*")
    parts.append(findings(found.findings))
    numbers = [[name, number] for name, number in tables.key_numbers(evidence)]
    parts.append(table_text(Table("numbers", "", (Column("what"), Column("value")), numbers)))
    parts += _section("What to do next", findings(words.advice(evidence)))
    figures_by_key, tables_by_key = {figure.key: figure for figure in drawn}, {table.key: table for table in made}
    for title, keys in (
        ("Validation and noise", ("seeds", "validation", "gates")),
        ("Parameters", ("parameters", "importance", "ablation", "profiles")),
        ("The search", ("convergence", "evolution", "correlation", "parallel")),
        ("Inside the model", ("curves", "dynamics", "experts")),
        ("Hypotheses", ("hypotheses",)),
        ("Cost", ("cost",)),
        ("Failures", ("failures",)),
    ):
        blocks = [figure_text(figures_by_key[key]) for key in keys if key in figures_by_key]
        blocks += [table_text(tables_by_key[key]) for key in keys if key in tables_by_key]
        if title.startswith("Validation"):
            blocks += _noise(evidence)
        parts += _section(title, *blocks)
    yaml = tables.best_yaml(evidence)
    parts += _section("Best configuration", f"{fence(yaml)}yaml\n{yaml}{fence(yaml)}") if yaml is not None else []
    parts += _section("Tables", "\n".join(f"- [{table.title}](tables/{table.key}.csv)" for table in made))
    parts += _section("Provenance", *(_folded(cells.spaced(key), entry) for key, entry in evidence.provenance.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, *blocks: str) -> list[str]:
    kept = [block for block in blocks if block]
    return [f"## {title}", *kept] if kept else []


def findings(found: Sequence[words.Finding]) -> str:
    """Sentences as a list."""
    return "\n".join(f"- **{escaped(entry.title)}.** {escaped(entry.text)}" for entry in found)


def figure_text(figure: Figure) -> str:
    """A figure of the folder, with its caption."""
    return f"![{escaped(figure.title)}](figures/{figure.key}.svg)\n\n*{escaped(figure.title)}.* {escaped(figure.caption)}"


def _noise(evidence: Evidence) -> list[str]:
    rows = tables.noise(evidence) + ([] if evidence.claim is None else tables.statistics_of(evidence.claim.gain))
    return [table_text(Table("noise", "", (Column("noise, luck and tests"), Column("value")), rows))] if rows else []


def _folded(title: str, entry: Any) -> str:
    entries = entry if isinstance(entry, dict) else {title: entry}
    rows = [[str(key), cells.plain(part)] for key, part in entries.items()]
    if not rows:
        return ""
    table = table_text(Table("", "", (Column("what"), Column("value")), rows))
    return f"<details><summary>{escaped(title)}</summary>\n\n{table}\n\n</details>"


def table_text(table: Table) -> str:
    """A table in GitHub's form, with its note under it."""
    heads = [escaped(column.heading) for column in table.columns]
    rules = ["---" if column.kind in _LEFT else "---:" for column in table.columns]
    rows = [[escaped(cells.shown(cell, column.kind)) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    return "\n".join(lines) + (f"\n\n{escaped(table.note)}" if table.note else "")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line; `commands` stay code."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(part if at % 2 else _SPECIAL.sub(r"\\\1", part) for at, part in enumerate(parts))


def fence(text: str) -> str:
    """A fence for a code block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
