"""What a configuration may say about running trials, and the workers it stands for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError
from synaptune.search.workers.base import Evaluate, InlineWorkers, Workers

WORKER_KINDS = ("auto", "here", "processes", "ray", "slurm")
MAX_WORKERS = 8  # most workers that a protocol starts by itself [process]; chosen: memory


@dataclass
class WorkersConfig:
    """Where trials run.

    count: trials at a time (null: 1, in a protocol `side_by_side`);
    kind: `here` (this process, one at a time), `processes` (worker processes of this machine), `ray`, `slurm`; `auto` is `here` for one
    worker, `processes` for more; devices: GPUs handed to worker processes in turn (empty: all see all);
    address: of a Ray cluster (null: one on this machine); cpus, gpus: what Ray keeps for each worker; cluster, parameters: of submitit.
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
        """Trials at a time, once they are settled."""
        assert self.count is not None
        return self.count


@dataclass
class TrialConfig:
    """timeout: most seconds of a trial (null: no limit); retries: further attempts at a trial whose worker died."""

    timeout: float | None = None
    retries: int = 1


def check_execution(workers: WorkersConfig, trial: TrialConfig) -> None:
    """Raise UserError with every fault."""
    found = []
    if workers.kind not in WORKER_KINDS:
        found.append(f"workers.kind={workers.kind}: expected one of {', '.join(WORKER_KINDS)}")
    if workers.count is None:
        found.append(
            f"workers.count=null with workers.kind={workers.kind}: expected how many trials at a time"
        )
    elif workers.count < 1:
        found.append(f"workers.count={workers.count}: expected at least 1 trial at a time")
    elif workers.kind == "here" and workers.count > 1:
        found.append(
            f"workers.count={workers.count}: one process runs one trial at a time; expected 1, or workers.kind=processes"
        )
    if trial.timeout is not None and not trial.timeout > 0:
        found.append(f"trial.timeout={trial.timeout:g}: expected seconds above 0, or null")
    if trial.retries < 0:
        found.append(f"trial.retries={trial.retries}: expected at least 0")
    if found:
        raise UserError(
            "got workers that cannot run\n  "
            + "\n  ".join(found)
            + "\n  to do: correct these values"
        )


def resolve_worker_count(workers: WorkersConfig) -> WorkersConfig:
    """The workers of a protocol on this machine, where their number is left open: one for each GPU, else for each core, at most MOST.

    A run of a small model gains little from a second core (docs/results.md), so two runs take them better than one.
    """
    if workers.count is not None or workers.kind not in ("auto", "here", "processes"):
        return workers
    if workers.kind == "here":
        return replace(workers, count=1)
    import torch

    gpus = torch.cuda.device_count()
    if gpus:
        return replace(
            workers, count=gpus, devices=workers.devices or [str(number) for number in range(gpus)]
        )
    return replace(
        workers,
        count=min(
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
            MAX_WORKERS,
        ),
    )


def make_workers(
    config: WorkersConfig, trial: TrialConfig, evaluate: Evaluate, folder: Path
) -> Workers:
    """The workers of a configuration, checked; folder: where submitit keeps its files. Raises UserError when they cannot be had."""
    kind = config.kind if config.kind != "auto" else "here" if config.slots == 1 else "processes"
    if kind == "here":
        return InlineWorkers(evaluate, trial.timeout)
    from synaptune.search.workers.pool import Pool
    from synaptune.search.workers.spawners import LocalSpawner, RaySpawner, SlurmSpawner

    match kind:
        case "processes":
            spawner = LocalSpawner(config.slots, tuple(config.devices))
        case "ray":
            spawner = RaySpawner(config.address, config.cpus, config.gpus)
        case _:
            spawner = SlurmSpawner(folder / "submitit", config.cluster, config.parameters)
    return Pool(evaluate, spawner, config.slots, trial.timeout)
