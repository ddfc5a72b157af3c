"""Several studies side by side: what each claims, differences where they can be paired, and where their configurations part."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.analysis.compare import compare, holm
from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import Comparison, Convergence, Evidence
from synaptune.core.files import write_atomic
from synaptune.report import findings as words
from synaptune.report import markdown, page
from synaptune.report import next_commands as orders
from synaptune.report import table_model as cells
from synaptune.report.figures import make_svg_file
from synaptune.report.figures.layout import (
    FigureLayout,
    find_limits,
    fit_text,
    set_ticks,
    spread_apart,
    thin_out,
)
from synaptune.report.figures.theme import Drawing, Figure, Palette, make_figure
from synaptune.report.page import Section
from synaptune.report.table_model import Column, Table
from synaptune.report.tables import to_objective
from synaptune.search.trial import Trial

_CONFIGURATIONS = "configurations"
_DATA, _BASELINE, _SCORE = "data_fingerprint", "run_fingerprint", "test_perplexity"
_ABSENT, _UNKNOWN = "(absent)", "(unknown)"


class StudyPair(NamedTuple):
    """Two studies, `second` against `first` by their tuned models.

    difference: improvement of test perplexity on shared seeds [%], null when they are not paired; adjusted: its p for the number
    of pairs (Holm); note: why they are not paired, or what else differs.
    """

    first: str
    second: str
    difference: Comparison | None
    adjusted_p: float | None
    note: str


def pair_studies(studies: Sequence[Evidence]) -> list[StudyPair]:
    """Every two of the studies; they are paired on seeds where data and baseline are the same."""
    found = [_compare_pair(first, second) for first, second in itertools.combinations(studies, 2)]
    known = [pair.difference.p for pair in found if pair.difference is not None]
    adjusted = iter(holm(known))
    return [
        pair if pair.difference is None else pair._replace(adjusted_p=next(adjusted))
        for pair in found
    ]


def _compare_pair(first: Evidence, second: Evidence) -> StudyPair:
    def unlike(reason: str) -> StudyPair:
        return StudyPair(first.name, second.name, None, None, f"not paired: {reason}")

    if first.validation is None or second.validation is None:
        return unlike(
            "no validation in "
            + words.join_names(
                [study.name for study in (first, second) if study.validation is None]
            )
        )
    sides = [
        {run.facts.get("seed"): run for run in runs}
        for study in (first, second)
        for runs in (study.validation.before, study.validation.after)  # type: ignore[union-attr]
    ]
    seeds = [seed for seed in sides[0] if seed is not None and all(seed in side for side in sides)]
    if len(seeds) < 2:
        return unlike("fewer than two shared seeds")
    if not _is_same(sides, seeds, _DATA):
        return unlike("data that differ, or whose fingerprints are unknown")
    if not _is_same([sides[0], sides[2]], seeds, _BASELINE):
        return unlike("baselines that differ, or whose fingerprints are unknown")
    scores = [
        [side[seed].facts[_SCORE] for seed in seeds] for side in (sides[1], sides[3])
    ]  # a claim is made of them
    note = (
        ""
        if _is_same(sides, seeds, "code_version")
        else "the code differs, or its version is unknown"
    )
    return StudyPair(first.name, second.name, compare(scores[0], scores[1]), None, note)


def _is_same(sides: Sequence[Mapping[Any, Trial]], seeds: Sequence[Any], fact: str) -> bool:
    """Whether a fact is known and the same in all sides' runs of each seed."""
    each = [{side[seed].facts.get(fact) for side in sides} for seed in seeds]
    return all(len(found) == 1 and None not in found for found in each)


def render_comparison(studies: Sequence[Evidence]) -> str:
    """The page of several studies."""
    drawn, pairs, apart = (
        draw_overlay(studies),
        pair_studies(studies),
        tabulate_configurations(studies),
    )
    parts = [
        Section(
            "verdict",
            "Verdict",
            f'<p class="headline none">{page.render_prose(make_headline(studies, pairs))}</p>'
            + page.render_findings(_make_findings(studies)),
        ),
        Section("claims", "What each study claims", page.render_table(tabulate_results(studies))),
        Section("differences", "Differences", page.render_table(tabulate_differences(pairs))),
        Section("search", "The searches", "" if drawn is None else page.render_figure(drawn)),
        Section(
            "parameters", "Best parameters", _render_if_rows(tabulate_best_parameters(studies))
        ),
        Section(
            "configuration",
            "Where the configurations differ",
            _render_if_rows(apart)
            or f"<p>{page.render_prose(_explain_no_difference(studies))}</p>",
        ),
    ]
    head = f"<h1>{len(studies)} studies compared</h1><p>{escape(', '.join(study.name for study in studies))}</p>"
    return page.render_document(
        "Comparison of studies", head, [part for part in parts if part.html]
    )


def _render_if_rows(table: Table) -> str:
    return page.render_table(table) if table.rows else ""


def write_comparison_markdown(studies: Sequence[Evidence], folder: Path) -> Path:
    """Write comparison.md with its figure and tables below folder; returns its path. Raises UserError: no space."""
    drawn, pairs = draw_overlay(studies), pair_studies(studies)
    tables = [
        tabulate_results(studies),
        tabulate_differences(pairs),
        tabulate_best_parameters(studies),
        tabulate_configurations(studies),
    ]
    parts = [
        f"# {len(studies)} studies compared",
        f"**{markdown.escape_markdown(make_headline(studies, pairs))}**",
        markdown.format_findings(_make_findings(studies)),
    ]
    if drawn is not None:
        write_atomic(folder / "figures" / f"{drawn.key}.svg", make_svg_file(drawn).encode())
        parts.append(markdown.format_figure(drawn))
    for table in tables:
        if table.rows:
            write_atomic(folder / "tables" / f"{table.key}.csv", cells.format_csv(table).encode())
            parts += [f"## {table.title}", markdown.format_table(table)]
        elif table.key == _CONFIGURATIONS:
            parts += [
                f"## {table.title}",
                markdown.escape_markdown(_explain_no_difference(studies)),
            ]
    path = folder / "comparison.md"
    write_atomic(path, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return path


def make_headline(studies: Sequence[Evidence], pairs: Sequence[StudyPair]) -> str:
    """What the comparison says in one sentence."""
    told = [pair for pair in pairs if pair.adjusted_p is not None and pair.adjusted_p < ALPHA]
    measured = sum(pair.difference is not None for pair in pairs)
    if len(pairs) == 1 and pairs[0].difference is not None:
        pair, found = pairs[0], pairs[0].difference
        better, worse = (
            (pair.second, pair.first) if found.mean >= 0.0 else (pair.first, pair.second)
        )
        if told:
            low, high = sorted((abs(found.low), abs(found.high)))
            return f"{better} is better than {worse}: {abs(found.mean):.1f} % of test perplexity (95 % interval {low:.1f} to {high:.1f})."
        return f"{pair.first} and {pair.second} are not told apart: {found.mean:.1f} % ({found.low:.1f} to {found.high:.1f})."
    if measured:
        return f"Of {len(pairs)} pairs of studies {measured} can be compared on shared seeds; in {len(told)} the difference is told from zero."
    return (
        "No two of the studies can be paired: their gains stand side by side and are not compared."
    )


def _make_findings(studies: Sequence[Evidence]) -> list[words.Finding]:
    return [words.Finding(study.name, words.make_verdict(study).headline) for study in studies]


def tabulate_results(studies: Sequence[Evidence]) -> Table:
    """A row for each study."""
    columns = (
        Column("study"),
        Column("gain in test perplexity", "gain", "%"),
        Column("fresh seeds", "count"),
        Column("decision"),
        Column("best objective", "loss"),
        Column("evaluations", "count"),
        Column("failed", "count"),
        Column("device time", "value", "h"),
    )
    return Table(
        "claims", "What each study claims", columns, [_make_result_row(study) for study in studies]
    )


def _make_result_row(study: Evidence) -> list[Any]:
    claim, best = study.validation, study.best
    said = (
        [None, None, "no claim"]
        if claim is None
        else [claim.gain, claim.gain.count, claim.decision]
    )
    ended = [trial for trial in study.trials if trial.state != "running"]
    failed = sum(trial.state == "failed" for trial in ended)
    hours = sum(study.seconds_by_phase.values()) / 3600.0
    return [study.name, *said, None if best is None else best.objective, len(ended), failed, hours]


def tabulate_differences(pairs: Sequence[StudyPair]) -> Table:
    """Every two studies, paired or with the reason why not."""
    columns = (
        Column("study"),
        Column("against"),
        Column("improvement of test perplexity", "gain", "%"),
        Column("p (Holm)", "p"),
        Column("Wilcoxon p", "p"),
        Column("effect size", "share"),
        Column("remark"),
    )
    rows = []
    for pair in pairs:
        found = pair.difference
        rows.append(
            [
                pair.second,
                pair.first,
                found,
                pair.adjusted_p,
                found and found.wilcoxon,
                found and found.effect,
                pair.note or "paired on seeds",
            ]
        )
    note = "Tuned models on the same fresh seeds, with the same data and the same baseline; positive: the first named is better."
    return Table("differences", "Differences", columns, rows, note)


def tabulate_best_parameters(studies: Sequence[Evidence]) -> Table:
    """Best values by parameter, a column for each study."""
    names = list(dict.fromkeys(name for study in studies for name in study.names))
    columns = [Column("parameter", "name"), *(Column(study.name, "value") for study in studies)]
    rows = [
        [name, *(None if study.best is None else study.best.values.get(name) for study in studies)]
        for name in names
    ]
    return Table("best", "Best parameters", columns, rows)


def tabulate_configurations(studies: Sequence[Evidence]) -> Table:
    """The keys in which the configurations differ, ranges and starts of parameters among them, as far as they are known."""
    settings = [orders.get_configuration(study) for study in studies]
    known = [each for each in settings if each]
    rows = []
    for key in sorted({key for each in known for key in each}):
        values = [each.get(key, _ABSENT) for each in known]
        if any(value != values[0] for value in values):
            rows.append(
                [
                    key,
                    *(
                        cells.format_plain(each.get(key, _ABSENT) if each else _UNKNOWN)
                        for each in settings
                    ),
                ]
            )
    columns = [Column("key"), *(Column(study.name) for study in studies)]
    return Table(_CONFIGURATIONS, "Where the configurations differ", columns, rows)


def _explain_no_difference(studies: Sequence[Evidence]) -> str:
    """What is said where no key is known to differ."""
    unknown = [study.name for study in studies if not orders.get_configuration(study)]
    return (
        f"Unknown: no configuration is stored of {words.join_names(unknown)}."
        if unknown
        else "Nowhere."
    )


_HEIGHT, _LEFT, _TOP, _WIDTH, _TALL = 340.0, 56.0, 34.0, 440.0, 240.0


_DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))


_CAPTION = (
    "Best objective so far, by evaluations that have ended. One seed, chosen as the best of many: it overstates each study's gain alike. "
    "Heights compare only where the objective and the data are the same."
)


def draw_overlay(studies: Sequence[Evidence]) -> Figure | None:
    """The figure; null when no study has a complete trial."""
    shown = [
        (study, study.convergence)
        for study in studies
        if study.convergence is not None
        and any(loss is not None for loss in study.convergence.best)
    ]
    return (
        make_figure(lambda palette: _draw_convergences(shown, palette), "convergences")
        if shown
        else None
    )


def _draw_convergences(shown: Sequence[tuple[Evidence, Convergence]], palette: Palette) -> Drawing:
    sheet = FigureLayout(_HEIGHT, palette)
    axes = sheet.add_axes(_LEFT, _TOP, width=_WIDTH, height=_TALL)
    colours = (palette.best, palette.baseline, palette.accent, palette.bad, palette.muted)
    lines: list[tuple[str, str, list[float], list[float]]] = []
    for at, (study, course) in enumerate(shown):
        known = [
            (count, to_objective(study, loss))
            for count, loss in zip(course.evaluation, course.best, strict=True)
            if loss is not None
        ]
        kept = [known[index] for index in thin_out(len(known))]
        x, y = [float(count) for count, _ in kept], [best for _, best in kept]
        colour, dash = colours[at % len(colours)], _DASHES[at // len(colours) % len(_DASHES)]
        axes.plot(
            x, y, drawstyle="steps-post", color=colour, linestyle=dash, linewidth=2.0, zorder=4
        )
        if len(x) == 1:
            axes.plot(x, y, marker="o", color=colour, markersize=5.0, zorder=5)
        lines.append((study.name, colour, x, y))
    first = min(x[0] for *_, x, _ in lines)
    last = max(x[-1] for *_, x, _ in lines)
    axes.set_xlim(first - 0.02 * (last - first) - 0.5, last)
    ends = [y[-1] for *_, y in lines]
    low, high = find_limits([best for *_, y in lines for best in y], upper=1.0, must=ends)
    axes.set_ylim(low, high)
    for (_, colour, x, _), end in zip(
        lines, ends, strict=True
    ):  # leads the eye from the end of a shorter search to its label
        axes.plot(
            [x[-1], last], [end, end], color=colour, linestyle=(0, (1, 3)), linewidth=1.0, zorder=3
        )
    places = spread_apart(ends, (high - low) * 17.0 / _TALL)
    for (name, colour, _, _), place in zip(lines, places, strict=True):
        sheet.label_point(axes, last, place, fit_text(name, 130.0), colour=colour, shift=(8, 0))
    set_ticks(axes, x=5, y=5, whole=True)
    sheet.label_top(axes, "best objective so far", x=0.0)
    sheet.label_bottom(axes, "evaluations")
    return Drawing(sheet.canvas, "Convergence", _CAPTION)
