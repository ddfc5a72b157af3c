"""fit: a job to its metrics, fresh or from where an interrupted run stopped."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from synaptune.core.errors import user_error
from synaptune.training import checkpoint
from synaptune.training.errors import RunPruned
from synaptune.training.evaluation import pick_device
from synaptune.training.job import Job, score_split
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import make_progress

if TYPE_CHECKING:
    from synaptune.training.module import FitState


class FitResult(NamedTuple):
    """metrics: by name, units as in objective/metrics.py; curve: [step, validation loss] of the run; busy_seconds: spent in
    steps and scoring by this process; pruned: whether a report ended it, and the metrics are those of its last validation; life: of
    the experts, as in FitState, null without any."""

    metrics: dict[str, float]
    curve: list[list[float]]
    busy_seconds: float
    pruned: bool = False
    expert_history: dict[str, Any] | None = None


def warm_up() -> None:
    """Import what every run needs; takes seconds the first time and nothing afterwards."""
    import torch.utils.tensorboard  # noqa: F401

    import synaptune.training.lightning_import  # noqa: F401


def fit(job: Job) -> FitResult:
    """Train the job's model in place to its last step and score it.

    Raises DivergedError for a loss that is no number, UserError for a checkpoint of another run or a missing device.
    """
    from synaptune.training.module import FitState, TrainingModule

    device = pick_device(job.training.device)
    content = _load_resume_checkpoint(job)
    state = FitState(**content["state"]) if content else FitState()
    earlier = state.train_seconds + state.evaluation_seconds
    if job.training.compile:
        job.model.compile()
    telemetry = RunLogger(
        job.logger, job.run_dir, name=job.name, flat_config=job.flat_config, resumed_from=state.step
    )
    # Last: a bar that nobody closes keeps the terminal.
    view = make_progress(
        job.logger.progress, job.training.steps, state.step, in_search=job.in_search
    )
    exit_code, pruned = 1, False
    try:
        module = TrainingModule(
            job, state, telemetry, view, content["optimizer"] if content else None
        )
        if state.step < job.training.steps:
            pruned = _train_until_pruned(module, device)
        metrics = _compute_final_metrics(job, state, device, test=job.training.test and not pruned)
        telemetry.log_summary(metrics)
        exit_code = 0
    finally:
        view.close()
        telemetry.close(exit_code)
    return FitResult(
        metrics,
        state.curve,
        state.train_seconds + state.evaluation_seconds - earlier,
        pruned,
        state.expert_history,
    )


def _load_resume_checkpoint(job: Job) -> dict[str, Any] | None:
    """The checkpoint to go on from, with weights and random states put back; None for a fresh start."""
    if not (job.training.resume and job.checkpoint_path.exists()):
        return None
    content = checkpoint.load(job.checkpoint_path)
    if content["fingerprint"] != job.fingerprint:
        raise user_error(
            got=f"{job.checkpoint_path} of a run with another configuration",
            expected="the configuration it was started with (.hydra/config.yaml beside it)",
            do="give the same overrides, or another hydra.run.dir for a new run",
        )
    job.model.load_state_dict(content["weights"])
    checkpoint.restore_random_states(content["random"])
    return content


def _train_until_pruned(module: Any, device: torch.device) -> bool:
    """Train; True when a report ended it before its last step."""
    try:
        _train(module, device)
    except RunPruned:
        return True
    return False


def _train(module: Any, device: torch.device) -> None:
    """Run the remaining steps under a Lightning trainer that does only what the module asks for."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from synaptune.training.lightning_import import lightning
    from synaptune.training.module import StepBatches

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)  # one line of advertising for each fit
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer = lightning.Trainer(
                accelerator="gpu" if device.type == "cuda" else "cpu",
                devices=1,
                plugins=[
                    LightningEnvironment()
                ],  # or a Slurm allocation of a launcher would be taken for a cluster job
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(module, train_dataloaders=StepBatches(module.job, module.state.step))
    except SystemExit as end:
        # Lightning turns Ctrl-C into an exit and ignores the key from then on; a search has to see the interruption.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _compute_final_metrics(
    job: Job, state: FitState, device: torch.device, *, test: bool
) -> dict[str, float]:
    metrics = dict(state.metrics)
    if test:
        began = time.perf_counter()
        job.model.to(device)  # Lightning leaves a trained model on the CPU
        metrics |= score_split(job, device, "test")
        state.evaluation_seconds += time.perf_counter() - began
    metrics |= {
        "tokens_per_second": state.step * job.tokens_per_step / max(1e-9, state.train_seconds),
        "train_seconds": state.train_seconds,
        "evaluation_seconds": state.evaluation_seconds,
        "peak_memory_mib": _measure_peak_memory(device),
        "merges": float(state.merges),
        "splits": float(state.splits),
        "steps": float(state.step),
    }
    return metrics


def _measure_peak_memory(device: torch.device) -> float:
    """Most memory in use so far [MiB]: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource
    import sys

    # ru_maxrss counts KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
