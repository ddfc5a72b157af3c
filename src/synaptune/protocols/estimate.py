"""What a search or a protocol takes, before it starts: runs, minutes and disk (`dry_run=true`).

The seconds and the bytes of a run are those of the complete runs of the study, if it has some,
else of a short run in a temporary folder. Nothing else runs, and no study is made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.cost import (
    PlannedRuns,
    SecondsRange,
    estimate_stage_seconds,
    measure_timing,
    price_plan,
    read_study_seconds,
)
from synaptune.config.flat import has_name, is_training_config
from synaptune.core.errors import UserError
from synaptune.core.files import measure_folder
from synaptune.core.text import format_bytes, format_duration
from synaptune.protocols.population import resolve_workers
from synaptune.protocols.protocol import read_kept_checkpoints
from synaptune.protocols.stages import INCUMBENT_SEEDS
from synaptune.search.config import SearchConfig
from synaptune.search.objective.score import needs_baseline
from synaptune.study.location import StudyLocation
from synaptune.study.reader import read_study
from synaptune.training.config import CHECKPOINT_FILE

MEASURED_STEPS, WARMUP_STEPS = 20, 5
_SEARCH_STAGES = ("search", "repeats", "groups", "joint")  # each evaluation has search.seeds runs


class RunMeasure(NamedTuple):
    """What is known of a run.

    Attributes:
        seconds: duration of a run of a stage.
        start: what the first run of a worker takes in addition [s]; None when it is part of the
            runs.
        notes: what the numbers stand on, one a line.
        run_bytes: size of the folder of a run without its checkpoint [byte]; None when unknown.
        checkpoint_bytes: size of the checkpoint of a run [byte].
    """

    seconds: Callable[[PlannedRuns], SecondsRange]
    start: float | None
    notes: list[str]
    run_bytes: float | None = None
    checkpoint_bytes: float = 0.0


def compute_final_length(final_steps: int | None, base: DictConfig) -> float:
    """Return the length of a run of the validation as a multiple of that of another run."""
    return (final_steps or base.training.steps) / base.training.steps


def measure_run(
    base: DictConfig, *, steps: int = MEASURED_STEPS, warmup: int = WARMUP_STEPS
) -> RunMeasure:
    """Measure a run of a configuration on this device by two short runs in a temporary folder.

    Args:
        base: the configuration.
        steps: number of timed steps.
        warmup: number of steps before them.
    """
    from synaptune.config.run import run
    from synaptune.config.settings import read_settings
    from synaptune.study.provenance import get_device_name

    def train(changes: Mapping[str, object], folder: Path) -> float:
        cfg = base.copy()
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return run(cfg, folder, overrides=[]).metrics["evaluation_seconds"]

    training = read_settings(base).training
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speed = measure_timing(train, folder, steps=steps, warmup=warmup)
        checkpoint_bytes = (folder / "measured" / CHECKPOINT_FILE).stat().st_size
        run_bytes = measure_folder(folder / "measured") - checkpoint_bytes
    notes = [
        f"measured: step {1000 * speed.step:.4g} ms over {steps} steps after {warmup} steps of"
        f" warm-up on {get_device_name()}; evaluation {speed.evaluation:.3g} s, checkpoint"
        f" {speed.save:.3g} s, once per run {speed.fixed:.3g} s",
        f"a run: {training.steps} steps, {training.evaluations} evaluations; a validation run also"
        " scores the test split",
    ]
    return RunMeasure(
        lambda stage: SecondsRange(estimate_stage_seconds(speed, training, stage)),
        speed.start,
        notes,
        run_bytes,
        checkpoint_bytes,
    )


def read_study_measure(location: StudyLocation) -> RunMeasure:
    """Read what the runs of a study took; the start-up is part of each worker's first run.

    Raises:
        UserError: there is no such study, or it has no complete trial.
    """
    seconds = read_study_seconds(location.name, location.url)
    note = f"seconds of a run: median and 10 to 90 % of the complete runs of study {location.name}"
    checkpoints = [path.stat().st_size for path in location.trials_folder.rglob(CHECKPOINT_FILE)]
    folders = [path for path in location.trials_folder.glob("[0-9]*") if path.is_dir()]
    run_bytes = None
    if folders:
        run_bytes = (sum(map(measure_folder, folders)) - sum(checkpoints)) / len(folders)
    return RunMeasure(seconds, None, [note], run_bytes, max(checkpoints, default=0))


def add_search_runs(
    plan: Sequence[PlannedRuns], search: SearchConfig, objective: Any = None
) -> list[PlannedRuns]:
    """Return a plan with the runs of `search.seeds`, `search.incumbents` and a reference run."""
    runs = [
        stage._replace(runs=stage.runs * search.seeds) if stage.name in _SEARCH_STAGES else stage
        for stage in plan
    ]
    if search.incumbents > 1:
        runs.append(PlannedRuns("incumbents", search.incumbents * INCUMBENT_SEEDS))
    if objective is not None and needs_baseline(objective):
        runs.insert(0, PlannedRuns("reference", 1))
    return runs


def estimate_protocol(
    base: DictConfig, location: StudyLocation, make_plan: Callable[[int], Sequence[PlannedRuns]]
) -> dict[str, Any]:
    """Print what a protocol takes; return the estimate as plain values.

    Args:
        base: the configuration of a run.
        location: where the study would be.
        make_plan: makes the stages for a number of workers.
    """
    search: Any = OmegaConf.to_object(base.search)
    count = resolve_workers(base).slots
    plan = add_search_runs(make_plan(count), search, OmegaConf.to_object(base.objective))
    return print_estimate(plan, base, location, workers=count)


def print_estimate(
    plan: Sequence[PlannedRuns], base: DictConfig, location: StudyLocation, *, workers: int
) -> dict[str, Any]:
    """Print the runs, the minutes and the disk of a plan; start nothing of it.

    Args:
        plan: the stages.
        base: the configuration of a run.
        location: where the study would be.
        workers: number of trials at a time.

    Returns:
        The estimate as plain values.
    """
    from synaptune.core.console import make_console
    from synaptune.report.console import print_lines
    from synaptune.report.cost_table import print_cost

    measure, finished = _find_measure(base, location)
    runs = sum(stage.runs for stage in plan)
    result: dict[str, Any] = {"dry_run": True, "study": location.name, "runs": runs}
    if measure is None:
        note = "minutes and disk are not known before the first trial of another application ends"
        print_lines(
            [f"dry run of {location.name}: {runs} runs; {note}; nothing was started"],
            make_console(),
        )
        return result | {"notes": [note]}
    notes = [
        *measure.notes,
        f"{workers} at a time, each as fast as alone; no run fails, is pruned or ends early; the"
        " time of the optimizer is left out",
    ]
    if finished:
        notes.append(f"the study has {finished} ended trials; those of the plan are not repeated")
    cost = price_plan(plan, measure.seconds, devices=workers, start=measure.start)
    size = _estimate_bytes(plan, measure, read_kept_checkpoints(base))
    notes.append(
        "disk: without the logs of Weights & Biases"
        if size is not None
        else "disk: unknown, the study has no run folders"
    )
    print_cost(cost, make_console(), title=f"Dry run of study {location.name}", notes=notes)
    minutes = cost.days * 1440.0
    shown = "" if size is None else f", {format_bytes(size)} of disk in {location.shown_folder}"
    print_lines(
        [f"dry run: {runs} runs, {format_duration(60.0 * minutes)}{shown}; nothing was started"],
        make_console(),
    )
    return result | {
        "minutes": minutes,
        "disk_bytes": size,
        "stages": cost.to_plain()["rows"],
        "finished": finished,
        "notes": notes,
    }


def _find_measure(base: DictConfig, location: StudyLocation) -> tuple[RunMeasure | None, int]:
    """Return what is known of a run, and the number of ended trials of the study."""
    try:
        trials = read_study(location.url, location.name).trials
        finished = sum(trial.state != "running" for trial in trials)
        return read_study_measure(location), finished
    except UserError:  # there is no study, or it has no complete trial
        finished = 0
    return measure_run(base) if is_training_config(base) else None, finished


def _estimate_bytes(
    plan: Sequence[PlannedRuns], measure: RunMeasure, kept: int | None
) -> float | None:
    if measure.run_bytes is None:
        return None
    runs = sum(stage.runs for stage in plan)
    checkpoints = sum(stage.runs if kept is None else min(kept, stage.runs) for stage in plan)
    return runs * measure.run_bytes + checkpoints * measure.checkpoint_bytes


def apply_values(base: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a configuration with those values of a point whose names it has."""
    changed = base.copy()
    for name, value in values.items():
        if has_name(changed, name):
            OmegaConf.update(changed, name, value)
    return changed
