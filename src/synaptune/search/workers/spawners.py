"""Spawners of worker processes: this machine, Ray, and Slurm or another submitit executor."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.terminal import print_line
from synaptune.core.text import get_first_line, show_path
from synaptune.search.workers.devices import VISIBLE, get_device_id
from synaptune.search.workers.pool import WorkerHandle
from synaptune.search.workers.process import KEY_VARIABLE, run_worker

_RAY_TIMEOUT = 10.0  # of a connection to the head of a cluster [s]; chosen: a busy head answers


def count_threads(processes: int) -> int:
    """Return the threads of each of several worker processes that share the cores."""
    return max(1, (os.cpu_count() or 1) // processes)


@dataclass(frozen=True)
class LocalWorker:
    """A worker on this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> str | None:
        """Return the signal or exit code, or None while the process runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Kill the session of the process and wait for the process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class LocalSpawner:
    """Starts workers on this machine.

    Attributes:
        count: number of workers that share the cores.
        devices: GPUs that are assigned to the workers in turn; empty means all GPUs for all
            workers.
    """

    count: int
    devices: Sequence[str] = ()
    remote = False

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start a worker in its own session, so that Ctrl-C reaches the controller only."""
        environment = {
            "OMP_NUM_THREADS": str(count_threads(self.count)),
            **os.environ,
            KEY_VARIABLE: authkey.hex(),
        }
        if self.devices:
            environment[VISIBLE] = get_device_id(self.devices[slot % len(self.devices)])
        place = address if isinstance(address, str) else ":".join(map(str, address))
        command = [sys.executable, "-m", "synaptune.search.workers.process", str(slot), place]
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in [*sys.path, os.environ.get("PYTHONPATH", "")] if path
        )
        return LocalWorker(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        )

    def close(self) -> None:
        """Do nothing: the workers leave no resources."""


@dataclass(frozen=True)
class _RayWorker:
    task: Any

    def poll(self) -> str | None:
        """Return how the task ended, or None while it runs."""
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
        """Kill the process through Ray."""
        import ray

        ray.cancel(self.task, force=True)


@dataclass(frozen=True)
class RaySpawner:
    """Starts workers on a Ray cluster.

    Attributes:
        address: address of an existing cluster; None means a cluster on this machine.
        cpus: CPUs that Ray reserves for each worker.
        gpus: GPUs that Ray reserves for each worker.
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
                    expected="the address of a running Ray cluster, or null for this machine",
                    do="start it (ray start --head), or correct the address",
                ) from error

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Start a worker as a Ray task without retries: the pool replaces a dead worker.

        Raises:
            UserError: the cluster has ended. Ray would end this process after a minute.
        """
        import ray

        head = ray.get_runtime_context().gcs_address
        host, _, port = head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _RAY_TIMEOUT).close()
        except OSError as error:
            raise user_error(
                got=f"the Ray cluster {head}, which does not answer: {error.strerror or error}",
                expected="a running cluster",
                do="start it (ray start --head), unless workers.address is null, and give the same "
                "command; every finished trial is kept",
            ) from error
        task = ray.remote(_run_remote_worker).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0
        )
        return _RayWorker(task.remote(address, authkey, slot, list(sys.path)))

    def close(self) -> None:
        """Disconnect from the cluster. A cluster that this process started ends."""
        import ray

        ray.shutdown()


@dataclass(frozen=True)
class _SlurmWorker:
    job: Any

    def poll(self) -> str | None:
        """Return the final state of the job, or None while it runs."""
        with contextlib.suppress(LookupError, ValueError):  # sacct answers with other text
            return self.job.state if self.job.done(force_check=True) else None

    def kill(self) -> None:
        """Cancel the job."""
        self.job.cancel(check=False)


@dataclass(frozen=True)
class SlurmSpawner:
    """Starts workers as jobs of submitit, each with the time limit of its job.

    Attributes:
        folder: folder for the files of submitit.
        cluster: cluster of submitit; None means Slurm if it is available, `local` means processes
            on this machine.
        parameters: parameters of submitit by name (timeout_min, slurm_partition, gpus_per_node,
            ...).
    """

    folder: Path
    cluster: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remote = True

    def __post_init__(self) -> None:
        self._make_executor()  # refuses what cannot be submitted before a trial begins

    def _make_executor(self) -> Any:
        """Return the executor of submitit.

        Raises:
            UserError: there is no submitit or no Slurm, or a setting is not one of them.
        """
        try:
            import submitit
        except ImportError:
            raise user_error(
                got="workers=slurm without submitit",
                expected="the package submitit",
                do="pip install 'synaptune[slurm]'",
            ) from None
        if not str(self.folder).isprintable():
            # A line break would end a comment of the job script, and the shell would run the rest.
            raise user_error(
                got=f"the folder {str(self.folder)!a} with workers=slurm",
                expected="a path without line breaks and control characters",
                do="set study.dir, or change to another folder",
            )
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(name="synaptune", **self.parameters)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise user_error(
                got=f"a Slurm setting that submitit refuses: {get_first_line(error)}",
                expected="workers.cluster null, slurm (where srun is installed) or local, and "
                "parameters of submitit",
                do="correct workers.*, or choose workers=processes",
            ) from error
        return executor

    def spawn(self, address: Any, authkey: bytes, slot: int) -> WorkerHandle:
        """Submit a worker."""
        executor = self._make_executor()
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError

        try:
            job = executor.submit(_run_remote_worker, address, authkey, slot, list(sys.path))
        except (UncompletedJobError, FailedSubmissionError, OSError) as error:
            raise user_error(
                got=f"a job that cannot be submitted: {get_first_line(error)}",
                expected="sbatch accepts the job and answers with its number",
                do="correct workers.parameters (such as slurm_partition and slurm_account), "
                "and give the same command",
            ) from error
        print_line(f"worker {slot}: job {job.job_id} submitted, output in {show_path(self.folder)}")
        return _SlurmWorker(job)

    def close(self) -> None:
        """Do nothing: a job ends with its worker."""


def _run_remote_worker(address: Any, authkey: bytes, slot: int, path: list[str]) -> None:
    """Run a worker in a process of Ray or submitit, with the import path of the controller."""
    sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
    run_worker(address, authkey, slot)
