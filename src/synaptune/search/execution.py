"""What a configuration may say about running trials, and the workers it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from synaptune.errors import UserError
from synaptune.search.workers import Evaluate, Inline, Workers

KINDS = ("auto", "here", "processes", "ray", "slurm")


@dataclass
class WorkersConfig:
    """Where trials run.

    kind: `here` (this process, one at a time), `processes` (worker processes of this machine), `ray`, `slurm`; `auto` is `here` for one
    worker, `processes` for more; count: trials at a time; devices: GPUs handed to worker processes in turn (empty: all see all);
    address: of a Ray cluster (null: one on this machine); cpus, gpus: what Ray keeps for each worker; cluster, parameters: of submitit.
    """

    kind: str = "auto"
    count: int = 1
    devices: list[str] = field(default_factory=list)
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    cluster: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrialConfig:
    """timeout: most seconds of a trial (null: no limit); retries: further attempts at a trial whose worker died."""

    timeout: float | None = None
    retries: int = 1


def check_execution(workers: WorkersConfig, trial: TrialConfig) -> None:
    """Raise UserError with every fault."""
    found = []
    if workers.kind not in KINDS:
        found.append(f"workers.kind={workers.kind}: expected one of {', '.join(KINDS)}")
    if workers.count < 1:
        found.append(f"workers.count={workers.count}: expected at least 1 trial at a time")
    if workers.kind == "here" and workers.count > 1:
        found.append(f"workers.count={workers.count}: one process runs one trial at a time; expected 1, or workers.kind=processes")
    if trial.timeout is not None and not trial.timeout > 0:
        found.append(f"trial.timeout={trial.timeout:g}: expected seconds above 0, or null")
    if trial.retries < 0:
        found.append(f"trial.retries={trial.retries}: expected at least 0")
    if found:
        raise UserError("got workers that cannot run\n  " + "\n  ".join(found) + "\n  to do: correct these values")


def make_workers(config: WorkersConfig, trial: TrialConfig, evaluate: Evaluate, folder: Path) -> Workers:
    """The workers of a configuration, checked; folder: where submitit keeps its files. Raises UserError when they cannot be had."""
    kind = config.kind if config.kind != "auto" else "here" if config.count == 1 else "processes"
    if kind == "here":
        return Inline(evaluate, trial.timeout)
    from synaptune.search.pool import Pool
    from synaptune.search.spawners import Processes, Ray, Slurm

    match kind:
        case "processes":
            spawner = Processes(config.count, tuple(config.devices))
        case "ray":
            spawner = Ray(config.address, config.cpus, config.gpus)
        case _:
            spawner = Slurm(folder / "submitit", config.cluster, config.parameters)
    return Pool(evaluate, spawner, config.count, trial.timeout)


def register() -> None:
    """Register the schemas: `workers=auto|here|processes|ray|slurm` and `trial=default`."""
    store = ConfigStore.instance()
    for kind in KINDS:
        store.store(group="workers", name=kind, node=WorkersConfig(kind=kind))
    store.store(group="trial", name="default", node=TrialConfig)
