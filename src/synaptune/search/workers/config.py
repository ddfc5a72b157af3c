"""Configuration of the workers, and their creation."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, user_error
from synaptune.search.workers.base import (
    Evaluate,
    EvaluateBatch,
    InlineWorkers,
    SequentialEvaluation,
    Workers,
    is_main_thread,
)
from synaptune.search.workers.devices import count_gpus, find_device_faults
from synaptune.search.workers.population import DEFAULT_COUNT, POPULATION, PopulationWorkers

WORKER_KINDS = ("auto", "here", "processes", POPULATION, "ray", "slurm")
LONGEST_TIMEOUT = 1e9  # [s], 31 years; chosen: far within what the timers of a system take
MAX_WORKERS = 8  # most workers that a protocol starts by itself [process]; chosen: memory


@dataclass
class WorkersConfig:
    """Where trials run.

    Attributes:
        kind: `here` (this process, one trial at a time), `processes` (worker processes on this
            machine), `population` (one program for all trials at a time, in this process, or one in
            a worker process for each of `devices`), `ray` or `slurm`; `auto` is `here` for one
            worker and `processes` for several, for `devices`, or for a time limit outside the main
            thread.
        count: number of concurrent trials; None means 1, in a population DEFAULT_COUNT, and in a
            protocol the number that `resolve_worker_count` chooses.
        devices: GPUs that are assigned to worker processes in turn, counted from 0 among those that
            this process sees, or `cpu` for none; empty means that all workers see all GPUs.
        address: address of a Ray cluster; None means a cluster on this machine.
        cpus: CPUs that Ray reserves for each worker.
        gpus: GPUs that Ray reserves for each worker.
        cluster: cluster of submitit.
        parameters: parameters of submitit.
    """

    kind: str = "auto"
    count: int | None = None
    devices: list[str] = field(default_factory=list)
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    cluster: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Number of concurrent trials; `count` must be set."""
        assert self.count is not None
        return self.count

    @property
    def populations_per_device(self) -> int:
        """Largest number of population processes that share the memory of a device."""
        return max(Counter(self.devices).values(), default=1)


@dataclass
class TrialConfig:
    """Limits of a trial.

    Attributes:
        timeout: time limit of a trial [s]; None means no limit.
        retries: number of further attempts at a trial whose worker died.
    """

    timeout: float | None = None
    retries: int = 1


def check_execution(workers: WorkersConfig, trial: TrialConfig) -> None:
    """Raise UserError that lists every invalid value."""
    faults = []
    if workers.kind not in WORKER_KINDS:
        faults.append(f"workers.kind={workers.kind}: expected one of {', '.join(WORKER_KINDS)}")
    if workers.count is None:
        faults.append(
            f"workers.count=null with workers.kind={workers.kind}: "
            "expected the number of concurrent trials"
        )
    elif workers.count < 1:
        faults.append(f"workers.count={workers.count}: expected at least 1 trial at a time")
    elif workers.kind == "here" and workers.count > 1:
        faults.append(
            f"workers.count={workers.count}: one process runs one trial at a time; "
            "expected 1, or workers.kind=processes"
        )
    faults += find_device_faults(workers.devices, workers.kind)
    if workers.kind == POPULATION and trial.timeout is not None:
        faults.append(
            f"trial.timeout={trial.timeout:g}: expected null, the trials of a population train"
            " together"
        )
    if trial.timeout is not None and not 0 < trial.timeout <= LONGEST_TIMEOUT:
        faults.append(
            f"trial.timeout={trial.timeout:g}: expected seconds above 0 and up to"
            f" {LONGEST_TIMEOUT:g}, or null for no limit"
        )
    if trial.retries < 0:
        faults.append(f"trial.retries={trial.retries}: expected at least 0")
    if faults:
        raise UserError(
            "got workers that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )


def resolve_worker_count(workers: WorkersConfig, *, can_batch: bool = False) -> WorkersConfig:
    """Choose the number of workers of a protocol on this machine if the configuration does not.

    On a GPU, trials that can share a program do. Else there is one worker for each GPU, or without
    a GPU one for each core, at most MAX_WORKERS. A run of a small model gains little from a second
    core (docs/results.md); two concurrent runs use two cores better.

    Args:
        workers: configuration of the workers.
        can_batch: whether the trials can share a program (training/population_fit.py).
    """
    is_free = workers.kind == "auto" and workers.count is None and not workers.devices
    if can_batch and is_free and count_gpus():
        return resolve_population(replace(workers, kind=POPULATION))
    if workers.kind == POPULATION:
        return resolve_population(workers)
    if workers.count is not None or workers.kind not in ("auto", "here", "processes"):
        return workers
    if workers.kind == "here":
        return replace(workers, count=1)
    devices = workers.devices or [str(number) for number in range(count_gpus())]
    if devices:
        return replace(workers, count=len(devices), devices=devices)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return replace(workers, count=min(cores, MAX_WORKERS))


def resolve_population(workers: WorkersConfig) -> WorkersConfig:
    """Choose the trials at a time of a population, and a process for each of several GPUs."""
    gpus = [] if workers.devices else [str(number) for number in range(count_gpus())]
    devices = workers.devices or (gpus if len(gpus) > 1 else [])
    count = max(DEFAULT_COUNT, len(devices)) if workers.count is None else workers.count
    return replace(workers, count=count, devices=devices)


def make_workers(
    config: WorkersConfig,
    trial: TrialConfig,
    evaluate: Evaluate,
    folder: Path,
    evaluate_batch: EvaluateBatch | None = None,
) -> Workers:
    """Create the workers of a checked configuration.

    Args:
        config: configuration of the workers.
        trial: limits of a trial.
        evaluate: the evaluation.
        folder: folder for the files of submitit.
        evaluate_batch: the evaluation of a batch as one program; None where there is none.

    Raises:
        UserError: the workers cannot be created.
    """
    kind = config.kind
    if kind == POPULATION:
        if evaluate_batch is None:
            raise user_error(
                got="workers.kind=population for trials that are not our trainings",
                expected="a search with train.py or a protocol, over values of its configuration",
                do="set workers.kind=auto",
            )
        if not config.devices:
            return PopulationWorkers(evaluate_batch, config.slots)
    if kind == "auto":
        kind = "here" if config.slots == 1 and not config.devices else "processes"
    if kind == "here" and trial.timeout is not None and not is_main_thread():
        if config.kind == "here":
            raise user_error(
                got=f"trial.timeout={trial.timeout:g} with workers.kind=here, outside the main "
                "thread",
                expected="a worker process, or the main thread, which gets the signal of the timer",
                do="set workers.kind=processes, or omit the time limit",
            )
        kind = "processes"
    if kind == "here":
        return InlineWorkers(evaluate, trial.timeout)
    from synaptune.search.workers.pool import Pool
    from synaptune.search.workers.spawners import LocalSpawner, RaySpawner, SlurmSpawner

    processes = config.slots
    evaluate_share: EvaluateBatch = SequentialEvaluation(evaluate)
    match kind:
        case "processes":
            spawner = LocalSpawner(processes, tuple(config.devices))
        case "population":
            assert evaluate_batch is not None
            processes, evaluate_share = min(processes, len(config.devices)), evaluate_batch
            spawner = LocalSpawner(processes, tuple(config.devices))
        case "ray":
            spawner = RaySpawner(config.address, config.cpus, config.gpus)
        case _:
            spawner = SlurmSpawner(folder / "submitit", config.cluster, config.parameters)
    return Pool(evaluate_share, spawner, config.slots, trial.timeout, processes=processes)
