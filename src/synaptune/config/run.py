"""One training run: a composed configuration to objects, training, metrics and result.json."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from synaptune.config.flat import flatten_config
from synaptune.config.settings import (
    Settings,
    _find_last_step,
    _list_metrics,
    apply_tuned,
    compute_fingerprint,
    read_settings,
)
from synaptune.core.files import replace_file
from synaptune.core.text import format_parameter
from synaptune.data.config import DataConfig
from synaptune.search.objective.learning_curve import extrapolate_result
from synaptune.search.objective.score import check_ready, score
from synaptune.search.workers import reporting
from synaptune.training.errors import RunPruned, ValidationCallback


class Outcome(NamedTuple):
    """objective: what a search minimises; metrics: by name, in the units of objective/metrics.py; run_dir: where it all is.

    pruned_at: the step after which a report ended the run, null for a whole one. The objective and the validation loss of a
    pruned run, and of a proxy, are those it was heading for (objective/curve.py), null and absent when too little of its curve
    is known.
    """

    objective: float | None
    metrics: dict[str, float]
    run_dir: Path
    pruned_at: int | None = None


def _stop_at_last_step(
    built: Settings, report: ValidationCallback | None
) -> ValidationCallback | None:
    """The report of a run, which also ends a proxy after its fraction of the steps."""
    last = _find_last_step(built)
    if last == built.training.steps:
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
    """The whole run: configuration, objects, training, metrics, `run_dir/result.json`.

    run_dir: null is the folder Hydra made; overrides: those of the command line (null: Hydra's), which `tuned` stays below;
    report: told (step, validation loss) after each validation, ends the run in order by raising Pruned; null tells the search
    whose trial this is, if there is one; generation: of the search, by which some objectives change.
    Raises UserError for a bad configuration or input, DivergedError for a loss that is no number.
    """
    hydra_runs = HydraConfig.initialized()
    if cfg.tuned is not None:
        cfg = cfg.copy()
        used = apply_tuned(
            cfg,
            overrides
            if overrides is not None
            else list(HydraConfig.get().overrides.task)
            if hydra_runs
            else [],
        )
        print(
            f"tuned: {len(used)} values from {cfg.tuned}: "
            + ", ".join(f"{name}={format_parameter(value)}" for name, value in used.items())
        )
    built = read_settings(cfg)
    check_ready(built.objective, _list_metrics(built), generation)
    folder = Path(run_dir) if run_dir is not None else Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    in_search = run_dir is not None or (hydra_runs and HydraConfig.get().mode == RunMode.MULTIRUN)
    record = {
        name: value for name, value in flatten_config(cfg).items() if not name.startswith("notify.")
    }  # its URLs hold secrets
    return _run_settings(
        built,
        folder,
        record,
        in_search=in_search,
        report=report or _report_to_search,
        generation=generation,
    )


def _report_to_search(step: int, loss: float) -> None:
    if reporting.report(step, loss):
        raise RunPruned(step)


def _run_settings(
    built: Settings,
    folder: Path,
    flat_config: dict[str, Any],
    *,
    in_search: bool,
    report: ValidationCallback,
    generation: int,
) -> Outcome:
    import torch

    from synaptune.model.gpt import GPT
    from synaptune.training.job import Job
    from synaptune.training.trainer import fit, warm_up

    warm_up()
    began = time.perf_counter()
    torch.manual_seed(built.seed)
    corpus = _load_cached_corpus(built.data, built.model.context)
    model = GPT(built.model, built.synapse, vocab=corpus.vocab, seed=built.seed)
    identity = compute_fingerprint(built)
    job = Job(
        model=model,
        config=built.model,
        synapse=built.synapse,
        corpus=corpus,
        data=built.data,
        training=built.training,
        logger=built.logger,
        seed=built.seed,
        name=built.name,
        run_dir=folder,
        fingerprint=identity,
        flat_config=flat_config,
        in_search=in_search,
        on_validation=_stop_at_last_step(built, report),
    )
    fitted = fit(job)
    metrics = fitted.metrics
    seconds = time.perf_counter() - began
    metrics["setup_seconds"] = seconds - fitted.busy_seconds
    pruned_at = (
        int(metrics["steps"])
        if fitted.pruned and metrics["steps"] < _find_last_step(built)
        else None
    )
    if fitted.pruned:
        metrics = extrapolate_result(metrics, fitted.curve, built.training.steps)
    objective = score(built.objective, metrics, generation) if "val_loss" in metrics else None
    result = dict(
        objective=objective, pruned_at=pruned_at, metrics=metrics, config_fingerprint=identity
    )
    result |= dict(
        data_fingerprint=corpus.fingerprint,
        seconds=seconds,
        curve=fitted.curve,
        life=fitted.expert_history,
    )
    with replace_file(folder / "result.json") as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
    return Outcome(objective, metrics, folder, pruned_at)


@functools.lru_cache(maxsize=4)
def _load_cached_corpus(data: DataConfig, context: int):
    from synaptune.data.corpus import load_corpus

    return load_corpus(data, context)
