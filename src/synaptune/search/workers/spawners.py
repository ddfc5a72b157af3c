"""Where worker processes are started: this machine, a Ray cluster, a Slurm partition (or any other of submitit's executors)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.search.workers.pool import WorkerHandle
from synaptune.search.workers.process import KEY_VARIABLE, run_worker


@dataclass(frozen=True)
class LocalWorker:
    """A worker of this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> str | None:
        """Its signal or exit code."""
        code = self.process.poll()
        if code is None:
            return None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Kill its session, and collect it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class LocalSpawner:
    """Workers on this machine; devices: the GPUs they are given in turn; count: how many share the cores."""

    count: int
    devices: Sequence[str] = ()
    remote = False

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start one in a session of its own, so that a Ctrl-C at the terminal stays with the controller."""
        cores = os.cpu_count() or 1
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // self.count)),
            **os.environ,
            KEY_VARIABLE: authkey.hex(),
        }
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        command = [sys.executable, "-m", "synaptune.search.workers.process", str(slot), address]
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in [*sys.path, os.environ.get("PYTHONPATH", "")] if path
        )
        return LocalWorker(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        )

    def close(self) -> None:
        """Nothing outlives the workers."""


@dataclass(frozen=True)
class _RayWorker:
    task: Any

    def poll(self) -> str | None:
        """How its task ended."""
        import ray
        from ray.exceptions import RayError

        done, _ = ray.wait([self.task], timeout=0)
        if not done:
            return None
        try:
            ray.get(self.task)
        except RayError as error:
            return get_first_line(error)
        return "ended"

    def kill(self) -> None:
        """Have Ray kill its process."""
        import ray

        ray.cancel(self.task, force=True)


@dataclass(frozen=True)
class RaySpawner:
    """Workers on a Ray cluster: an existing one by its address, or one on this machine.

    cpus, gpus: what Ray keeps for each worker.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    remote = True

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise user_error(
                got="workers=ray without Ray",
                expected="the package ray",
                do="pip install 'synaptune[ray]'",
            ) from None
        if not ray.is_initialized():
            try:
                ray.init(
                    address=self.address,
                    log_to_driver=True,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise user_error(
                    got=f"workers.address={self.address}: {error}",
                    expected="the address of a running Ray cluster, or null for one on this machine",
                    do="start it (ray start --head), or correct the address",
                ) from error

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start one as a Ray task, which takes the place of its process: a dead one is ours to replace."""
        import ray

        task = ray.remote(_run_remote_worker).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0
        )
        return _RayWorker(task.remote(address, authkey, slot, list(sys.path)))

    def close(self) -> None:
        """Leave the cluster (one of our own ends with it)."""
        import ray

        ray.shutdown()


@dataclass(frozen=True)
class _SlurmWorker:
    job: Any

    def poll(self) -> str | None:
        """The job's final state."""
        return self.job.state if self.job.done(force_check=True) else None

    def kill(self) -> None:
        """Cancel the job."""
        self.job.cancel(check=False)


@dataclass(frozen=True)
class SlurmSpawner:
    """Workers as jobs of submitit, each for as long as its time limit allows.

    cluster: null chooses Slurm where there is one (`local` runs the jobs as processes here); parameters: submitit's, by name
    (timeout_min, slurm_partition, gpus_per_node, ...).
    """

    folder: Path
    cluster: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remote = True

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Submit one."""
        try:
            import submitit
        except ImportError:
            raise user_error(
                got="workers=slurm without submitit",
                expected="the package submitit",
                do="pip install 'synaptune[slurm]'",
            ) from None
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(name="synaptune", **self.parameters)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise user_error(
                got=f"a Slurm setting that submitit refuses: {error}",
                expected="workers.cluster null, slurm or local, and parameters of submitit",
                do="correct workers.*",
            ) from error
        return _SlurmWorker(
            executor.submit(_run_remote_worker, address, authkey, slot, list(sys.path))
        )

    def close(self) -> None:
        """Jobs end with their workers."""


def _run_remote_worker(address: Any, authkey: bytes, slot: int, path: list[str]) -> None:
    """A worker in a process that others started, with this process's import path."""
    sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
    run_worker(address, authkey, slot)
