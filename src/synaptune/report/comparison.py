"""Several studies side by side: what each claims, differences where they can be paired, and where their configurations part."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.analysis.compare import compare, holm
from synaptune.analysis.effects import LEVEL
from synaptune.analysis.results import Comparison, Course, Evidence
from synaptune.core.files import write_atomic
from synaptune.report import findings as words
from synaptune.report import markdown, page
from synaptune.report import next_commands as orders
from synaptune.report import table_model as cells
from synaptune.report.figures import standalone
from synaptune.report.figures.sheet import Sheet, fitted, robust, spaced, thinned, ticks
from synaptune.report.figures.theme import Drawing, Figure, Palette, rendered
from synaptune.report.page import Section
from synaptune.report.table_model import Column, Table
from synaptune.report.tables import objective
from synaptune.search.trial import Trial

_CONFIGURATIONS = "configurations"
_DATA, _BASELINE, _SCORE = "data_fingerprint", "run_fingerprint", "test_perplexity"
_ABSENT, _UNKNOWN = "(absent)", "(unknown)"


class Paired(NamedTuple):
    """Two studies, `second` against `first` by their tuned models.

    difference: improvement of test perplexity on shared seeds [%], null when they are not paired; adjusted: its p for the number
    of pairs (Holm); note: why they are not paired, or what else differs.
    """

    first: str
    second: str
    difference: Comparison | None
    adjusted: float | None
    note: str


def paired(several: Sequence[Evidence]) -> list[Paired]:
    """Every two of the studies; they are paired on seeds where data and baseline are the same."""
    found = [_pair(first, second) for first, second in itertools.combinations(several, 2)]
    known = [pair.difference.p for pair in found if pair.difference is not None]
    adjusted = iter(holm(known))
    return [pair if pair.difference is None else pair._replace(adjusted=next(adjusted)) for pair in found]


def _pair(first: Evidence, second: Evidence) -> Paired:
    def unlike(reason: str) -> Paired:
        return Paired(first.name, second.name, None, None, f"not paired: {reason}")

    if first.claim is None or second.claim is None:
        return unlike("no validation in " + words.some([study.name for study in (first, second) if study.claim is None]))
    sides = [{run.facts.get("seed"): run for run in runs} for study in (first, second) for runs in (study.claim.before, study.claim.after)]  # type: ignore[union-attr]
    seeds = [seed for seed in sides[0] if seed is not None and all(seed in side for side in sides)]
    if len(seeds) < 2:
        return unlike("fewer than two shared seeds")
    if not _same(sides, seeds, _DATA):
        return unlike("data that differ, or whose fingerprints are unknown")
    if not _same([sides[0], sides[2]], seeds, _BASELINE):
        return unlike("baselines that differ, or whose fingerprints are unknown")
    scores = [[side[seed].facts[_SCORE] for seed in seeds] for side in (sides[1], sides[3])]  # a claim is made of them
    note = "" if _same(sides, seeds, "code_version") else "the code differs, or its version is unknown"
    return Paired(first.name, second.name, compare(scores[0], scores[1]), None, note)


def _same(sides: Sequence[Mapping[Any, Trial]], seeds: Sequence[Any], fact: str) -> bool:
    """Whether a fact is known and the same in all sides' runs of each seed."""
    each = [{side[seed].facts.get(fact) for side in sides} for seed in seeds]
    return all(len(found) == 1 and None not in found for found in each)


def comparison(several: Sequence[Evidence]) -> str:
    """The page of several studies."""
    drawn, pairs, apart = overlaid(several), paired(several), configurations(several)
    parts = [
        Section(
            "verdict", "Verdict", f'<p class="headline none">{page.prose(headline(several, pairs))}</p>' + page.findings(_lines(several))
        ),
        Section("claims", "What each study claims", page.table_html(claims(several))),
        Section("differences", "Differences", page.table_html(differences(pairs))),
        Section("search", "The searches", "" if drawn is None else page.figure_html(drawn)),
        Section("parameters", "Best parameters", _if_rows(best_parameters(several))),
        Section("configuration", "Where the configurations differ", _if_rows(apart) or f"<p>{page.prose(_nowhere(several))}</p>"),
    ]
    head = f"<h1>{len(several)} studies compared</h1><p>{escape(', '.join(study.name for study in several))}</p>"
    return page.document("Comparison of studies", head, [part for part in parts if part.html])


def _if_rows(table: Table) -> str:
    return page.table_html(table) if table.rows else ""


def comparison_markdown(several: Sequence[Evidence], folder: Path) -> Path:
    """Write comparison.md with its figure and tables below folder; returns its path. Raises UserError: no space."""
    drawn, pairs = overlaid(several), paired(several)
    tables = [claims(several), differences(pairs), best_parameters(several), configurations(several)]
    parts = [f"# {len(several)} studies compared", f"**{markdown.escaped(headline(several, pairs))}**", markdown.findings(_lines(several))]
    if drawn is not None:
        write_atomic(folder / "figures" / f"{drawn.key}.svg", standalone(drawn).encode())
        parts.append(markdown.figure_text(drawn))
    for table in tables:
        if table.rows:
            write_atomic(folder / "tables" / f"{table.key}.csv", cells.as_csv(table).encode())
            parts += [f"## {table.title}", markdown.table_text(table)]
        elif table.key == _CONFIGURATIONS:
            parts += [f"## {table.title}", markdown.escaped(_nowhere(several))]
    path = folder / "comparison.md"
    write_atomic(path, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return path


def headline(several: Sequence[Evidence], pairs: Sequence[Paired]) -> str:
    """What the comparison says in one sentence."""
    told = [pair for pair in pairs if pair.adjusted is not None and pair.adjusted < LEVEL]
    measured = sum(pair.difference is not None for pair in pairs)
    if len(pairs) == 1 and pairs[0].difference is not None:
        pair, found = pairs[0], pairs[0].difference
        better, worse = (pair.second, pair.first) if found.mean >= 0.0 else (pair.first, pair.second)
        if told:
            low, high = sorted((abs(found.low), abs(found.high)))
            return f"{better} is better than {worse}: {abs(found.mean):.1f} % of test perplexity (95 % interval {low:.1f} to {high:.1f})."
        return f"{pair.first} and {pair.second} are not told apart: {found.mean:.1f} % ({found.low:.1f} to {found.high:.1f})."
    if measured:
        return (
            f"Of {len(pairs)} pairs of studies {measured} can be compared on shared seeds; in {len(told)} the difference is told from zero."
        )
    return "No two of the studies can be paired: their gains stand side by side and are not compared."


def _lines(several: Sequence[Evidence]) -> list[words.Finding]:
    return [words.Finding(study.name, words.verdict(study).headline) for study in several]


def claims(several: Sequence[Evidence]) -> Table:
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
    return Table("claims", "What each study claims", columns, [_claim(study) for study in several])


def _claim(study: Evidence) -> list[Any]:
    claim, best = study.claim, study.best
    said = [None, None, "no claim"] if claim is None else [claim.gain, claim.gain.count, claim.decision]
    ended = [trial for trial in study.trials if trial.state != "running"]
    failed = sum(trial.state == "failed" for trial in ended)
    hours = sum(study.seconds_by_phase.values()) / 3600.0
    return [study.name, *said, None if best is None else best.objective, len(ended), failed, hours]


def differences(pairs: Sequence[Paired]) -> Table:
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
                pair.adjusted,
                found and found.wilcoxon,
                found and found.effect,
                pair.note or "paired on seeds",
            ]
        )
    note = "Tuned models on the same fresh seeds, with the same data and the same baseline; positive: the first named is better."
    return Table("differences", "Differences", columns, rows, note)


def best_parameters(several: Sequence[Evidence]) -> Table:
    """Best values by parameter, a column for each study."""
    names = list(dict.fromkeys(name for study in several for name in study.names))
    columns = [Column("parameter", "name"), *(Column(study.name, "value") for study in several)]
    rows = [[name, *(None if study.best is None else study.best.values.get(name) for study in several)] for name in names]
    return Table("best", "Best parameters", columns, rows)


def configurations(several: Sequence[Evidence]) -> Table:
    """The keys in which the configurations differ, ranges and starts of parameters among them, as far as they are known."""
    settings = [orders.configuration(study) for study in several]
    known = [each for each in settings if each]
    rows = []
    for key in sorted({key for each in known for key in each}):
        values = [each.get(key, _ABSENT) for each in known]
        if any(value != values[0] for value in values):
            rows.append([key, *(cells.plain(each.get(key, _ABSENT) if each else _UNKNOWN) for each in settings)])
    columns = [Column("key"), *(Column(study.name) for study in several)]
    return Table(_CONFIGURATIONS, "Where the configurations differ", columns, rows)


def _nowhere(several: Sequence[Evidence]) -> str:
    """What is said where no key is known to differ."""
    unknown = [study.name for study in several if not orders.configuration(study)]
    return f"Unknown: no configuration is stored of {words.some(unknown)}." if unknown else "Nowhere."


_HEIGHT, _LEFT, _TOP, _WIDTH, _TALL = 340.0, 56.0, 34.0, 440.0, 240.0


_DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))


_CAPTION = (
    "Best objective so far, by evaluations that have ended. One seed, chosen as the best of many: it overstates each study's gain alike. "
    "Heights compare only where the objective and the data are the same."
)


def overlaid(several: Sequence[Evidence]) -> Figure | None:
    """The figure; null when no study has a complete trial."""
    shown = [(study, study.course) for study in several if study.course is not None and any(loss is not None for loss in study.course.best)]
    return rendered(lambda palette: _drawn(shown, palette), "convergences") if shown else None


def _drawn(shown: Sequence[tuple[Evidence, Course]], palette: Palette) -> Drawing:
    sheet = Sheet(_HEIGHT, palette)
    axes = sheet.axes(_LEFT, _TOP, width=_WIDTH, height=_TALL)
    colours = (palette.best, palette.baseline, palette.accent, palette.bad, palette.muted)
    lines: list[tuple[str, str, list[float], list[float]]] = []
    for at, (study, course) in enumerate(shown):
        known = [(count, objective(study, loss)) for count, loss in zip(course.evaluation, course.best, strict=True) if loss is not None]
        kept = [known[index] for index in thinned(len(known))]
        x, y = [float(count) for count, _ in kept], [best for _, best in kept]
        colour, dash = colours[at % len(colours)], _DASHES[at // len(colours) % len(_DASHES)]
        axes.plot(x, y, drawstyle="steps-post", color=colour, linestyle=dash, linewidth=2.0, zorder=4)
        if len(x) == 1:
            axes.plot(x, y, marker="o", color=colour, markersize=5.0, zorder=5)
        lines.append((study.name, colour, x, y))
    first = min(x[0] for *_, x, _ in lines)
    last = max(x[-1] for *_, x, _ in lines)
    axes.set_xlim(first - 0.02 * (last - first) - 0.5, last)
    ends = [y[-1] for *_, y in lines]
    low, high = robust([best for *_, y in lines for best in y], upper=1.0, must=ends)
    axes.set_ylim(low, high)
    for (_, colour, x, _), end in zip(lines, ends, strict=True):  # leads the eye from the end of a shorter search to its label
        axes.plot([x[-1], last], [end, end], color=colour, linestyle=(0, (1, 3)), linewidth=1.0, zorder=3)
    places = spaced(ends, (high - low) * 17.0 / _TALL)
    for (name, colour, _, _), place in zip(lines, places, strict=True):
        sheet.mark(axes, last, place, fitted(name, 130.0), colour=colour, shift=(8, 0))
    ticks(axes, x=5, y=5, whole=True)
    sheet.head(axes, "best objective so far", x=0.0)
    sheet.foot(axes, "evaluations")
    return Drawing(sheet.canvas, "Convergence", _CAPTION)
