"""The live table of a search on a terminal: progress, best trial, running trials, time and cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synaptune.core.text import format_duration, format_parameter, make_labels
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.callbacks.progress import (
    ProgressCallback,
    RunningTrial,
    SearchInfo,
    SearchProgress,
)
from synaptune.study.callbacks.screen import Screen

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MAX_ROWS = 8  # running trials
_MAX_VALUES = 24  # parameters of the best trial; chosen: six lines of 80 columns


def render_progress(progress: SearchProgress, now: float) -> RenderableType:
    """Return the table at a time [s, monotonic]; no text is cut, long rows wrap."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    rows = _make_rows(progress, now)
    facts.add_column(style="dim", no_wrap=True, min_width=max(map(len, rows)))
    facts.add_column(overflow="fold")
    for name, text in rows.items():
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [Text(progress.info.title, style="bold"), facts]
    if progress.running:
        parts.append(_render_running(progress.running, now))
    return Group(*parts)


def render_result(progress: SearchProgress, now: float) -> RenderableType:
    """Return the line that stays on the terminal after the search."""
    from rich.text import Text

    info, best = progress.info, progress.best
    found = "" if best is None else f", best {best.objective:.6g} in trial {best.number}"
    duration = format_duration(now - progress.started_at)
    return Text.assemble((info.title, "bold"), f"  {_describe_count(progress)}{found}, {duration}")


def _make_rows(progress: SearchProgress, now: float) -> dict[str, str]:
    info, distribution, best = progress.info, progress.diagnostics, progress.best
    rows = {f"{info.label}s": _describe_count(progress)}
    if progress.generation or distribution is not None:
        rows["generation"] = f"{progress.generation}{_describe_distribution(distribution)}"
    if best is not None:
        later = f", {progress.since_best} ended since" if progress.since_best else ""
        rows["best"] = f"{best.objective:.6g} in trial {best.number}{later}"
        rows["at"] = _describe_best(best, info.space)
    rate, left = progress.get_rate(now), progress.get_seconds_left(now)
    if rate is not None:
        digits = 0 if rate > 0.003 else 1
        duration = f", {format_duration(left)} left" if left and progress.trials_left else ""
        rows["rate"] = f"{3600.0 * rate:,.{digits}f} an hour{duration}"
    if info.stop.price is not None:
        rows["cost"] = _describe_cost(progress, info.stop.price, info.stop.money)
    return rows


def _describe_count(progress: SearchProgress) -> str:
    total = f" of {progress.info.total}" if progress.info.total else ""
    return f"{progress.finished}{total} ended{_describe_failures(progress)}"


def _describe_failures(progress: SearchProgress) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in progress.failures.most_common())
    failed = f", {progress.states['failed']} failed ({kinds})" if kinds else ""
    return failed + (f", {progress.states['pruned']} pruned" if progress.states["pruned"] else "")


def _describe_distribution(distribution: Diagnostics | None) -> str:
    if distribution is None:
        return ""
    stagnation = distribution.stagnation
    return f", step {distribution.step:.3g}" + (
        f", {stagnation} without a new best" if stagnation else ""
    )


def _describe_cost(progress: SearchProgress, price: float, limit: float | None) -> str:
    """Return the cost so far, the expected further cost, and what is left of the limit."""
    cost = progress.seconds / 3600.0 * price
    text = f"{cost:.4g} so far"
    if progress.finished and progress.trials_left:
        text += f", {cost / progress.finished * progress.trials_left:.4g} more to the budget"
    return text if limit is None else f"{text}, {max(0.0, limit - cost):.4g} left of {limit:g}"


def _describe_best(best: Trial, space: Space) -> str:
    """Return the values by their short names, the farthest from the start of the search first."""
    distances = {
        dimension.name: abs(dimension.to_unit(best.values[dimension.name]) - start)
        for dimension, start in zip(space.dimensions, space.get_start(), strict=True)
        if dimension.name in best.values
    }
    names = sorted(best.values, key=lambda name: -distances.get(name, 0.0))
    labels = make_labels(space.names)
    texts = [
        f"{labels.get(name, name)}={format_parameter(best.values[name])}"
        for name in names[:_MAX_VALUES]
    ]
    more = [f"and {len(names) - _MAX_VALUES} more"] if len(names) > _MAX_VALUES else []
    return "  ".join(texts + more)


def _render_running(running: Mapping[int, RunningTrial], now: float) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("running", "for", "at step", "reported"):
        table.add_column(heading, justify="left" if heading == "running" else "right", no_wrap=True)
    for number, entry in sorted(running.items())[:_MAX_ROWS]:
        table.add_row(
            f"trial {number}",
            format_duration(now - entry.started_at),
            "" if entry.step is None else str(entry.step),
            "" if entry.value is None else f"{entry.value:.5g}",
        )
    if len(running) > _MAX_ROWS:
        table.add_row(f"and {len(running) - _MAX_ROWS} more")
    return table


class LiveTable(ProgressCallback):
    """Shows the table of a search on a terminal; one line of it stays there after `close`."""

    def __init__(self, info: SearchInfo, earlier: Sequence[Trial], console: Console) -> None:
        super().__init__(info, earlier)
        self._render = render_progress
        self._screen = Screen(lambda: self._render(self.progress, time.monotonic()), console)

    def on_start(self, trial: Trial) -> None:
        """Show a trial among the running ones."""
        super().on_start(trial)
        self._screen.redraw()

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """Show the reported value of a running trial."""
        super().on_report(trial, step, value)
        self._screen.redraw()

    def on_end(self, trial: Trial, finished: int) -> None:
        """Count an ended trial."""
        super().on_end(trial, finished)
        self._screen.redraw()

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        """Count a trial that has ended in another process."""
        super().on_foreign_end(trial, values)
        self._screen.redraw()

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Show the search distribution, unless several searches are shown as one."""
        if self.progress.info.phases == 1:
            self.progress.diagnostics = diagnostics
            self._screen.redraw()

    def close(self, exit_code: int) -> None:
        """Replace the table, whose rate and running trials are past, by its result."""
        self._render = render_result
        self._screen.close()
