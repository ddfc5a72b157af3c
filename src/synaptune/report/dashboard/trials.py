"""Pages of the trials of a study: a list, sorted and filtered by the server, and a page a trial."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from urllib.parse import urlencode

from synaptune.core.text import format_duration, format_parameter
from synaptune.report.dashboard.page_cache import PagePart
from synaptune.report.dashboard.pages import (
    format_age,
    format_time,
    page_url,
    render_listing,
    render_value,
)
from synaptune.report.dashboard.study_index import StudyEntry
from synaptune.report.figures.layout import FigureLayout, find_limits, set_ticks
from synaptune.report.figures.theme import Drawing, Palette, make_figure
from synaptune.report.page import render_drawing
from synaptune.report.table_model import describe_range, show_value
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value
from synaptune.search.trial import ENQUEUED, Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import StudySnapshot

PAGE_SIZE = 50  # trials on a page of the list
STATES = ("complete", "running", "pruned", "failed")
_FIXED_COLUMNS = ("number", "phase", "generation", "state", "objective", "seed", "seconds")
_MAX_DOTS = 60  # a curve with more points is drawn without dots
_TEXT_COLUMNS = ("phase", "state")


@dataclass(frozen=True)
class TrialsView:
    """Selection and order of the list.

    Attributes:
        sort: column to sort by.
        descending: whether the largest value comes first.
        phase: phase of the listed trials; empty for all.
        state: state of the listed trials; empty for all.
        page: number of the page, from 1.
    """

    sort: str = "number"
    descending: bool = True
    phase: str = ""
    state: str = ""
    page: int = 1

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> TrialsView:
        """Parse the query of an address; an invalid page becomes the first page."""
        page = query.get("page", "1")
        return cls(
            sort=query.get("sort", "number"),
            descending=query.get("order", "desc") != "asc",
            phase=query.get("phase", ""),
            state=query.get("state", ""),
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 9 else 1,
        )

    def to_query(self, **changes: Any) -> str:
        """Format the view with changes as the query of an address."""
        view = replace(self, **changes)
        pairs = {
            "sort": view.sort,
            "order": "desc" if view.descending else "asc",
            "phase": view.phase,
            "state": view.state,
            "page": view.page,
        }
        return urlencode({name: value for name, value in pairs.items() if value != ""})


def select_trials(snapshot: StudySnapshot, view: TrialsView) -> list[Trial]:
    """Select and sort the trials of a view; trials without the sorted value are last."""
    trials = [
        trial
        for trial in snapshot.trials
        if view.phase in ("", trial.facts.get(schema.PHASE)) and view.state in ("", trial.state)
    ]
    pairs_with_value = [
        (value, trial) for trial in trials if (value := _get_value(trial, view.sort)) is not None
    ]
    numeric = [
        pair
        for pair in pairs_with_value
        if isinstance(pair[0], int | float) and not math.isnan(pair[0])
    ]
    textual = [pair for pair in pairs_with_value if not isinstance(pair[0], int | float)]
    ordered: list[Trial] = []
    for pairs, key in (
        (numeric, lambda pair: (pair[0], pair[1].number)),
        (textual, lambda pair: (str(pair[0]), pair[1].number)),
    ):
        ordered += [trial for _, trial in sorted(pairs, key=key, reverse=view.descending)]
    ordered_numbers = {trial.number for trial in ordered}
    return ordered + [trial for trial in trials if trial.number not in ordered_numbers]


def _get_value(trial: Trial, name: str) -> Any:
    if name in ("number", "state", "objective"):
        is_estimated = name == "objective" and trial.state == "pruned"
        return trial.estimate if is_estimated else getattr(trial, name)
    return trial.values[name] if name in trial.values else trial.facts.get(name)


def render_trials(entry: StudyEntry, snapshot: StudySnapshot, view: TrialsView) -> list[PagePart]:
    """Render the list as parts of a page: the form and the trials."""
    trials = select_trials(snapshot, view)
    page_count = max(1, math.ceil(len(trials) / PAGE_SIZE))
    view = replace(view, page=min(view.page, page_count))
    listed = trials[(view.page - 1) * PAGE_SIZE : view.page * PAGE_SIZE]
    names = list(
        dict.fromkeys(
            name for trial in snapshot.search_trials[:1] or listed for name in trial.values
        )
    )
    columns = [*_FIXED_COLUMNS, *names]
    head = "".join(_render_head(entry, column, view) for column in columns)
    rows = "".join(
        _render_row(entry, trial, columns, _map_dimensions(snapshot, trial)) for trial in listed
    )
    count = (
        f"{len(trials)} of {len(snapshot.trials)} trials"
        if len(trials) != len(snapshot.trials)
        else f"{len(trials)} trials"
    )
    pager = _render_pager(entry, view, page_count)
    body = (
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Trials">'
        f'<table id="trials-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    return [
        PagePart("choose", "", _render_form(entry, snapshot, view)),
        PagePart("trials", "", f'<p class="note">{count}{pager}</p>{body}'),
    ]


def _render_form(entry: StudyEntry, snapshot: StudySnapshot, view: TrialsView) -> str:
    phases = dict.fromkeys(str(trial.facts.get(schema.PHASE, "")) for trial in snapshot.trials)

    def render_option(value: str, current: str) -> str:
        selected = " selected" if value == current else ""
        return f'<option value="{escape(value)}"{selected}>{escape(value or "all")}</option>'

    def render_select(label: str, name: str, values: Sequence[str], current: str) -> str:
        options = "".join(render_option(value, current) for value in ("", *values))
        return f'<label>{label} <select class="tool" name="{name}">{options}</select></label> '

    order = "desc" if view.descending else "asc"
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in (("sort", view.sort), ("order", order))
    )
    fields = render_select("Phase", "phase", list(phases), view.phase)
    fields += render_select("State", "state", STATES, view.state)
    return (
        f'<form class="choose" action="{page_url(entry, "trials")}">{fields}{hidden}'
        '<button class="tool">Show</button></form>'
    )


def _render_head(entry: StudyEntry, column: str, view: TrialsView) -> str:
    is_sorted = view.sort == column
    link = view.to_query(
        sort=column,
        descending=not view.descending if is_sorted else column in ("number", "seconds"),
        page=1,
    )
    direction = "descending" if view.descending else "ascending"
    order = f' aria-sort="{direction}"' if is_sorted else ""
    arrow = (" ↓" if view.descending else " ↑") if is_sorted else ""
    kind = "" if column in _TEXT_COLUMNS else ' class="number"'
    short = column.rpartition(".")[2] or column
    target = f"{page_url(entry, 'trials')}?{escape(link)}"
    text = f'<a href="{target}" title="{escape(column)}">{escape(short)}{arrow}</a>'
    return f'<th scope="col"{kind}{order}>{text}</th>'


def _map_dimensions(snapshot: StudySnapshot, trial: Trial) -> Mapping[str, Dimension]:
    space = snapshot.spaces.get(trial.facts.get(schema.PHASE, ""))
    return {} if space is None else {each.name: each for each in space.dimensions}


def _render_row(
    entry: StudyEntry, trial: Trial, columns: Sequence[str], ranges: Mapping[str, Dimension]
) -> str:
    address = page_url(entry, "trial", str(trial.number))
    cells = [f'<th scope="row" class="number"><a href="{address}">{trial.number}</a></th>']
    for column in columns[1:]:
        value = _get_value(trial, column)
        kind = "" if column in _TEXT_COLUMNS else ' class="number"'
        if column in ranges and column in trial.values:
            value = show_value(value, ranges[column])
            value = value if isinstance(value, float) else format_parameter(value)
        text = (
            f'<span class="state {trial.state}">{trial.state}</span>'
            if column == "state"
            else render_value(value)
        )
        if column == "objective" and trial.state == "pruned" and value is not None:
            text = f'<span title="estimated: the trial was pruned">~{text}</span>'
        cells.append(f"<td{kind}>{text}</td>")
    return f'<tr data-number="{trial.number}">{"".join(cells)}</tr>'


def _render_pager(entry: StudyEntry, view: TrialsView, page_count: int) -> str:
    if page_count == 1:
        return ""

    def render_link(page: int, text: str) -> str:
        if not 1 <= page <= page_count:
            return ""
        address = f"{page_url(entry, 'trials')}?{escape(view.to_query(page=page))}"
        return f' <a class="tool" href="{address}">{text}</a>'

    links = render_link(1, "first") if view.page > 2 else ""
    links += render_link(view.page - 1, "previous") + render_link(view.page + 1, "next")
    return f" · page {view.page} of {page_count}{links}"


def render_trial(entry: StudyEntry, snapshot: StudySnapshot, trial: Trial) -> list[PagePart]:
    """Render the parts of the page of a trial."""
    ranges = _map_dimensions(snapshot, trial)
    parts = [PagePart("result", "Result", render_listing(_list_result(snapshot, trial), "Result"))]
    if trial.reason:
        trace = trial.facts.get(schema.TRACEBACK)
        text = f'<p class="headline bad">{escape(str(trial.reason))}</p>' + (
            f"<pre>{escape(str(trace))}</pre>" if trace else ""
        )
        parts.append(PagePart("failure", "Why it failed", text))
    curve = snapshot.curves.get(trial.number, {})
    if len(curve) > 1:
        parts.append(PagePart("curve", "Reported values", render_curve(curve)))
    if trial.values:
        rows = [
            (name, _render_setting(value, ranges.get(name))) for name, value in trial.values.items()
        ]
        parts.append(PagePart("values", "Parameters", render_listing(rows, "Parameters")))
    hidden = {schema.REASON, schema.TRACEBACK, schema.PHASE, schema.SECONDS, schema.ATTEMPTS}
    facts = [
        (name, _format_fact(value))
        for name, value in sorted(trial.facts.items())
        if name not in hidden
    ]
    parts.append(PagePart("facts", "Other facts", render_listing(facts, "Facts")))
    return parts


def _render_setting(value: Value, dimension: Dimension | None) -> str:
    """Render a value in full, quoted where it would be unclear, and its range."""
    is_clear = isinstance(value, float) or show_value(value, dimension) is value
    text = render_value(value) if is_clear else escape(repr(value))
    if dimension is None:
        return text
    return f'{text} <span class="prefix">of {escape(describe_range(dimension))}</span>'


def _list_result(snapshot: StudySnapshot, trial: Trial) -> list[tuple[str, str]]:
    """List the known facts of the result as (name, HTML)."""
    started_at = snapshot.start_times.get(trial.number)
    ended_at = None if trial.state == "running" else snapshot.end_times.get(trial.number)
    seconds = trial.facts.get(schema.SECONDS)
    reasons = (f"<p>{escape(str(reason))}</p>" for reason in trial.facts.get(schema.ATTEMPTS, []))
    rows = {
        "state": f'<span class="state {trial.state}">{trial.state}</span>',
        "phase": render_value(trial.facts.get(schema.PHASE)),
        "index in its phase": render_value(trial.index),
        "proposed by": "a user (enqueued)" if ENQUEUED in trial.facts else "",
        "imported from": render_value(trial.facts.get(schema.SOURCE)),
        "objective": render_value(trial.objective),
        "objective, estimated when it was pruned": render_value(trial.estimate),
        "duration": "" if seconds is None else format_duration(float(seconds)),
        "started": started_at and f"{format_time(started_at)} ({format_age(started_at)})",
        "ended": format_time(ended_at),
        "abandoned attempts": "".join(reasons),
    }
    return [(name, text) for name, text in rows.items() if text]


def _format_fact(value: Any) -> str:
    return (
        f"<code>{escape(json.dumps(value))}</code>"
        if isinstance(value, dict | list)
        else render_value(value)
    )


def render_curve(curve: Mapping[int, float]) -> str:
    """Render the reported values by step as a figure."""
    points = {step: value for step, value in sorted(curve.items()) if math.isfinite(value)}
    steps = list(points)

    def draw(palette: Palette) -> Drawing:
        layout = FigureLayout(260, palette)
        limits = find_limits(points.values(), upper=1.0)
        axes = layout.add_axes(
            64, 16, width=layout.width - 80, height=190, xlim=(steps[0], steps[-1]), ylim=limits
        )
        marker = "o" if len(steps) <= _MAX_DOTS else ""
        axes.plot(steps, [*points.values()], color=palette.best, marker=marker, markersize=4.0)
        set_ticks(axes, x=6, y=5, integer=True)
        layout.label_bottom(axes, "step")
        return Drawing(layout.canvas, "Reported values by step", "")

    figure = make_figure(draw, "curve") if len(steps) > 1 else None
    return "" if figure is None else f"<figure>{render_drawing(figure)}</figure>"
