"""A report as one self-contained HTML page.

The page loads nothing from the network. It is readable without JavaScript, on a phone, in dark mode
and on paper. All texts of the study are escaped here; a figure's SVG is escaped in report/figures.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.core.text import make_label
from synaptune.report import advice, findings, next_commands, table_model, tables
from synaptune.report.figures import Figure, draw_figures, make_css
from synaptune.report.table_model import Column, Table
from synaptune.search.trial import get_loss

MAX_ROWS = 400  # trials up to which all are shown
BEST_ROWS = 200  # best trials that are shown of a larger number
_TALL_ROWS = 30  # rows above which a table scrolls
_CODE_PATTERN = re.compile(r"`([a-z][^`<>&]*)`")
# The figures of each section; other figures are shown in the section "More figures".
_SECTION_FIGURES = {
    "validation": ("seeds",),
    "parameters": ("importance", "ablation", "profiles"),
    "search": ("convergence", "evolution", "correlation", "parallel"),
    "model": ("curves", "dynamics", "experts"),
    "cost": ("cost",),
    "failures": ("failures",),
}
_NUMBER_KINDS = ("count", "value", "loss", "share", "p", "seconds", "gain")


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        key: anchor of the section.
        title: heading.
        html: content without the heading.
    """

    key: str
    title: str
    html: str


def render_html(evidence: Evidence, *, drawn_figures: Sequence[Figure] | None = None) -> str:
    """Render the whole page; the arguments are those of `make_sections`."""
    sections = make_sections(evidence, drawn_figures)
    return render_document(f"{evidence.name}: report", render_header(evidence), sections)


def make_sections(
    evidence: Evidence, drawn_figures: Sequence[Figure] | None = None
) -> list[Section]:
    """Make the sections of the page that have content, in their order.

    Args:
        evidence: the study.
        drawn_figures: the study's figures; None draws them, which takes seconds.
    """
    figures_by_key = {
        figure.key: figure
        for figure in (draw_figures(evidence) if drawn_figures is None else drawn_figures)
    }
    parts = [
        Section("verdict", "Verdict", _render_verdict(evidence)),
        Section("next", "What to do next", render_findings(advice.advise(evidence))),
        Section("validation", "Validation and noise", _render_validation(evidence, figures_by_key)),
        Section("parameters", "Parameters", _render_parameters(evidence, figures_by_key)),
        Section("search", "The search", _render_figures(figures_by_key, "search")),
        Section("model", "Inside the model", _render_figures(figures_by_key, "model")),
        Section("hypotheses", "Hypotheses", _render_if_rows(tables.tabulate_hypotheses(evidence))),
        Section(
            "cost",
            "Cost",
            _render_figures(figures_by_key, "cost")
            + _render_if_rows(tables.tabulate_cost(evidence)),
        ),
        Section(
            "failures",
            "Failures",
            _render_figures(figures_by_key, "failures")
            + _render_if_rows(tables.tabulate_failures(evidence)),
        ),
        Section("best", "Best configuration", _render_best(evidence)),
        Section(
            "more",
            "More figures",
            "".join(
                render_figure(figure)
                for figure in figures_by_key.values()
                if figure.key not in _list_section_figures()
            ),
        ),
        Section("trials", "Trials", _render_trials(evidence)),
        Section("provenance", "Provenance", render_provenance(evidence.provenance)),
    ]
    return [part for part in parts if part.html]


def render_header(evidence: Evidence) -> str:
    """Render the name, the state and the time of a study."""
    pill = '<span class="pill">running</span>' if findings.is_running(evidence) else ""
    times = [
        f"{moment:%Y-%m-%d %H:%M} UTC"
        for moment in (evidence.started_at, evidence.ended_at)
        if moment is not None
    ]
    facts = [f"phase {evidence.phase}"] if evidence.phase is not None else []
    facts += [" to ".join(times)] if times else []
    return f"<h1>Study {escape(evidence.name)}{pill}</h1><p>{escape(' · '.join(facts))}</p>"


def render_document(title: str, head: str, sections: Sequence[Section]) -> str:
    """Render a page of sections, with a table of contents, the styles and the script.

    Args:
        title: title of the document, as text.
        head: header of the page, as HTML.
        sections: sections in their order.
    """
    style, script = (
        files("synaptune.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    contents = "".join(
        f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in sections
    )
    body = "".join(
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{section.html}</section>\n'
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{make_css()}{style}</style></head>\n"
        f'<body><div class="layout"><header class="top">{head}</header>'
        f'<nav class="toc" aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f"<main>\n{body}</main></div>\n"
        f"<script>{script}</script></body></html>\n"
    )


def _render_verdict(evidence: Evidence) -> str:
    verdict = findings.make_verdict(evidence)
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in tables.list_key_numbers(evidence)
    )
    return (
        f'<p class="headline {verdict.tone}">{render_prose(verdict.headline)}</p>'
        f'{render_findings(verdict.findings)}<dl class="numbers">{numbers}</dl>'
    )


def render_findings(entries: Sequence[findings.Finding]) -> str:
    """Render findings under their headings; empty without any."""
    rows = "".join(
        f"<dt>{escape(entry.title)}</dt><dd>{render_prose(entry.text)}</dd>" for entry in entries
    )
    return f'<dl class="findings">{rows}</dl>' if rows else ""


def render_prose(text: str) -> str:
    """Escape a text, set `commands` as code, and keep per cent signs with their numbers."""
    return re.sub(
        r"(\d) %",
        "\\1\N{NO-BREAK SPACE}%",
        _CODE_PATTERN.sub(r"<code>\1</code>", escape(text, quote=False)),
    )


def _render_figures(figures_by_key: Mapping[str, Figure], section: str) -> str:
    titled = section not in ("cost", "failures")  # these sections have the same title
    return "".join(
        render_figure(figures_by_key[key], titled=titled)
        for key in _SECTION_FIGURES[section]
        if key in figures_by_key
    )


def _list_section_figures() -> set[str]:
    return {key for keys in _SECTION_FIGURES.values() for key in keys}


def render_figure(figure: Figure, *, titled: bool = True) -> str:
    """Render a figure with its title and caption."""
    title = f"<h3>{escape(figure.title)}</h3>" if titled else ""
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
    return (
        f'<figure id="figure-{escape(figure.key)}">{title}'
        f'<div class="drawing">{figure.svg}</div>{caption}</figure>'
    )


def _render_validation(evidence: Evidence, figures_by_key: Mapping[str, Figure]) -> str:
    rows = tables.list_noise(evidence)
    if evidence.validation is not None:
        rows += tables.list_statistics(evidence.validation.gain)
    statistics = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td class='number'>{escape(text)}</td></tr>"
        for name, text in rows
    )
    if rows:
        statistics = (
            '<h3>Noise and tests</h3><div class="scroll">'
            f"<table><tbody>{statistics}</tbody></table></div>"
        )
    return (
        _render_figures(figures_by_key, "validation")
        + _render_titled(tables.tabulate_validation(evidence))
        + _render_titled(tables.tabulate_gates(evidence))
        + statistics
    )


def _render_parameters(evidence: Evidence, figures_by_key: Mapping[str, Figure]) -> str:
    ablation = tables.tabulate_ablation(evidence.ablation)
    folded = (
        f"<details><summary>{escape(ablation.title)}, as a table</summary>"
        f"{render_table(ablation)}</details>"
        if ablation.rows
        else ""
    )
    return (
        _render_if_rows(tables.tabulate_parameters(evidence))
        + _render_figures(figures_by_key, "parameters")
        + folded
    )


def _render_best(evidence: Evidence) -> str:
    text = tables.render_best_yaml(evidence)
    if text is None:
        return ""
    usage = (
        "<p>Save it as <code>best.yaml</code> and train with it: "
        "<code>python train.py tuned=best.yaml</code></p>"
    )
    return (
        (usage if next_commands.is_training_study(evidence) else "")
        + '<button class="tool" type="button" data-copies="best-yaml" hidden>Copy</button>'
        + f'<pre id="best-yaml">{escape(text)}</pre>'
    )


def _render_trials(evidence: Evidence) -> str:
    chosen, note = list(evidence.trials), ""
    if len(chosen) > MAX_ROWS:
        complete = [trial for trial in chosen if trial.objective is not None]
        ranked = sorted(complete, key=lambda trial: get_loss(trial, evidence.maximize) or 0.0)
        chosen = (ranked or chosen)[:BEST_ROWS]
        which = "best" if ranked else "first"
        note = (
            f"The {which} {len(chosen)} of {len(evidence.trials)} trials; "
            f"{next_commands.format_command(evidence, 'export')} writes all."
        )
    if not chosen:
        return ""
    field = (
        '<input class="tool" type="search" placeholder="Filter trials" aria-label="Filter trials" '
        'data-filters="table-trials" hidden>'
    )
    table = tables.tabulate_search_trials(evidence, chosen)._replace(note=note)
    html = render_table(table, sortable=True, names=evidence.names)
    return f'<div class="screen">{field}{html}</div>'


def render_provenance(provenance: Mapping[str, Any]) -> str:
    """Render the provenance of a study, each part folded."""
    plain = {key: entry for key, entry in provenance.items() if not isinstance(entry, Mapping)}
    parts = {"Fingerprints, seeds and versions": plain} if plain else {}
    parts |= {
        str(key): entry for key, entry in provenance.items() if isinstance(entry, Mapping) and entry
    }
    return "".join(
        f"<details><summary>{escape(table_model.format_key(key))}</summary>"
        f"{_render_listing(entry)}</details>"
        for key, entry in parts.items()
    )


def _render_listing(entries: Mapping[Any, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(str(key))}</th>"
        f"<td class='long'>{escape(table_model.format_plain(entry))}</td></tr>"
        for key, entry in entries.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _render_if_rows(table: Table) -> str:
    return render_table(table) if table.rows else ""


def _render_titled(table: Table) -> str:
    return f"<h3>{escape(table.title)}</h3>{render_table(table)}" if table.rows else ""


def render_table(table: Table, *, sortable: bool = False, names: Sequence[str] = ()) -> str:
    """Render a table that scrolls inside its frame.

    Args:
        table: the table.
        sortable: add the attributes by which the page's script sorts rows.
        names: parameter names; a heading that is one of them is shortened.
    """
    heads = "".join(_render_head(column, names) for column in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            _render_cell(cell, column, sortable)
            for cell, column in zip(row, table.columns, strict=True)
        )
        + "</tr>\n"
        for row in table.rows
    )
    note = f'<p class="note">{render_prose(table.note)}</p>' if table.note else ""
    kind = ' class="sortable"' if sortable else ""
    tall = " tall" if len(table.rows) > _TALL_ROWS else ""
    frame = (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{escape(table.title)}">'
    )
    return (
        f'{frame}<table id="table-{table.key}"{kind}><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div>{note}"
    )


def _render_head(column: Column, names: Sequence[str]) -> str:
    kind = ' class="number"' if column.kind in _NUMBER_KINDS else ""
    short = make_label(column.name, names) if column.name in names else column.heading
    title = f' title="{escape(column.name)}"' if short != column.heading else ""
    return f'<th scope="col"{kind}{title}>{escape(short)}</th>'


def _render_cell(cell: Any, column: Column, sortable: bool) -> str:
    text = escape(table_model.format_cell(cell, column.kind))
    if column.kind == "name":
        prefix, dot, last = str(cell).rpartition(".")
        prefix = f'<span class="prefix">{escape(prefix + dot)}</span>'
        return f'<th scope="row">{prefix}<wbr>{escape(last)}</th>'
    if column.kind == "position" and cell is not None:
        edge = " edge" if min(cell, 1.0 - cell) < advice.EDGE else ""
        left = 100.0 * min(max(cell, 0.0), 1.0)
        bar = f'<span class="place{edge}"><i style="left:{left:.0f}%"></i></span>'
        return (
            f'<td class="number"{_sort_attribute(cell, text) if sortable else ""}>{bar}{text}</td>'
        )
    if column.kind == "range":
        return f'<td class="range">{text}</td>'
    if column.kind == "text":
        return f'<td class="long">{text}</td>' if len(text) > 40 else f"<td>{text}</td>"
    number = cell.mean if column.kind == "gain" and cell is not None else cell
    return f'<td class="number"{_sort_attribute(number, text) if sortable else ""}>{text}</td>'


def _sort_attribute(cell: Any, text: str) -> str:
    """Return the attribute with the number by which a cell is sorted; empty when the text is it."""
    if not isinstance(cell, int | float) or isinstance(cell, bool) or str(cell) == text:
        return ""
    return f' data-v="{cell}"'
