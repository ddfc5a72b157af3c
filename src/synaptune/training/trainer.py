"""Training of a job from the start or from the checkpoint of an interrupted run."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from synaptune.core.errors import UserError, user_error
from synaptune.training import checkpoint
from synaptune.training.device import compile_model, flush_denormals, pick_device
from synaptune.training.errors import RunPruned
from synaptune.training.job import Job, LanguageJob
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import make_progress

if TYPE_CHECKING:
    from synaptune.training.recorder import FitState


class FitResult(NamedTuple):
    """Result of a training run.

    Attributes:
        metrics: metrics by name, in the units of training/metrics.py; those of the last validation
            for a pruned run.
        curve: [step, validation loss] of each validation.
        busy_seconds: time of this process in steps and evaluations [s].
        pruned: whether the validation callback ended the run.
        expert_history: history of the experts, as in FitState; None for a dense model.
    """

    metrics: dict[str, float]
    curve: list[list[float]]
    busy_seconds: float
    pruned: bool = False
    expert_history: dict[str, Any] | None = None


def warm_up() -> None:
    """Import the libraries of every run; the first call takes seconds."""
    import torch.utils.tensorboard  # noqa: F401

    import synaptune.training.lightning_import  # noqa: F401


def fit(job: Job) -> FitResult:
    """Train the job's model in place to its last step and evaluate it.

    Raises:
        DivergedError: the loss is not finite.
        UserError: the checkpoint is of another run, or the device is missing.
    """
    from synaptune.training.module import TrainingModule
    from synaptune.training.recorder import FitState

    device = pick_device(job.training.device)
    content = _load_resume_checkpoint(job)
    state = FitState(**content["state"]) if content else FitState()
    seconds_before = state.train_seconds + state.evaluation_seconds
    if job.training.compile:
        compile_model(job.model, device)
    run_logger = RunLogger(
        job.logger,
        job.run_dir,
        name=job.name,
        flat_config=job.flat_config,
        resumed_from=state.step,
        columns=job.columns,
    )
    # Created last, because a bar that is not closed keeps control of the terminal.
    progress = make_progress(
        job.logger.progress,
        job.training.end,
        state.step,
        evaluations=job.training.evaluations,
        in_search=job.in_search,
        unit=job.unit,
    )
    exit_code, pruned = 1, False
    try:
        module = TrainingModule(
            job, state, run_logger, progress, content["optimizer"] if content else None
        )
        with flush_denormals():
            if state.step < job.training.end:
                try:
                    _train(module, device)
                except RunPruned:
                    pruned = True
            metrics = compute_final_metrics(
                job, state, device, test=job.training.test and not pruned
            )
        result = FitResult(
            metrics,
            state.curve,
            state.train_seconds + state.evaluation_seconds - seconds_before,
            pruned,
            state.expert_history,
        )
        run_logger.log_summary({**result.metrics, **job.summarise(result)})
        exit_code = 0
    except Exception:
        run_logger.log_summary({"state": "failed"})
        raise
    finally:
        progress.close()
        run_logger.close(exit_code)
    return result


def _load_resume_checkpoint(job: Job) -> dict[str, Any] | None:
    """Load the checkpoint and restore weights and random states; None for a fresh start."""
    if not (job.training.resume and job.checkpoint_path.exists()):
        return load_start_checkpoint(job)
    content = _load_run(job.checkpoint_path)
    if content["fingerprint"] != job.fingerprint:
        raise user_error(
            got=f"{job.checkpoint_path} of a run with another configuration",
            expected="the configuration it was started with (.hydra/overrides.yaml beside it)",
            do="leave out the overrides that differ: a resume reads those of the run; or choose"
            " another hydra.run.dir for a new run",
        )
    try:
        job.model.load_state_dict(content["weights"])
    except RuntimeError as error:  # other names or shapes
        raise _refuse_damaged(job.checkpoint_path, "weights") from error
    checkpoint.restore_random_states(content["random"])
    job.sums[:] = content.get("sums", ())  # checkpoints of earlier versions have none
    return content


def _load_run(path: Path) -> dict[str, Any]:
    """Load a checkpoint from which a run can go on.

    Raises:
        UserError: it is no checkpoint, or a part of it is missing or of another kind.
    """
    from synaptune.training.recorder import FitState

    content, fresh = checkpoint.load(path), vars(FitState())
    for name in ("weights", "optimizer", "random", "state"):
        if not isinstance(content.get(name), dict):
            raise _refuse_damaged(path, name)
    moments, randoms, state = (content[name] for name in ("optimizer", "random", "state"))
    kinds = {
        "fingerprint": isinstance(content.get("fingerprint"), str),
        "sums": isinstance(content.get("sums", []), list),
        "optimizer": isinstance(moments.get("state"), dict)
        and all(isinstance(values, dict) for values in moments["state"].values()),
        "random": isinstance(randoms.get("cpu"), torch.Tensor)
        and isinstance(randoms.get("cuda"), list),
        "state": "step" in state
        and all(name in fresh and type(state[name]) is type(fresh[name]) for name in state),
    }
    if faults := [name for name, is_whole in kinds.items() if not is_whole]:
        raise _refuse_damaged(path, ", ".join(faults))
    return content


def _refuse_damaged(path: Path, part: str) -> UserError:
    return user_error(
        got=f"{path}, a damaged checkpoint: {part}",
        expected="a file as train.py wrote it",
        do="restore the file, give another checkpoint, or train again",
    )


def load_start_checkpoint(job: Job) -> dict[str, Any] | None:
    """Load the checkpoint of another run, which this run continues; None for a fresh start.

    Raises:
        UserError: the file is no checkpoint, of another model, or beyond the end of this run.
    """
    if job.training.start is None:
        return None
    path, end = Path(job.training.start), job.training.end
    content = _load_run(path)
    try:
        job.model.load_state_dict(content["weights"])
    except RuntimeError as error:  # other names or shapes
        raise user_error(
            got=f"training.start={path}, whose weights do not fit the model",
            expected="a checkpoint of a model of the same size and mechanisms",
            do="give the model.* settings of that run, or another checkpoint",
        ) from error
    if content["state"]["step"] >= end:
        raise user_error(
            got=f"training.start={path}, a checkpoint of step {content['state']['step']}",
            expected=f"a step before the end of the run, {end}",
            do="raise training.steps (and training.last_step), or give an earlier checkpoint",
        )
    checkpoint.restore_random_states(content["random"])
    return content


def _train(module: Any, device: torch.device) -> None:
    """Run the remaining steps with a Lightning trainer without loggers, checkpoints and bars."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from synaptune.training.lightning_import import lightning
    from synaptune.training.module import StepBatches

    # after lightning_import, which shortens the import of Lightning
    from lightning.pytorch.utilities.exceptions import SIGTERMException  # isort: skip

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)  # Lightning logs an advertisement per fit
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer = lightning.Trainer(
                accelerator="gpu" if device.type == "cuda" else "cpu",
                devices=1,
                # Without it Lightning takes the Slurm allocation of a launcher for a cluster job.
                plugins=[LightningEnvironment()],
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(module, train_dataloaders=StepBatches(module.job, module.state.step))
    except SystemExit as end:
        # Lightning turns Ctrl-C into an exit and then ignores the signal; a search needs the
        # KeyboardInterrupt.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if isinstance(end, SIGTERMException):  # the process ends as without Lightning
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handlers[signal.SIGINT])


def compute_final_metrics(
    job: Job, state: FitState, device: torch.device, *, test: bool
) -> dict[str, float]:
    """Return the metrics of a run that has ended, `test` with those of the test split."""
    metrics = dict(state.metrics)
    if state.step == job.training.end:
        metrics |= job.compute_final_metrics(device)
    if test:
        started_at = time.perf_counter()
        job.model.to(device)  # Lightning leaves a trained model on the CPU
        metrics |= job.score_split(device, "test")
        state.evaluation_seconds += time.perf_counter() - started_at
    if isinstance(job, LanguageJob):
        metrics |= {"merges": float(state.merges), "splits": float(state.splits)}
    return metrics | {
        f"{job.unit}s_per_second": state.step * job.units_per_step / max(1e-9, state.train_seconds),
        "train_seconds": state.train_seconds,
        "evaluation_seconds": state.evaluation_seconds,
        "peak_memory_mib": _measure_peak_memory(device),
        "steps": float(state.step),
    }


def _measure_peak_memory(device: torch.device) -> float:
    """Return the peak memory so far of the GPU, or of this process on a CPU [MiB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource
    import sys

    # ru_maxrss counts KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
