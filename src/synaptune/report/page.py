"""A study as one self-contained HTML page: no network, readable without JavaScript, on a phone, in the dark and on paper.

Everything from the study is escaped here; a figure's SVG comes escaped from report/figures.
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
from synaptune.report import findings as words
from synaptune.report import next_commands as orders
from synaptune.report import table_model as cells
from synaptune.report import tables
from synaptune.report.figures import Figure, draw_figures, make_css
from synaptune.report.table_model import Column, Table
from synaptune.search.trial import get_loss

MAX_ROWS = 400  # of trials that are all shown
BEST_ROWS = 200  # of more
_TALL_ROWS = 30  # rows that a table shows without scrolling
_CODE_PATTERN = re.compile(r"`([a-z][^`<>&]*)`")
# Where each figure stands; one of another key has a section of its own at the end.
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
    """A part of the page: key (its anchor), title, content as HTML without the title."""

    key: str
    title: str
    html: str


def render_html(evidence: Evidence, *, drawn_figures: Sequence[Figure] | None = None) -> str:
    """The whole page; drawn: as for `sections`."""
    return render_document(
        f"{evidence.name}: report",
        render_header(evidence),
        make_sections(evidence, drawn_figures),
    )


def make_sections(
    evidence: Evidence, drawn_figures: Sequence[Figure] | None = None
) -> list[Section]:
    """The parts of the page that have something to say, in their order; given: the study's, which take seconds to draw."""
    drawn = {
        figure.key: figure
        for figure in (draw_figures(evidence) if drawn_figures is None else drawn_figures)
    }
    parts = [
        Section("verdict", "Verdict", _render_verdict(evidence)),
        Section("next", "What to do next", render_findings(words.advise(evidence))),
        Section("validation", "Validation and noise", _render_validation(evidence, drawn)),
        Section("parameters", "Parameters", _render_parameters(evidence, drawn)),
        Section("search", "The search", _render_figures(drawn, "search")),
        Section("model", "Inside the model", _render_figures(drawn, "model")),
        Section("hypotheses", "Hypotheses", _render_if_rows(tables.tabulate_hypotheses(evidence))),
        Section(
            "cost",
            "Cost",
            _render_figures(drawn, "cost") + _render_if_rows(tables.tabulate_cost(evidence)),
        ),
        Section(
            "failures",
            "Failures",
            _render_figures(drawn, "failures")
            + _render_if_rows(tables.tabulate_failures(evidence)),
        ),
        Section("best", "Best configuration", _render_best(evidence)),
        Section(
            "more",
            "More figures",
            "".join(
                render_figure(figure)
                for figure in drawn.values()
                if figure.key not in _list_section_figures()
            ),
        ),
        Section("trials", "Trials", _render_trials(evidence)),
        Section("provenance", "Provenance", render_provenance(evidence.provenance)),
    ]
    return [part for part in parts if part.html]


def render_header(evidence: Evidence) -> str:
    """Name, state and time of a study."""
    pill = '<span class="pill">running</span>' if words.is_running(evidence) else ""
    when = [
        f"{moment:%Y-%m-%d %H:%M} UTC"
        for moment in (evidence.started_at, evidence.ended_at)
        if moment is not None
    ]
    about = [f"phase {evidence.phase}"] if evidence.phase is not None else []
    about += [" to ".join(when)] if when else []
    return f"<h1>Study {escape(evidence.name)}{pill}</h1><p>{escape(' · '.join(about))}</p>"


def render_document(title: str, head: str, parts: Sequence[Section]) -> str:
    """A page of sections with its table of contents, styles and script inside; title is text, head HTML."""
    style, script = (
        files("synaptune.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    contents = "".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in parts)
    body = "".join(
        f'<section id="{part.key}"><h2>{escape(part.title)}</h2>{part.html}</section>\n'
        for part in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{make_css()}{style}</style></head>\n"
        f'<body><div class="layout"><header class="top">{head}</header>'
        f'<nav class="toc" aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}</main></div>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _render_verdict(evidence: Evidence) -> str:
    found = words.make_verdict(evidence)
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in tables.list_key_numbers(evidence)
    )
    return f'<p class="headline {found.tone}">{render_prose(found.headline)}</p>{render_findings(found.findings)}<dl class="numbers">{numbers}</dl>'


def render_findings(found: Sequence[words.Finding]) -> str:
    """Sentences under their headings; empty without any."""
    rows = "".join(
        f"<dt>{escape(entry.title)}</dt><dd>{render_prose(entry.text)}</dd>" for entry in found
    )
    return f'<dl class="findings">{rows}</dl>' if rows else ""


def render_prose(text: str) -> str:
    """Text escaped, with `commands` set as code and no line that begins with a per cent sign."""
    return re.sub(
        r"(\d) %",
        "\\1\N{NO-BREAK SPACE}%",
        _CODE_PATTERN.sub(r"<code>\1</code>", escape(text, quote=False)),
    )


def _render_figures(drawn: Mapping[str, Figure], place: str) -> str:
    titled = place not in ("cost", "failures")  # their section has the figure's name
    return "".join(
        render_figure(drawn[key], titled=titled) for key in _SECTION_FIGURES[place] if key in drawn
    )


def _list_section_figures() -> set[str]:
    return {key for keys in _SECTION_FIGURES.values() for key in keys}


def render_figure(figure: Figure, *, titled: bool = True) -> str:
    """A figure with its title and caption."""
    title = f"<h3>{escape(figure.title)}</h3>" if titled else ""
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
    return f'<figure id="figure-{escape(figure.key)}">{title}<div class="drawing">{figure.svg}</div>{caption}</figure>'


def _render_validation(evidence: Evidence, drawn: Mapping[str, Figure]) -> str:
    claim = evidence.validation
    rows = tables.list_noise(evidence) + (
        [] if claim is None else tables.list_statistics(claim.gain)
    )
    listed = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td class='number'>{escape(text)}</td></tr>"
        for name, text in rows
    )
    more = (
        f'<h3>Noise, luck and tests</h3><div class="scroll"><table><tbody>{listed}</tbody></table></div>'
        if rows
        else ""
    )
    return (
        _render_figures(drawn, "validation")
        + _render_titled(tables.tabulate_validation(evidence))
        + _render_titled(tables.tabulate_gates(evidence))
        + more
    )


def _render_parameters(evidence: Evidence, drawn: Mapping[str, Figure]) -> str:
    apart = tables.tabulate_ablation(evidence.ablation)
    folded = (
        f"<details><summary>{escape(apart.title)}, as a table</summary>{render_table(apart)}</details>"
        if apart.rows
        else ""
    )
    return (
        _render_if_rows(tables.tabulate_parameters(evidence))
        + _render_figures(drawn, "parameters")
        + folded
    )


def _render_best(evidence: Evidence) -> str:
    text = tables.render_best_yaml(evidence)
    if text is None:
        return ""
    use = "<p>Save it as <code>best.yaml</code> and train with it: <code>python train.py tuned=best.yaml</code></p>"
    return (
        (use if orders.is_training_study(evidence) else "")
        + f'<button class="tool" type="button" data-copies="best-yaml" hidden>Copy</button><pre id="best-yaml">{escape(text)}</pre>'
    )


def _render_trials(evidence: Evidence) -> str:
    chosen, note = list(evidence.trials), ""
    if len(chosen) > MAX_ROWS:
        complete = [trial for trial in chosen if trial.objective is not None]
        ranked = sorted(complete, key=lambda trial: get_loss(trial, evidence.maximize) or 0.0)
        chosen = (ranked or chosen)[:BEST_ROWS]
        which = "best" if ranked else "first"
        note = f"The {which} {len(chosen)} of {len(evidence.trials)} trials; {orders.format_command(evidence, 'export')} writes all."
    if not chosen:
        return ""
    field = '<input class="tool" type="search" placeholder="Filter trials" aria-label="Filter trials" data-filters="table-trials" hidden>'
    table = tables.tabulate_search_trials(evidence, chosen)._replace(note=note)
    return f'<div class="screen">{field}{render_table(table, sortable=True, names=evidence.names)}</div>'


def render_provenance(found: Mapping[str, Any]) -> str:
    """What the study was made of, each part folded."""
    plain = {key: entry for key, entry in found.items() if not isinstance(entry, Mapping)}
    parts = {"Fingerprints, seeds and versions": plain} if plain else {}
    parts |= {
        str(key): entry for key, entry in found.items() if isinstance(entry, Mapping) and entry
    }
    return "".join(
        f"<details><summary>{escape(cells.format_key(key))}</summary>{_render_listing(entry)}</details>"
        for key, entry in parts.items()
    )


def _render_listing(entries: Mapping[Any, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(str(key))}</th><td class='long'>{escape(cells.format_plain(entry))}</td></tr>"
        for key, entry in entries.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _render_if_rows(table: Table) -> str:
    return render_table(table) if table.rows else ""


def _render_titled(table: Table) -> str:
    return f"<h3>{escape(table.title)}</h3>{render_table(table)}" if table.rows else ""


def render_table(table: Table, *, sortable: bool = False, names: Sequence[str] = ()) -> str:
    """A table that scrolls inside its frame; names: of parameters, which the headings shorten."""
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
    return f'{frame}<table id="table-{table.key}"{kind}><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>{note}'


def _render_head(column: Column, names: Sequence[str]) -> str:
    kind = ' class="number"' if column.kind in _NUMBER_KINDS else ""
    short = make_label(column.name, names) if column.name in names else column.heading
    title = f' title="{escape(column.name)}"' if short != column.heading else ""
    return f'<th scope="col"{kind}{title}>{escape(short)}</th>'


def _render_cell(cell: Any, column: Column, sortable: bool) -> str:
    text = escape(cells.format_cell(cell, column.kind))
    if column.kind == "name":
        prefix, dot, last = str(cell).rpartition(".")
        return f'<th scope="row"><span class="prefix">{escape(prefix + dot)}</span><wbr>{escape(last)}</th>'
    if column.kind == "position" and cell is not None:
        edge = " edge" if min(cell, 1.0 - cell) < words.EDGE else ""
        bar = f'<span class="place{edge}"><i style="left:{100.0 * min(max(cell, 0.0), 1.0):.0f}%"></i></span>'
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
    """The number behind a cell's text as an attribute, by which a table is sorted; empty where the text is the number."""
    if not isinstance(cell, int | float) or isinstance(cell, bool) or str(cell) == text:
        return ""
    return f' data-v="{cell}"'
