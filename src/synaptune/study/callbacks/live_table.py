"""The live table of a search on a terminal: where it stands, its best, what runs, what failed, time and money."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synaptune.core.text import duration
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space, Value
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial, best_of
from synaptune.study.callbacks.screen import Screen
from synaptune.study.database import keys as schema

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ROWS = 8  # running trials shown
_MOVED = 6  # parameters of the best shown


@dataclass(frozen=True)
class Running:
    """A trial under way: when it began [s, monotonic], and what it reported last."""

    trial: Trial
    began: float
    step: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Scene:
    """What a table is about: title, what is counted, how many are planned (null: unknown), what stops it."""

    title: str
    space: Space
    label: str = "trials"
    total: int | None = None
    maximize: bool = False
    stop: StopConfig = field(default_factory=StopConfig)


class Standing:
    """Where a search stands. One thread tells it, another may read it: what is read is replaced, never changed."""

    def __init__(self, scene: Scene, earlier: Sequence[Trial], now: float) -> None:
        """earlier: trials that had ended before; now: [s, monotonic]."""
        self.scene, self.began = scene, now
        self.best = best_of(earlier, scene.maximize)
        self.finished, self.here = len(earlier), 0
        self.states = Counter(trial.state for trial in earlier)
        self.failures = Counter(_kind(trial) for trial in earlier if trial.state == "failed")
        self.seconds = sum(_seconds(trial) for trial in earlier)
        self.since_best = 0
        self.number = max((_generation(trial) for trial in earlier), default=0)
        self.health: Diagnostics | None = None
        self.running: dict[int, Running] = {}

    def started(self, trial: Trial, now: float) -> None:
        """A trial began."""
        self.running = self.running | {trial.number: Running(trial, now)}
        self.number = max(self.number, _generation(trial))

    def reported(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        if (known := self.running.get(trial.number)) is not None:
            self.running = self.running | {trial.number: Running(known.trial, known.began, step, value)}

    def ended(self, trial: Trial, finished: int) -> None:
        """A trial ended."""
        self.running = {number: entry for number, entry in self.running.items() if number != trial.number}
        self.finished, self.here = finished, self.here + 1
        self.states = self.states + Counter([trial.state])
        self.seconds += _seconds(trial)
        if trial.state == "failed":
            self.failures = self.failures + Counter([_kind(trial)])
        best = best_of([entry for entry in (self.best, trial) if entry is not None], self.scene.maximize)
        self.since_best = self.since_best + 1 if best is self.best else 0
        self.best = best

    @property
    def left(self) -> int | None:
        """Trials still to end; null when unknown."""
        return None if self.scene.total is None else max(0, self.scene.total - self.finished)

    def pace(self, now: float) -> float | None:
        """Trials a second by the clock; null before the first of this process has ended."""
        return self.here / (now - self.began) if self.here and now > self.began else None

    def seconds_left(self, now: float) -> float | None:
        """Time until the budget or stop.hours is spent [s]; null when unknown."""
        pace, hours = self.pace(now), self.scene.stop.hours
        times = [] if pace is None or self.left is None else [self.left / pace]
        times += [] if hours is None else [max(0.0, 3600.0 * hours - (now - self.began))]
        return min(times, default=None)


def _seconds(trial: Trial) -> float:
    return float(trial.facts.get(schema.SECONDS, 0.0))


def _generation(trial: Trial) -> int:
    return int(trial.facts.get(schema.GENERATION, 0))


def _kind(trial: Trial) -> str:
    return str(trial.facts.get(schema.FAILURE, "error"))


def picture(standing: Standing, now: float) -> RenderableType:
    """The table at a moment [s, monotonic]."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    rows = _rows(standing, now)
    facts.add_column(style="dim", no_wrap=True, min_width=max(len(name) for name, _ in rows))
    facts.add_column(overflow="ellipsis", no_wrap=True)
    for name, text in rows:
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [Text(standing.scene.title, style="bold"), facts]
    if standing.running:
        parts.append(_running(standing.running, now))
    return Group(*parts)


def _rows(standing: Standing, now: float) -> list[tuple[str, str]]:
    scene, health = standing.scene, standing.health
    rows = [(scene.label, f"{standing.finished}{f' of {scene.total}' if scene.total else ''} ended{_troubles(standing)}")]
    if standing.number or health is not None:
        step = "" if health is None else f", step {health.step:.3g}"
        stale = f", {health.stagnation} without a new best" if health is not None and health.stagnation else ""
        rows.append(("generation", f"{standing.number}{step}{stale}"))
    if standing.best is not None:
        when = f", {standing.since_best} ended since" if standing.since_best else ""
        rows.append(("best", f"{standing.best.objective:.6g} in trial {standing.best.number}{when}"))
        rows.append(("at", _place(standing.best, scene.space)))
    pace, left = standing.pace(now), standing.seconds_left(now)
    if pace is not None:
        rows.append(
            ("rate", f"{3600.0 * pace:,.{0 if pace > 0.003 else 1}f} an hour{f', {duration(left)} left' if left and standing.left else ''}")
        )
    if scene.stop.price is not None:
        rows.append(("cost", _cost(standing, scene.stop.price, scene.stop.money)))
    return rows


def _troubles(standing: Standing) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in standing.failures.most_common())
    failed = f", {standing.states['failed']} failed ({kinds})" if kinds else ""
    return failed + (f", {standing.states['pruned']} pruned" if standing.states["pruned"] else "")


def _cost(standing: Standing, price: float, limit: float | None) -> str:
    """Money so far, and what is left of it: to the budget at the mean time of a trial, and to the limit."""
    spent = standing.seconds / 3600.0 * price
    text = f"{spent:.4g} so far"
    if standing.finished and standing.left:
        text += f", {spent / standing.finished * standing.left:.4g} more to the budget"
    return text if limit is None else f"{text}, {max(0.0, limit - spent):.4g} left of {limit:g}"


def _place(best: Trial, space: Space) -> str:
    """The values that moved farthest from where the search began."""
    began = zip(space.dimensions, space.start(), strict=True)
    moved = {
        dimension.name: abs(dimension.unit(best.values[dimension.name]) - u) for dimension, u in began if dimension.name in best.values
    }
    chosen = sorted(best.values, key=lambda name: -moved.get(name, 0.0))[:_MOVED]
    more = len(best.values) - len(chosen)
    return "  ".join(f"{name.rsplit('.', 1)[-1]} {_short(best.values[name])}" for name in chosen) + (f"  and {more} more" if more else "")


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _running(running: dict[int, Running], now: float) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("running", "for", "at step", "reported"):
        table.add_column(heading, justify="left" if heading == "running" else "right", no_wrap=True)
    for number, entry in sorted(running.items())[:_ROWS]:
        step = "" if entry.step is None else str(entry.step)
        table.add_row(f"trial {number}", duration(now - entry.began), step, "" if entry.value is None else f"{entry.value:.5g}")
    if len(running) > _ROWS:
        table.add_row(f"and {len(running) - _ROWS} more")
    return table


class LiveTable:
    """A search's listener that keeps its table on a terminal; the last one stays when it is closed."""

    def __init__(self, scene: Scene, earlier: Sequence[Trial], console: Console) -> None:
        self.standing = Standing(scene, earlier, time.monotonic())
        self._screen = Screen(lambda: picture(self.standing, time.monotonic()), console)

    def started(self, trial: Trial) -> None:
        """Show a trial among those that run."""
        self.standing.started(trial, time.monotonic())
        self._screen.touch()

    def reported(self, trial: Trial, step: int, value: float) -> None:
        """Show what a running trial reported."""
        self.standing.reported(trial, step, value)
        self._screen.touch()

    def ended(self, trial: Trial, finished: int) -> None:
        """Count a trial that ended."""
        self.standing.ended(trial, finished)
        self._screen.touch()

    def generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Show the health of the search distribution."""
        self.standing.health = diagnostics
        self._screen.touch()

    def close(self, exit_code: int) -> None:
        """Leave the last table."""
        self._screen.close()
