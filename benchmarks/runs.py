"""Training runs of the ladder and the regimes: trained once, stored, on paired seeds, timed."""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from loop import Loop, load_text

from synaptune.config.run import run
from synaptune.config.schema import register
from synaptune.config.settings import Settings, apply_tuned, compute_fingerprint, read_settings
from synaptune.core.errors import user_error
from synaptune.study.artifacts import write_json
from synaptune.study.provenance import get_code_version
from synaptune.training.device import flush_denormals
from synaptune.training.errors import DivergedError

ROOT = Path(__file__).resolve().parent.parent
FIRST_FRESH_SEED = 7000  # of the compared runs; no search of this project uses seeds near it
QUIET = (
    "training.evaluations=1",
    "training.checkpoint_every=0",
    "logger=csv",
    "logger.progress=off",
)
STORED_METRICS = (
    "val_loss",
    "test_loss",
    "test_perplexity",
    "test_calibration_error",
    "test_recall_accuracy",
    "train_seconds",
    "steps",
    "merges",
    "splits",
)
WARM_UP_STEPS = 3
OPTION = "task."  # start of the name of an option of a task

Results = dict[str, list[dict[str, Any]]]


class Task(Protocol):
    """A function that trains and measures; it returns numbers by name, among them `val_loss`."""

    __name__: str

    def __call__(self, settings: Settings, options: Mapping[str, float]) -> dict[str, float]: ...


class Job(NamedTuple):
    """A run: its label, and its overrides."""

    label: str
    overrides: tuple[str, ...]


def compose_config(overrides: Sequence[str]) -> Any:
    """Compose the configuration of a run, with the values of `tuned=FILE` in their place.

    Raises:
        UserError: an override is invalid.
    """
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            cfg = compose("train", overrides=list(overrides))
        except HydraException as error:
            raise user_error(
                got=str(error), expected="overrides of conf/train.yaml", do="correct them"
            ) from error
    if cfg.tuned is not None:  # the fingerprint of a run must hold its values
        apply_tuned(cfg, overrides)
        cfg.tuned = None
    return cfg


def run_once(overrides: tuple[str, ...], task: Task | None = None) -> dict[str, Any]:
    """Train or run the task in this process; return the metrics, or the reason of the failure."""
    words, options = split_options(overrides)
    try:
        if task is not None:
            numbers = task(read_settings(compose_config(words)), options)
            return numbers if math.isfinite(numbers["val_loss"]) else {"failed": "it diverged"}
        with tempfile.TemporaryDirectory() as folder:
            metrics = run(compose_config(words), Path(folder), overrides=[]).metrics
    except DivergedError as error:
        return {"failed": str(error)}
    return {name: metrics[name] for name in STORED_METRICS if name in metrics}


def split_options(overrides: Sequence[str]) -> tuple[tuple[str, ...], dict[str, float]]:
    """Split overrides into those of the configuration, and the options of a task by name.

    As with Hydra's overrides, the last value of an option counts.

    Raises:
        UserError: the value of an option is not a number.
    """
    words = tuple(word for word in overrides if not word.startswith(OPTION))
    options = {}
    for word in overrides:
        if not word.startswith(OPTION):
            continue
        name, _, value = word.removeprefix(OPTION).partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise user_error(got=word, expected="a number", do="correct the option") from None
    return words, options


def start_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Return processes that train, each with so many threads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,))


class RunCache:
    """Runs that are trained once, and stored by the fingerprint of their configuration.

    Args:
        path: file of the stored runs.
        pool: processes that train.
        common: overrides of every run.
        task: what a run does instead of one training run; words such as `task.NAME=NUMBER` among
            the overrides are its options.
    """

    def __init__(
        self, path: Path, pool: Executor, common: Sequence[str], task: Task | None = None
    ) -> None:
        self.path, self.common = path, tuple(common)
        self._pool, self._task = pool, task
        self._code_version = get_code_version()
        self._results: dict[str, dict[str, Any]] = (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def load_or_train(self, jobs: Sequence[Job], title: str) -> list[dict[str, Any]]:
        """Return the results of jobs in their order, after training those without a stored result.

        Args:
            jobs: runs to train.
            title: printed before the progress of each run.

        Raises:
            UserError: a configuration is invalid.
        """
        all_overrides = [(*self.common, *job.overrides) for job in jobs]
        keys = [self._compute_key(overrides) for overrides in all_overrides]
        missing = {key: index for index, key in reversed(list(enumerate(keys)))}
        index_by_future = {
            self._pool.submit(run_once, all_overrides[index], self._task): index
            for key, index in sorted(missing.items(), key=lambda entry: entry[1])
            if key not in self._results
        }
        try:
            for number, future in enumerate(as_completed(index_by_future), 1):
                index = index_by_future[future]
                job, key, result = jobs[index], keys[index], future.result()
                self._results[key] = result | {
                    "label": job.label,
                    "overrides": list(job.overrides),
                    "code_version": self._code_version,
                }
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self._results)
                print(
                    f"{title} {number}/{len(index_by_future)}  {job.label}: "
                    f"{_format_result(result)}",
                    flush=True,
                )
        finally:
            for future in index_by_future:
                future.cancel()
        return [self._results[key] for key in keys]

    def _compute_key(self, overrides: tuple[str, ...]) -> str:
        words, options = split_options(overrides)
        key = compute_fingerprint(read_settings(compose_config(words)))
        if self._task is None:
            return key
        return " ".join(
            [self._task.__name__, *(f"{n}={v:g}" for n, v in sorted(options.items())), key]
        )


def _format_result(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    name = "test_loss" if "test_loss" in result else "val_loss"
    return f"{name} {result[name]:.4f}  {result['train_seconds']:.1f} s"


def run_on_seeds(
    runs: RunCache, rungs: dict[str, tuple[str, ...]], seeds: Sequence[int], title: str
) -> Results:
    """Run the rungs on all seeds and return the results by rung, in the order of the seeds.

    The rungs alternate, so that other load of the machine affects all of them.

    Raises:
        UserError: a run diverged.
    """
    jobs = [
        Job(f"{name}, seed {seed}", (*overrides, f"seed={seed}", "training.test=true"))
        for seed in seeds
        for name, overrides in rungs.items()
    ]
    results = runs.load_or_train(jobs, title)
    if failed := [
        job.label for job, result in zip(jobs, results, strict=True) if "failed" in result
    ]:
        raise user_error(
            got=f"diverged runs: {', '.join(failed)}",
            expected="rungs that train",
            do="lower training.learning_rate",
        )
    return {name: results[number :: len(rungs)] for number, name in enumerate(rungs)}


def format_table(cells: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose columns have equal widths in all rows."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


class StepTimer:
    """A run without its evaluations, which trains step by step.

    Attributes:
        parameters: trainable parameters of its model.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        settings = read_settings(compose_config(split_options(overrides)[0]))
        self._text = load_text(settings)
        self._loop = Loop(settings, self._text.corpus.vocab)
        self.parameters = count_parameters(self._loop.model)

    def __call__(self) -> float:
        """Train one step and return its CPU time, which other load changes little [s]."""
        start = time.process_time()
        self._loop.finish_step(self._loop.add_gradients(self._text))
        self._loop.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - start


def count_parameters(model: torch.nn.Module) -> int:
    """Return the trainable parameters of a model."""
    return sum(weight.numel() for weight in model.parameters())


class StepCost(NamedTuple):
    """Cost of a step of one rung.

    Attributes:
        parameters: trainable parameters of the model.
        seconds: CPU time of a step, the median over the rounds [s].
        ratio: median over the rounds of its time over that of the first rung in the same round.
    """

    parameters: int
    seconds: float
    ratio: float


def measure_steps(
    rungs: dict[str, tuple[str, ...]], common: Sequence[str], rounds: int, path: Path
) -> dict[str, StepCost]:
    """Measure the time of a step of all rungs, alternately in this process, or load it.

    Args:
        rungs: overrides by name.
        common: overrides of all rungs.
        rounds: measured rounds; in each of them every rung trains one step.
        path: file of the stored measurement; it counts if it holds the same rungs.
    """
    key = json.dumps(["CPU time", rungs, list(common), torch.get_num_threads()])
    if path.exists() and (stored := json.loads(path.read_text()))["key"] == key:
        return {name: StepCost(**cost) for name, cost in stored["costs"].items()}
    timers = {name: StepTimer((*common, *overrides)) for name, overrides in rungs.items()}
    with flush_denormals():  # as in training
        for timer in timers.values():
            for _ in range(WARM_UP_STEPS):
                timer()
        times = [[timer() for timer in timers.values()] for _ in range(rounds)]
    costs = {
        name: StepCost(
            timer.parameters,
            statistics.median(row[number] for row in times),
            statistics.median(row[number] / row[0] for row in times),
        )
        for number, (name, timer) in enumerate(timers.items())
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, "costs": {n: cost._asdict() for n, cost in costs.items()}})
    return costs


def give_equal_time(
    rungs: dict[str, tuple[str, ...]], costs: dict[str, StepCost], steps: int
) -> dict[str, tuple[str, ...]]:
    """Return the rungs with the steps that fit into the training time of the slowest one."""
    longest = max(cost.ratio for cost in costs.values())
    return {
        name: (*overrides, f"training.steps={round(steps * longest / costs[name].ratio)}")
        for name, overrides in rungs.items()
    }


def check_options(valid: bool, got: str, expected: str) -> None:
    """Raise UserError unless the options of a benchmark are valid."""
    if not valid:
        raise user_error(got=got, expected=expected, do="correct the options")
