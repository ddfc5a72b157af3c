"""One training run: from a composed configuration to metrics and result.json."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from synaptune.config.flat import flatten_without_secrets
from synaptune.config.settings import (
    Settings,
    apply_tuned,
    compute_fingerprint,
    find_last_step,
    is_image_run,
    is_policy_run,
    list_metrics,
    read_settings,
    size_network,
)
from synaptune.core.errors import user_error
from synaptune.core.files import replace_file
from synaptune.core.secrets import mask_passwords
from synaptune.core.terminal import print_line
from synaptune.core.text import format_parameter
from synaptune.data.config import CLASSES, DataConfig
from synaptune.model.budget import check_budget
from synaptune.search.objective.learning_curve import extrapolate_result
from synaptune.search.objective.score import MAXIMIZED, check_ready, needs_baseline, score
from synaptune.search.workers import reporting
from synaptune.training.config import RESULT_FILE
from synaptune.training.errors import RunPruned, ValidationCallback

if TYPE_CHECKING:
    from synaptune.training.job import Job
    from synaptune.training.trainer import FitResult


class Outcome(NamedTuple):
    """Result of a training run.

    The objective and the validation loss of a pruned run, and of a proxy, are extrapolated from its
    learning curve (search/objective/learning_curve.py). If too little of the curve is known, the
    objective is None and the validation loss is missing.

    Attributes:
        objective: what a search minimises.
        metrics: by name, in the units of training/metrics.py.
        run_dir: folder of the run's files.
        pruned_at: the step after which a report ended the run; None for a full run.
    """

    objective: float | None
    metrics: dict[str, float]
    run_dir: Path
    pruned_at: int | None = None


def _stop_at_last_step(
    settings: Settings, report: ValidationCallback | None
) -> ValidationCallback | None:
    """Return the report of a run, extended to end a proxy after its fraction of the steps."""
    last = find_last_step(settings)
    if last == settings.training.end:
        return report

    def report_and_stop(step: int, loss: float) -> None:
        if report is not None:
            report(step, loss)
        if step >= last:
            raise RunPruned(step)

    return report_and_stop


def run(
    cfg: DictConfig,
    run_dir: Path | None = None,
    overrides: Sequence[str] | None = None,
    *,
    report: ValidationCallback | None = None,
    generation: int = 0,
) -> Outcome:
    """Train one configuration and write `run_dir/result.json`.

    Args:
        cfg: the composed configuration.
        run_dir: folder of the run; None means the folder that Hydra made.
        overrides: overrides of the command line, which take precedence over `tuned`; None means
            Hydra's.
        report: called with (step, validation loss) after each validation; it ends the run early by
            raising RunPruned. None means that the search which runs this trial gets the reports.
        generation: generation of the search; some objectives depend on it.

    Raises:
        UserError: the configuration or the input has a fault.
        DivergedError: the loss is not a number.
    """
    prepared = prepare_run(cfg, run_dir, overrides, report=report, generation=generation)
    from synaptune.training.trainer import fit

    fitted = fit(prepared.job)
    return finish_run(prepared, fitted, time.perf_counter() - prepared.started_at)


class PreparedRun(NamedTuple):
    """A run that can be trained: its settings, and its job with model and data.

    Attributes:
        settings: typed settings.
        job: the job.
        data_fingerprint: hash of the data.
        generation: generation of the search.
        started_at: when its preparation began [s, performance counter].
    """

    settings: Settings
    job: Job
    data_fingerprint: str
    generation: int
    started_at: float


def prepare_run(
    cfg: DictConfig,
    run_dir: Path | None,
    overrides: Sequence[str] | None,
    *,
    report: ValidationCallback | None = None,
    generation: int = 0,
) -> PreparedRun:
    """Read a configuration, and make the model and the data of its run; see `run`."""
    if cfg.search.dry_run and run_dir is None:  # a search measures a step in a folder of its own
        raise user_error(
            got="search.dry_run=true for a run that no search of this package starts",
            expected="a search: python train.py -m hydra/sweeper=STRATEGY search.dry_run=true",
            do="add -m and hydra/sweeper=, or leave search.dry_run out",
        )
    in_hydra = HydraConfig.initialized()
    if cfg.tuned is not None:
        cfg = cfg.copy()
        if overrides is None:
            overrides = list(HydraConfig.get().overrides.task) if in_hydra else []
        used = apply_tuned(cfg, overrides)
        print_line(
            f"tuned: {len(used)} values from {cfg.tuned}: "
            + ", ".join(f"{name}={format_parameter(value)}" for name, value in used.items())
        )
    settings = read_settings(cfg)
    check_ready(settings.objective, list_metrics(settings), generation)
    folder = Path(run_dir) if run_dir is not None else Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    in_search = run_dir is not None or (in_hydra and HydraConfig.get().mode == RunMode.MULTIRUN)
    from synaptune.training.trainer import warm_up

    warm_up()
    started_at = time.perf_counter()
    job, data_fingerprint = make_job(
        settings,
        folder,
        make_record(cfg),
        in_search=in_search,
        report=report or _report_to_search,
        generation=generation,
    )
    return PreparedRun(settings, job, data_fingerprint, generation, started_at)


def make_record(cfg: DictConfig) -> dict[str, Any]:
    """Return the flat configuration that the logs and files of a run hold, without secrets.

    `notify` is left out, because its URLs are secrets whole.
    """
    return {
        name: mask_passwords(value)
        for name, value in flatten_without_secrets(cfg).items()
        if not name.startswith("notify.")
    }


def _report_to_search(step: int, loss: float) -> None:
    if reporting.report(step, loss):
        raise RunPruned(step)


def make_job(
    settings: Settings,
    folder: Path,
    flat_config: dict[str, Any],
    *,
    in_search: bool,
    report: ValidationCallback | None = None,
    generation: int = 0,
) -> tuple[Job, str]:
    """Return the job of a run with its fresh model, and the fingerprint of its data.

    Args:
        settings: settings of the run.
        folder: folder of the run.
        flat_config: the configuration that the logs record.
        in_search: whether the run is a trial of a search.
        report: called with (step, reported metric) after each validation.
        generation: generation of the search.

    Raises:
        BudgetExceeded: the model is larger than `budget.max_params`.
        UserError: the data cannot be read, or the model does not fit them.
    """
    import torch

    torch.manual_seed(settings.seed)
    kind, parts, data_fingerprint = _make_parts(settings)
    job = kind(
        **parts,
        reported=MAXIMIZED.get(settings.objective.name, "val_loss"),
        training=settings.training,
        logger=settings.logger,
        seed=settings.seed,
        name=settings.name,
        run_dir=folder,
        fingerprint=compute_fingerprint(settings),
        flat_config=flat_config,
        in_search=in_search,
        on_validation=_stop_at_last_step(settings, report),
        summarise=lambda fitted: _summarise(settings, fitted, folder, generation),
    )
    return job, data_fingerprint


def finish_run(prepared: PreparedRun, fitted: FitResult, seconds: float) -> Outcome:
    """Write the result.json of a trained run that took so many seconds; return its outcome."""
    settings, job, data_fingerprint, generation, _ = prepared
    folder = job.run_dir
    objective, metrics, _, pruned_at = _judge(settings, fitted, folder, generation)
    metrics["setup_seconds"] = seconds - fitted.busy_seconds
    result = dict(
        objective=objective,
        pruned_at=pruned_at,
        metrics=metrics,
        config_fingerprint=job.fingerprint,
    )
    result |= dict(
        data_fingerprint=data_fingerprint,
        seconds=seconds,
        curve=fitted.curve,
        life=fitted.expert_history,
    )
    with replace_file(folder / RESULT_FILE) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
    return Outcome(objective, metrics, folder, pruned_at)


def _make_parts(settings: Settings) -> tuple[type[Job], dict[str, Any], str]:
    """Return the kind of job, its model and data, and the fingerprint of the data.

    Raises:
        BudgetExceeded: the model is larger than `budget.max_params`.
        UserError: the data cannot be read, or the network does not fit them.
    """
    if is_image_run(settings):
        from synaptune.data.images import load_images
        from synaptune.model.dendrites import ImageNetwork
        from synaptune.training.image_job import ImageJob

        images = load_images(settings.data)
        network = size_network(settings, images.shape)
        network = ImageNetwork(network, images.shape, CLASSES, settings.seed)
        parts = dict(model=network, images=images, source=settings.data.source)
        return ImageJob, parts, images.fingerprint
    if is_policy_run(settings):
        from synaptune.training.policy_job import PolicyJob, load_policy_parts

        return PolicyJob, *load_policy_parts(settings.policy)
    from synaptune.model.gpt import GPT
    from synaptune.training.job import LanguageJob

    corpus = _load_cached_corpus(settings.data, settings.model.context)
    model = GPT(settings.model, settings.synapse, vocab=corpus.vocab, seed=settings.seed)
    check_budget(sum(weight.numel() for weight in model.parameters()), settings.budget)
    parts = dict(model=model, config=settings.model, synapse=settings.synapse)
    return LanguageJob, parts | dict(corpus=corpus, data=settings.data), corpus.fingerprint


def _judge(settings: Settings, fitted: FitResult, folder: Path, generation: int) -> Outcome:
    """Return the outcome of a run that was trained."""
    metrics, steps = dict(fitted.metrics), int(fitted.metrics["steps"])
    is_pruned = fitted.pruned and steps < find_last_step(settings)
    # A score that is not a loss keeps its latest value: the power law holds for losses.
    if fitted.pruned and settings.objective.name not in MAXIMIZED:
        metrics = extrapolate_result(metrics, fitted.curve, settings.training.steps)
    objective = score(settings.objective, metrics, generation) if "val_loss" in metrics else None
    return Outcome(objective, metrics, folder, steps if is_pruned else None)


def _summarise(
    settings: Settings, fitted: FitResult, folder: Path, generation: int
) -> dict[str, Any]:
    """Return what the loggers record beside the metrics: state and objective.

    A pruned run has an estimate in place of the objective. The controller of a search marks the
    best run later.
    """
    if not needs_baseline(settings.objective):  # a job of a sweep has its generation here
        generation = settings.logger.generation or generation
    outcome = _judge(settings, fitted, folder, generation)
    is_pruned = outcome.pruned_at is not None
    summary: dict[str, Any] = {"state": "pruned" if is_pruned else "complete", "is_best": False}
    if outcome.objective is not None:
        summary["estimate" if is_pruned else "objective"] = outcome.objective
    return summary


@functools.lru_cache(maxsize=4)
def _load_cached_corpus(data: DataConfig, context: int):
    from synaptune.data.corpus import load_corpus

    return load_corpus(data, context)
