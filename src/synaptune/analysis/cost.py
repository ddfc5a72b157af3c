"""What a plan will take before it runs: device hours, money, days, from runs that were measured.

    run  = fixed + steps * step + evaluations * evaluation + saves * save          (1)
    days = sum over stages of  rounds * run,   rounds = ceil(runs / devices)       (2)

In a search, rounds count within each generation, since the next one waits for its last run. Seconds are wall time of one device.
Source: derived: (1) the parts of a run; (2) equal runs, one per device at a time.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.core.errors import user_error
from synaptune.study.database.connection import redact_url
from synaptune.study.reader import read_study
from synaptune.training.config import TrainingConfig
from synaptune.training.schedules import get_evaluation_steps

_HOUR = 3600.0
_TIMED_SAVES = 3  # timed, the median counts


class PlannedRuns(NamedTuple):
    """A part of a plan: training runs, whether each scores the test split too, and how many may run at once (null: all)."""

    name: str
    runs: int
    with_test: bool = False
    at_once: int | None = None

    def count_rounds(self, devices: int) -> int:
        """How often each device runs something, at most."""
        whole, rest = divmod(self.runs, self.at_once or max(1, self.runs))
        return whole * math.ceil((self.at_once or max(1, self.runs)) / devices) + math.ceil(
            rest / devices
        )


class RunTiming(NamedTuple):
    """Seconds of one optimizer step, one evaluation, one checkpoint, of whatever a run does once, and a worker's first run besides."""

    step: float
    evaluation: float
    save: float
    fixed: float
    start: float


class SecondsRange(NamedTuple):
    """Seconds of a run: median, and the range that holds all but a tenth on either side (null: not known)."""

    median: float
    low: float | None = None
    high: float | None = None


class CostRow(NamedTuple):
    """A stage priced: its runs, the seconds of one, device hours, wall hours on the given devices."""

    stage: str
    runs: int
    seconds: SecondsRange
    device_hours: float
    wall_hours: float


class PlanCost(NamedTuple):
    """A plan priced: rows by stage, sums, money at a price for a device hour (null without one), calendar days."""

    rows: list[CostRow]
    device_hours: float
    low: float | None
    high: float | None
    money: float | None
    days: float


TrainRun = Callable[[Mapping[str, Any], Path], float]


def measure_timing(train: TrainRun, folder: Path, *, steps: int, warmup: int) -> RunTiming:
    """Measure a configuration's speed on this device: a short run that warms everything up, then one whose later steps count.

    train: makes a run with changed values of the configuration in a folder and returns the seconds of its evaluations; folder: an
    empty one.
    """
    short = {
        "training.evaluations": 1,
        "training.checkpoint_every": 0,
        "training.test": False,
        "training.resume": False,
        "logger.every": warmup,
        "logger.progress": "off",
        "logger.wandb": "off",
    }
    began = time.perf_counter()
    first_evaluation = train(short | {"training.steps": warmup}, folder / "warm")
    first = time.perf_counter() - began - first_evaluation
    began = time.perf_counter()
    # Logging waits for the device, so the clock of the row at `warmup` and of the last row are those of finished steps.
    evaluation = train(short | {"training.steps": warmup + steps}, folder / "measured")
    seconds = time.perf_counter() - began
    with (folder / "measured" / "metrics.csv").open(newline="") as file:
        clock = {
            int(row["step"]): float(row["seconds"])
            for row in csv.DictReader(file)
            if row["seconds"]
        }
    step = (clock[warmup + steps] - clock[warmup]) / steps
    save = _time_save(folder / "measured" / "checkpoint.pt")
    fixed = max(0.0, seconds - (warmup + steps) * step - evaluation - save)
    return RunTiming(step, evaluation, save, fixed, max(0.0, first - fixed - warmup * step - save))


def _time_save(path: Path) -> float:
    from synaptune.training import checkpoint

    content, times = checkpoint.load(path), []
    for _ in range(_TIMED_SAVES):
        began = time.perf_counter()
        checkpoint.save(path, content)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def estimate_run_seconds(speed: RunTiming, training: TrainingConfig, *, with_test: bool) -> float:
    """Eq. (1) [s]; the test split is as large as the validation's."""
    evaluations = len(get_evaluation_steps(training)) + with_test
    every = training.checkpoint_every
    saves = 1 + ((training.steps - 1) // every if every else 0)
    return (
        speed.fixed
        + training.steps * speed.step
        + evaluations * speed.evaluation
        + saves * speed.save
    )


def price_plan(
    plan: Sequence[PlannedRuns],
    seconds: Callable[[PlannedRuns], SecondsRange],
    *,
    devices: int = 1,
    start: float | None = None,
    price: float | None = None,
) -> PlanCost:
    """A plan priced; seconds: of a run of each stage, start: of a worker's start-up [s] (null: within the runs), price: of a device hour.

    Days are by eq. (2), of median runs.
    """
    rows = []
    if start is not None:  # one of 0 s has its row too: a busy moment while measuring may hide it
        rows.append(
            CostRow(
                "start-up",
                devices,
                SecondsRange(start, start, start),
                devices * start / _HOUR,
                start / _HOUR,
            )
        )
    for stage in plan:
        spread = seconds(stage)
        rows.append(
            CostRow(
                stage.name,
                stage.runs,
                spread,
                stage.runs * spread.median / _HOUR,
                stage.count_rounds(devices) * spread.median / _HOUR,
            )
        )
    hours = sum(row.device_hours for row in rows)
    return PlanCost(
        rows,
        hours,
        _sum_hours(rows, "low"),
        _sum_hours(rows, "high"),
        None if price is None else hours * price,
        sum(row.wall_hours for row in rows) / 24.0,
    )


def _sum_hours(rows: Sequence[CostRow], side: str) -> float | None:
    """Device hours at one side of the spreads; null when one is not known."""
    bounds = [getattr(row.seconds, side) for row in rows]
    return (
        None
        if None in bounds
        else sum(row.runs * bound for row, bound in zip(rows, bounds, strict=True)) / _HOUR
    )


def read_study_seconds(name: str, url: str) -> Callable[[PlannedRuns], SecondsRange]:
    """Seconds of a run by stage, from a study's complete trials: those that score the test split apart from the others.

    Copies of another trial do not count. Raises UserError when there is no such study, or nothing complete in it.
    """
    ran = [
        trial.facts
        for trial in read_study(url, name).trials
        if trial.state == "complete" and "copied_from" not in trial.facts
    ]
    times = {
        tested: [
            facts["seconds"]
            for facts in ran
            if "seconds" in facts and bool(facts.get("test")) == tested
        ]
        for tested in (False, True)
    }
    if not any(times.values()):
        raise user_error(
            got=f"study {name} in {redact_url(url)}, without a complete trial",
            expected="a study with complete trials",
            do="check its name, or measure without",
        )
    return lambda stage: _summarise_seconds(times[stage.with_test] or times[not stage.with_test])


def _summarise_seconds(times: Sequence[float]) -> SecondsRange:
    if len(times) < 2:
        return SecondsRange(times[0])
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return SecondsRange(statistics.median(times), tenths[0], tenths[-1])
