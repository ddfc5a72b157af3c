"""Cost of a plan before it runs: device hours, money and days, estimated from measured runs.

    run  = fixed + steps * step + evaluations * evaluation + saves * save          (1)
    days = sum over stages of  rounds * run,   rounds = ceil(runs / devices)       (2)

In a search the rounds are counted within each generation, since a generation starts when the last
run of the one before has ended. Seconds are wall time on one device.
Source: derived: (1) the parts of a run; (2) equal runs, one per device at a time.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.core.errors import user_error
from synaptune.study.database.connection import redact_url
from synaptune.study.database.keys import RUN_STEPS
from synaptune.study.reader import read_study
from synaptune.training.config import TrainingConfig
from synaptune.training.schedules import get_evaluation_steps

_HOUR = 3600.0
_TIMED_SAVES = 3  # saves that are timed; their median counts


class PlannedRuns(NamedTuple):
    """The training runs of one stage of a plan.

    Attributes:
        name: name of the stage.
        runs: number of runs.
        with_test: whether each run also scores the test split.
        at_once: number of runs that may run at the same time; None means all.
        length: steps of a run relative to a full one.
        evaluations: validations of a run; None means those of a full one.
    """

    name: str
    runs: int
    with_test: bool = False
    at_once: int | None = None
    length: float = 1.0
    evaluations: int | None = None

    def count_rounds(self, devices: int) -> int:
        """Return the largest number of runs that one device executes."""
        size = self.at_once or max(1, self.runs)
        generations, rest = divmod(self.runs, size)
        return generations * math.ceil(size / devices) + math.ceil(rest / devices)


class RunTiming(NamedTuple):
    """Measured duration of the parts of a run.

    Attributes:
        step: one optimizer step [s].
        evaluation: one evaluation [s].
        save: one checkpoint [s].
        fixed: what a run does once [s].
        start: what a worker's first run takes in addition [s].
    """

    step: float
    evaluation: float
    save: float
    fixed: float
    start: float


class SecondsRange(NamedTuple):
    """Median, 10th and 90th percentile of the duration of a run [s]; None if not known."""

    median: float
    low: float | None = None
    high: float | None = None

    def scale(self, factor: float) -> SecondsRange:
        """Return the range times a factor."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return SecondsRange(self.median * factor, low, high)


class CostRow(NamedTuple):
    """Cost of one stage.

    Attributes:
        stage: name of the stage.
        runs: number of runs.
        seconds: duration of a run.
        device_hours: sum over all runs [h].
        wall_hours: elapsed time on all devices of the plan [h].
    """

    stage: str
    runs: int
    seconds: SecondsRange
    device_hours: float
    wall_hours: float


class PlanCost(NamedTuple):
    """Cost of a plan.

    Attributes:
        rows: cost of each stage.
        device_hours: sum over the stages at the median [h].
        low: sum at the 10th percentile [h]; None if not known.
        high: sum at the 90th percentile [h]; None if not known.
        money: price of the device hours; None without a price.
        days: elapsed time [d].
    """

    rows: list[CostRow]
    device_hours: float
    low: float | None
    high: float | None
    money: float | None
    days: float

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        rows = [row._asdict() | {"seconds": row.seconds._asdict()} for row in self.rows]
        return self._asdict() | {"rows": rows}


TrainRun = Callable[[Mapping[str, Any], Path], float]


def measure_timing(train: TrainRun, folder: Path, *, steps: int, warmup: int) -> RunTiming:
    """Measure the speed of a configuration on this device.

    A short run warms the device up. Then the steps of a second run after its warm-up are timed.

    Args:
        train: trains with overrides of the configuration in a folder; returns the duration of an
            evaluation [s].
        folder: an empty folder.
        steps: number of timed steps.
        warmup: number of steps before them.
    """
    overrides = {
        "training.evaluations": 1,
        "training.checkpoint_every": 0,
        "training.test": False,
        "training.resume": False,
        "logger.every": warmup,
        "logger.progress": "off",
        "logger.wandb": "off",
    }

    def train_timed(name: str, count: int) -> tuple[float, float]:
        """Return the duration of a run without its evaluation, and that of the evaluation."""
        started_at = time.perf_counter()
        evaluation = train(overrides | {"training.steps": count}, folder / name)
        return time.perf_counter() - started_at - evaluation, evaluation

    first_seconds, _ = train_timed("warm", warmup)
    # Logging waits for the device, so the times logged at `warmup` and at the end belong to
    # finished steps.
    seconds, evaluation = train_timed("measured", warmup + steps)
    with (folder / "measured" / "metrics.csv").open(newline="") as file:
        clock = {
            int(row["step"]): float(row["seconds"])
            for row in csv.DictReader(file)
            if row["seconds"]
        }
    step = (clock[warmup + steps] - clock[warmup]) / steps
    save = _time_save(folder / "measured" / "checkpoint.pt")
    fixed = max(0.0, seconds - (warmup + steps) * step - save)
    start = max(0.0, first_seconds - fixed - warmup * step - save)
    return RunTiming(step, evaluation, save, fixed, start)


def _time_save(path: Path) -> float:
    from synaptune.training import checkpoint

    content, times = checkpoint.load(path), []
    for _ in range(_TIMED_SAVES):
        started_at = time.perf_counter()
        checkpoint.save(path, content)
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def estimate_stage_seconds(speed: RunTiming, training: TrainingConfig, stage: PlannedRuns) -> float:
    """Estimate the duration of a run of a stage [s], from the settings of a full run."""
    run = replace(
        training,
        steps=max(1, round(stage.length * training.steps)),
        evaluations=stage.evaluations or training.evaluations,
    )
    return estimate_run_seconds(speed, run, with_test=stage.with_test)


def estimate_run_seconds(speed: RunTiming, training: TrainingConfig, *, with_test: bool) -> float:
    """Estimate the duration of a run [s], eq. (1); test and validation split are equally large."""
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
    """Compute the cost of a plan; days follow eq. (2) with median runs.

    Args:
        plan: the stages.
        seconds: duration of a run of a stage [s].
        devices: number of devices.
        start: start-up of a worker [s]; None means that it is part of the runs.
        price: money for a device hour.
    """
    # (stage, runs, duration of a run, rounds)
    stages = [
        (
            stage.name,
            stage.runs,
            seconds(stage),
            stage.count_rounds(devices),
        )
        for stage in plan
    ]
    # A start-up of 0 s has a row as well: a busy moment during the measurement may have hidden it.
    if start is not None:
        stages.insert(0, ("start-up", devices, SecondsRange(start, start, start), 1))
    rows = [
        CostRow(name, runs, run, runs * run.median / _HOUR, rounds * run.median / _HOUR)
        for name, runs, run, rounds in stages
    ]
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
    """Sum the device hours at one side of the ranges; None if one of them is not known."""
    seconds = [(row.runs, getattr(row.seconds, side)) for row in rows]
    known = [runs * bound / _HOUR for runs, bound in seconds if bound is not None]
    return sum(known) if len(known) == len(rows) else None


def read_study_seconds(name: str, url: str) -> Callable[[PlannedRuns], SecondsRange]:
    """Read the duration of a run from the complete trials of a study.

    Trials that score the test split are kept apart from the others. Copies of another trial and
    trials of another length do not count.

    Returns:
        A function from a stage to the duration of its runs [s].

    Raises:
        UserError: there is no such study, or it has no complete trial.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for trial in read_study(url, name).trials:
        facts = trial.facts
        is_full = RUN_STEPS not in facts and "copied_from" not in facts
        if trial.state == "complete" and is_full and "seconds" in facts:
            seconds[bool(facts.get("test"))].append(facts["seconds"])
    if not any(seconds.values()):
        raise user_error(
            got=f"study {name} in {redact_url(url)}, without a complete trial",
            expected="a study with complete trials",
            do="check its name, or measure without",
        )
    return lambda stage: _summarise_seconds(
        seconds[stage.with_test] or seconds[not stage.with_test]
    ).scale(stage.length)


def _summarise_seconds(times: Sequence[float]) -> SecondsRange:
    if len(times) < 2:
        return SecondsRange(times[0])
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return SecondsRange(statistics.median(times), deciles[0], deciles[-1])
