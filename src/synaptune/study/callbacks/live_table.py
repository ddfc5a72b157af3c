"""The live table of a search on a terminal: where it stands, its best, what runs, what failed, time
and money.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synaptune.core.text import format_duration, format_parameter
from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial, find_best
from synaptune.study.callbacks.screen import Screen
from synaptune.study.database import keys as schema

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MAX_ROWS = 8  # running trials shown
_MAX_VALUES = 6  # parameters of the best shown


@dataclass(frozen=True)
class RunningTrial:
    """A trial under way: when it began [s, monotonic], and what it reported last."""

    trial: Trial
    started_at: float
    step: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class SearchInfo:
    """The fixed content of a table.

    Attributes:
        title: first line.
        label: what is counted.
        total: number of planned trials; None when unknown.
        stop: rules that end the search before that.
        phases: number of searches shown as one; more than one show no search distribution.
    """

    title: str
    space: Space
    label: str = "trials"
    total: int | None = None
    maximize: bool = False
    stop: StopConfig = field(default_factory=StopConfig)
    phases: int = 1


class SearchProgress:
    """The state of a search.

    One thread updates it and another reads it, so values are replaced, never modified.
    """

    def __init__(self, info: SearchInfo, earlier: Sequence[Trial], now: float) -> None:
        """earlier: trials that had ended before; now: [s, monotonic]."""
        self.info, self.started_at = info, now
        self.best = find_best(earlier, info.maximize)
        self.finished, self.ended_here = len(earlier), 0
        self.states = Counter(trial.state for trial in earlier)
        self.failures = Counter(
            _failure_kind(trial) for trial in earlier if trial.state == "failed"
        )
        self.seconds = sum(_run_seconds(trial) for trial in earlier)
        self.since_best = 0
        self.generation = max((_generation(trial) for trial in earlier), default=0)
        self.diagnostics: Diagnostics | None = None
        self.running: dict[int, RunningTrial] = {}

    def record_start(self, trial: Trial, now: float) -> None:
        """A trial began."""
        self.running = self.running | {trial.number: RunningTrial(trial, now)}
        self.generation = max(self.generation, _generation(trial))

    def record_report(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        if (known := self.running.get(trial.number)) is not None:
            self.running = self.running | {
                trial.number: RunningTrial(known.trial, known.started_at, step, value)
            }

    def record_end(self, trial: Trial) -> None:
        """A trial ended."""
        self.running = {
            number: entry for number, entry in self.running.items() if number != trial.number
        }
        self.finished, self.ended_here = self.finished + 1, self.ended_here + 1
        self.states = self.states + Counter([trial.state])
        self.seconds += _run_seconds(trial)
        if trial.state == "failed":
            self.failures = self.failures + Counter([_failure_kind(trial)])
        best = find_best(
            [entry for entry in (self.best, trial) if entry is not None], self.info.maximize
        )
        self.since_best = self.since_best + 1 if best is self.best else 0
        self.best = best

    @property
    def trials_left(self) -> int | None:
        """Trials still to end; null when unknown."""
        return None if self.info.total is None else max(0, self.info.total - self.finished)

    def pace(self, now: float) -> float | None:
        """Trials a second by the clock; null before the first of this process has ended."""
        return (
            self.ended_here / (now - self.started_at)
            if self.ended_here and now > self.started_at
            else None
        )

    def seconds_left(self, now: float) -> float | None:
        """Time until the budget or stop.hours is spent [s]; null when unknown."""
        pace, hours = self.pace(now), self.info.stop.hours
        times = [] if pace is None or self.trials_left is None else [self.trials_left / pace]
        times += [] if hours is None else [max(0.0, 3600.0 * hours - (now - self.started_at))]
        return min(times, default=None)


def _run_seconds(trial: Trial) -> float:
    return float(trial.facts.get(schema.SECONDS, 0.0))


def _generation(trial: Trial) -> int:
    return int(trial.facts.get(schema.GENERATION, 0))


def _failure_kind(trial: Trial) -> str:
    return str(trial.facts.get(schema.FAILURE, "error"))


def render_progress(progress: SearchProgress, now: float) -> RenderableType:
    """The table at a moment [s, monotonic]."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    rows = _make_rows(progress, now)
    facts.add_column(style="dim", no_wrap=True, min_width=max(len(name) for name, _ in rows))
    facts.add_column(overflow="ellipsis", no_wrap=True)
    for name, text in rows:
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [Text(progress.info.title, style="bold"), facts]
    if progress.running:
        parts.append(_render_running(progress.running, now))
    return Group(*parts)


def _make_rows(progress: SearchProgress, now: float) -> list[tuple[str, str]]:
    scene, health = progress.info, progress.diagnostics
    rows = [
        (
            scene.label,
            (
                f"{progress.finished}{f' of {scene.total}' if scene.total else ''}"
                f" ended{_describe_failures(progress)}"
            ),
        )
    ]
    if progress.generation or health is not None:
        step = "" if health is None else f", step {health.step:.3g}"
        stale = (
            f", {health.stagnation} without a new best"
            if health is not None and health.stagnation
            else ""
        )
        rows.append(("generation", f"{progress.generation}{step}{stale}"))
    if progress.best is not None:
        when = f", {progress.since_best} ended since" if progress.since_best else ""
        rows.append(
            ("best", f"{progress.best.objective:.6g} in trial {progress.best.number}{when}")
        )
        rows.append(("at", _describe_best(progress.best, scene.space)))
    pace, left = progress.pace(now), progress.seconds_left(now)
    if pace is not None:
        rows.append(
            (
                "rate",
                (
                    f"{3600.0 * pace:,.{0 if pace > 0.003 else 1}f} an"
                    " hour"
                    + (f", {format_duration(left)} left" if left and progress.trials_left else "")
                ),
            )
        )
    if scene.stop.price is not None:
        rows.append(("cost", _describe_cost(progress, scene.stop.price, scene.stop.money)))
    return rows


def _describe_failures(progress: SearchProgress) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in progress.failures.most_common())
    failed = f", {progress.states['failed']} failed ({kinds})" if kinds else ""
    return failed + (f", {progress.states['pruned']} pruned" if progress.states["pruned"] else "")


def _describe_cost(progress: SearchProgress, price: float, limit: float | None) -> str:
    """Money so far, and what is left of it: to the budget at the mean time of a trial, and to the
    limit.
    """
    spent = progress.seconds / 3600.0 * price
    text = f"{spent:.4g} so far"
    if progress.finished and progress.trials_left:
        text += f", {spent / progress.finished * progress.trials_left:.4g} more to the budget"
    return text if limit is None else f"{text}, {max(0.0, limit - spent):.4g} left of {limit:g}"


def _describe_best(best: Trial, space: Space) -> str:
    """The values that moved farthest from where the search began."""
    began = zip(space.dimensions, space.get_start(), strict=True)
    moved = {
        dimension.name: abs(dimension.to_unit(best.values[dimension.name]) - u)
        for dimension, u in began
        if dimension.name in best.values
    }
    chosen = sorted(best.values, key=lambda name: -moved.get(name, 0.0))[:_MAX_VALUES]
    more = len(best.values) - len(chosen)
    return "  ".join(
        f"{name.rsplit('.', 1)[-1]} {format_parameter(best.values[name])}" for name in chosen
    ) + (f"  and {more} more" if more else "")


def _render_running(running: dict[int, RunningTrial], now: float) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("running", "for", "at step", "reported"):
        table.add_column(heading, justify="left" if heading == "running" else "right", no_wrap=True)
    for number, entry in sorted(running.items())[:_MAX_ROWS]:
        step = "" if entry.step is None else str(entry.step)
        table.add_row(
            f"trial {number}",
            format_duration(now - entry.started_at),
            step,
            "" if entry.value is None else f"{entry.value:.5g}",
        )
    if len(running) > _MAX_ROWS:
        table.add_row(f"and {len(running) - _MAX_ROWS} more")
    return table


class LiveTable(Callback):
    """Keeps the table of a search on a terminal; the last one stays when it is closed."""

    def __init__(self, info: SearchInfo, earlier: Sequence[Trial], console: Console) -> None:
        self.progress = SearchProgress(info, earlier, time.monotonic())
        self._screen = Screen(lambda: render_progress(self.progress, time.monotonic()), console)

    def on_start(self, trial: Trial) -> None:
        """Show a trial among those that run."""
        self.progress.record_start(trial, time.monotonic())
        self._screen.redraw()

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """Show what a running trial reported."""
        self.progress.record_report(trial, step, value)
        self._screen.redraw()

    def on_end(self, trial: Trial, finished: int) -> None:
        """Count a trial that ended."""
        self.progress.record_end(trial)
        self._screen.redraw()

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Show the health of the search distribution."""
        if self.progress.info.phases == 1:
            self.progress.diagnostics = diagnostics
            self._screen.redraw()

    def close(self, exit_code: int) -> None:
        """Leave the last table."""
        self._screen.close()
