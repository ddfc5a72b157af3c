"""Comparison of several studies: results, paired differences, and differing configuration keys."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synaptune.analysis.compare import compare, holm
from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import Comparison, Convergence, Evidence
from synaptune.report import findings, markdown, next_commands, page, table_model, tables
from synaptune.report.figures.layout import (
    FigureLayout,
    draw_best_so_far,
    find_limits,
    fit_text,
    set_ticks,
    spread_apart,
)
from synaptune.report.figures.theme import Drawing, Figure, Palette, make_figure
from synaptune.report.outline import Block, Details, Section
from synaptune.report.table_model import Column, Table, make_table
from synaptune.search.space.values import is_same
from synaptune.search.trial import Trial

_DATA, _BASELINE, _SCORE = "data_fingerprint", "run_fingerprint", "test_perplexity"
_ABSENT, _UNKNOWN = "(absent)", "(unknown)"
_MANY_KEYS = 30  # rows of a table of keys that is folded


class StudyPair(NamedTuple):
    """The comparison of the tuned models of two studies, `second` against `first`.

    Attributes:
        first: name of the first study.
        second: name of the second study.
        difference: improvement of test perplexity on shared seeds [%]; None when not paired.
        adjusted_p: p-value of the difference, adjusted for the number of pairs (Holm).
        note: why the studies are not paired, or what else differs.
    """

    first: str
    second: str
    difference: Comparison | None
    adjusted_p: float | None
    note: str


def pair_studies(studies: Sequence[Evidence]) -> list[StudyPair]:
    """Compare every two studies, paired on seeds where data and baseline are the same."""
    pairs = [_compare_pair(first, second) for first, second in itertools.combinations(studies, 2)]
    p_values = [pair.difference.p for pair in pairs if pair.difference is not None]
    adjusted = iter(holm(p_values))
    return [
        pair if pair.difference is None else pair._replace(adjusted_p=next(adjusted))
        for pair in pairs
    ]


def _compare_pair(first: Evidence, second: Evidence) -> StudyPair:
    def refuse(reason: str) -> StudyPair:
        return StudyPair(first.name, second.name, None, None, f"not paired: {reason}")

    if first.validation is None or second.validation is None:
        names = [study.name for study in (first, second) if study.validation is None]
        return refuse(f"no validation in {findings.join_names(names)}")
    sides = [
        {run.facts.get("seed"): run for run in runs}
        for study in (first, second)
        for runs in (study.validation.before, study.validation.after)  # type: ignore[union-attr]
    ]
    seeds = [seed for seed in sides[0] if seed is not None and all(seed in side for side in sides)]
    if len(seeds) < 2:
        return refuse("fewer than two shared seeds")
    if not _is_same(sides, seeds, _DATA):
        return refuse("the data differ, or their fingerprints are unknown")
    if not _is_same([sides[0], sides[2]], seeds, _BASELINE):
        return refuse("the baselines differ, or their fingerprints are unknown")
    # A ValidationResult exists only when every run has this fact.
    scores = [[side[seed].facts[_SCORE] for seed in seeds] for side in (sides[1], sides[3])]
    note = (
        ""
        if _is_same(sides, seeds, "code_version")
        else "the code differs, or its version is unknown"
    )
    return StudyPair(first.name, second.name, compare(scores[0], scores[1]), None, note)


def _is_same(sides: Sequence[Mapping[Any, Trial]], seeds: Sequence[Any], fact: str) -> bool:
    """Return whether a fact is known and equal in the runs of all sides, for each seed."""
    values_by_seed = [{side[seed].facts.get(fact) for side in sides} for seed in seeds]
    return all(len(values) == 1 and None not in values for values in values_by_seed)


def render_comparison(studies: Sequence[Evidence]) -> str:
    """Render the page that compares several studies as HTML."""
    names = escape(", ".join(study.name for study in studies))
    head = f"<h1>{len(studies)} studies compared</h1><p>{names}</p>"
    return page.render_document("Comparison of studies", head, make_comparison(studies))


def make_comparison(studies: Sequence[Evidence]) -> list[page.RenderedSection]:
    """Make the sections of the page that compares several studies."""
    return page.render_sections(_make_sections(studies))


def write_comparison_markdown(studies: Sequence[Evidence], folder: Path) -> Path:
    """Write comparison.md with its figure and tables below a folder.

    Returns:
        The path of comparison.md.

    Raises:
        UserError: a file cannot be written, for example on a full disk.
    """
    sections = _make_sections(studies)
    tables = [block for part in sections for block in part.blocks if isinstance(block, Table)]
    heading = f"{len(studies)} studies compared"
    return markdown.write_document(folder / "comparison.md", heading, sections, tables)


def _make_sections(studies: Sequence[Evidence]) -> list[Section]:
    """Make the sections that have content."""
    overlay, pairs = draw_overlay(studies), pair_studies(studies)
    reasons = [
        findings.Finding(study.name, findings.make_verdict(study).headline) for study in studies
    ]
    verdict = findings.Verdict(make_headline(studies, pairs), "none", reasons)
    parameters, keys = tabulate_best_parameters(studies), tabulate_configurations(studies)
    sections = [
        Section("verdict", "Verdict", [verdict]),
        Section("claims", "Results by study", [tabulate_results(studies)]),
        Section("differences", "Differences", [tabulate_differences(pairs)]),
        Section("search", "The searches", [] if overlay is None else [overlay]),
        Section("parameters", parameters.title, [parameters] if parameters.rows else []),
        Section("configuration", keys.title, _show_configurations(keys, studies)),
    ]
    return [section for section in sections if section.blocks]


def _show_configurations(keys: Table, studies: Sequence[Evidence]) -> Sequence[Block]:
    """Show the keys that differ, folded where they are many."""
    if not keys.rows:
        return [_explain_no_difference(studies)]
    if len(keys.rows) <= _MANY_KEYS:
        return [keys]
    return [f"{len(keys.rows)} keys differ.", Details(keys)]


def make_headline(studies: Sequence[Evidence], pairs: Sequence[StudyPair]) -> str:
    """Summarise the comparison in one sentence."""
    significant = [
        pair for pair in pairs if pair.adjusted_p is not None and pair.adjusted_p < ALPHA
    ]
    paired = sum(pair.difference is not None for pair in pairs)
    if len(pairs) == 1 and pairs[0].difference is not None:
        pair, difference = pairs[0], pairs[0].difference
        better, worse = (
            (pair.second, pair.first) if difference.mean >= 0.0 else (pair.first, pair.second)
        )
        if significant:
            low, high = sorted((abs(difference.low), abs(difference.high)))
            return (
                f"{better} is better than {worse}: {abs(difference.mean):z.1f} % of test "
                f"perplexity (95 % interval {low:z.1f} to {high:z.1f})."
            )
        return (
            f"The difference between {pair.first} and {pair.second} is not significant: "
            f"{difference.mean:z.1f} % ({difference.low:z.1f} to {difference.high:z.1f})."
        )
    if paired:
        return (
            f"Of {len(pairs)} pairs of studies {paired} can be compared on shared seeds; "
            f"{len(significant)} of these differences are significant."
        )
    return "No two of the studies can be paired: their gains are listed but not compared."


def tabulate_results(studies: Sequence[Evidence]) -> Table:
    """Make a table with a row for each study."""
    results = [study.validation for study in studies]
    states = [Counter(trial.state for trial in study.trials) for study in studies]
    cells = {
        Column("study"): [study.name for study in studies],
        Column("gain in test perplexity", "gain", "%"): [each and each.gain for each in results],
        Column("fresh seeds", "count"): [each and each.gain.count for each in results],
        Column("decision"): ["no claim" if each is None else each.decision for each in results],
        Column("best objective", "loss"): [
            study.best and study.best.objective for study in studies
        ],
        Column("evaluations", "count"): [each.total() - each["running"] for each in states],
        Column("failed", "count"): [each["failed"] for each in states],
        Column("device time", "seconds", "s"): [
            sum(study.seconds_by_phase.values()) for study in studies
        ],
    }
    return make_table("claims", "Results by study", cells)


def tabulate_differences(pairs: Sequence[StudyPair]) -> Table:
    """Make a table with a row for each pair of studies."""
    differences = [pair.difference for pair in pairs]
    cells = {
        Column("study"): [pair.second for pair in pairs],
        Column("against"): [pair.first for pair in pairs],
        Column("improvement of test perplexity", "gain", "%"): differences,
        Column("p (Holm)", "p"): [pair.adjusted_p for pair in pairs],
        Column("Wilcoxon p", "p"): [each and each.wilcoxon for each in differences],
        Column("effect size", "share"): [each and each.effect for each in differences],
        Column("remark"): [pair.note or "paired on seeds" for pair in pairs],
    }
    note = (
        "Tuned models on the same fresh seeds, with the same data and the same baseline. "
        "A positive value means that the first named study is better."
    )
    return make_table("differences", "Differences", cells, note)


def tabulate_best_parameters(studies: Sequence[Evidence]) -> Table:
    """Make a table of the best values by parameter, with a column for each study."""
    names = list(dict.fromkeys(name for study in studies for name in study.names))
    best = [
        {} if study.best is None else tables.show_values(study, study.best.values)
        for study in studies
    ]
    rows = [[name, *(values.get(name) for values in best)] for name in names]
    columns = [Column("parameter", "name"), *(Column(study.name, "value") for study in studies)]
    return Table("best", "Best parameters", columns, rows)


def tabulate_configurations(studies: Sequence[Evidence]) -> Table:
    """Make a table of the keys in which the known configurations differ.

    The keys include the ranges and start values of the parameters.
    """
    configurations = [next_commands.get_configuration(study) for study in studies]
    known = [configuration for configuration in configurations if configuration]
    rows = []
    for key in sorted({key for configuration in known for key in configuration}):
        values = [configuration.get(key, _ABSENT) for configuration in known]
        if not all(is_same(value, values[0]) for value in values):
            entries = [
                table_model.format_plain(
                    configuration.get(key, _ABSENT) if configuration else _UNKNOWN
                )
                for configuration in configurations
            ]
            rows.append([key, *entries])
    columns = [Column("key"), *(Column(study.name) for study in studies)]
    return Table("configurations", "Where the configurations differ", columns, rows)


def _explain_no_difference(studies: Sequence[Evidence]) -> str:
    """Explain why the table of configuration keys is empty."""
    unknown = [study.name for study in studies if not next_commands.get_configuration(study)]
    return (
        f"Unknown: no configuration is stored for {findings.join_names(unknown)}."
        if unknown
        else "The configurations do not differ."
    )


# Height of the figure, then left, top and height of its axes, in the figure's units.
_HEIGHT, _LEFT, _TOP, _AXES_HEIGHT = 340.0, 56.0, 34.0, 240.0
_DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))
_CAPTION = (
    "Best objective so far, by ended evaluations. Each best value is selected from many candidates "
    "on one seed, which overstates the gain of every study. Compare the heights only where the "
    "objective and the data are the same."
)


def draw_overlay(studies: Sequence[Evidence]) -> Figure | None:
    """Draw the convergence of all studies; None when no study has a complete trial."""
    curves = [
        (study, study.convergence)
        for study in studies
        if study.convergence and any(loss is not None for loss in study.convergence.best)
    ]
    if not curves:
        return None
    return make_figure(lambda palette: _draw_convergences(curves, palette), "convergences")


def _draw_convergences(curves: Sequence[tuple[Evidence, Convergence]], palette: Palette) -> Drawing:
    layout = FigureLayout(_HEIGHT, palette)
    last = max(course.evaluation[-1] for _, course in curves)
    names = 90.0 if palette.is_narrow else 144.0  # width of the labels at the right
    width = layout.width - _LEFT - names
    axes = layout.add_axes(
        _LEFT, _TOP, width=width, height=_AXES_HEIGHT, xlim=(0.5 - 0.02 * last, last)
    )
    colours = (palette.best, palette.baseline, palette.accent, palette.bad, palette.muted)
    objectives = [
        np.array(course.best, float) * (-1.0 if study.maximize else 1.0) for study, course in curves
    ]
    ends = [float(best[-1]) for best in objectives]
    low, high = find_limits(np.concatenate(objectives), upper=1.0, include=ends)
    axes.set_ylim(low, high)
    places = spread_apart(ends, (high - low) * 17.0 / _AXES_HEIGHT)
    for index, (study, course) in enumerate(curves):
        colour, best, x = colours[index % len(colours)], objectives[index], course.evaluation
        dash = _DASHES[index // len(colours) % len(_DASHES)]
        marker = "o" if np.isfinite(best).sum() == 1 else ""
        style = {"linestyle": dash, "linewidth": 2.0, "marker": marker, "markersize": 5.0}
        draw_best_so_far(axes, x, best, colour=colour, zorder=4, **style)
        # A dotted line connects the end of a shorter search with its label.
        dotted = {"linestyle": (0, (1, 3)), "linewidth": 1.0, "zorder": 3}
        axes.plot([x[-1], last], [ends[index]] * 2, color=colour, **dotted)
        name = fit_text(study.name, names - 14.0)
        layout.label_point(axes, last, places[index], name, colour=colour, shift=(8, 0))
    set_ticks(axes, x=5, y=5, integer=True)
    layout.label_top(axes, "best objective so far", shift=_LEFT)
    layout.label_bottom(axes, "evaluations")
    return Drawing(layout.canvas, "Convergence", _CAPTION)
