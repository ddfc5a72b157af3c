"""A composed configuration to a finished run: the only reader of a DictConfig besides train.py."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.data.config import DataConfig, data_faults
from synaptune.errors import UserError, mistake
from synaptune.hints import nearest
from synaptune.model.config import ModelConfig, model_faults
from synaptune.objective.curve import LEAST_POINTS, projected
from synaptune.objective.score import ObjectiveConfig, check_ready, objective_faults, score
from synaptune.parameters import faults
from synaptune.plain import flat
from synaptune.schema import unknown_keys
from synaptune.search import reporting
from synaptune.search.pruning import PrunerConfig, pruner_faults
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.config import LoggerConfig, TrainingConfig, training_faults
from synaptune.training.errors import Pruned, Report
from synaptune.training.schedules import evaluation_steps


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


class Settings(NamedTuple):
    """A configuration as typed values."""

    model: ModelConfig
    synapse: SynapseParams
    data: DataConfig
    training: TrainingConfig
    logger: LoggerConfig
    objective: ObjectiveConfig
    pruner: PrunerConfig
    seed: int
    name: str


def settings(cfg: DictConfig) -> Settings:
    """The typed values of a composed configuration; raises UserError with every fault at once."""
    if unknown := list(unknown_keys(cfg)):
        known = [name for name in flat(cfg) if name not in unknown]
        raise mistake(
            got="; ".join(f"{name}: no such name (closest: {nearest(name, known)})" for name in unknown),
            expected="names of the configuration",
            do="correct the name; python train.py --cfg job lists all, --help the groups",
        )
    groups = ("model", "data", "training", "logger", "objective", "pruner")
    model, data, training, logger, objective, pruner = (OmegaConf.to_object(cfg[group]) for group in groups)
    synapse = SynapseParams(**OmegaConf.to_object(cfg.synapse))  # type: ignore[arg-type]
    built = Settings(model, synapse, data, training, logger, objective, pruner, cfg.seed, cfg.name)  # type: ignore[arg-type]
    found = model_faults(built.model) + faults(built.synapse) + data_faults(built.data, built.model.context)
    found += training_faults(built.training, built.logger) + objective_faults(built.objective)
    found += pruner_faults(built.pruner, built.training.evaluations)
    found += _proxy_faults(built) if not found else []
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        found.append(f"seed={cfg.seed}: expected an integer of at least 0")
    if found:
        raise UserError("got a configuration that cannot run\n  " + "\n  ".join(found) + "\n  to do: correct these values and start again")
    return built


def _metrics_of(built: Settings) -> set[str]:
    """Names of the metrics that an objective may find in a run."""
    recall = {"val_recall_accuracy"} if built.data.recall_fraction > 0 else set()
    experts = {"expert_gini", "expert_dead_fraction"} if built.model.experts > 1 else set()
    return {"val_loss", "val_perplexity", "val_calibration_error", "tokens_per_second"} | recall | experts


def _last_step(built: Settings) -> int:
    """The step that a run is trained to: a proxy stops on its way, on the schedule of the whole run."""
    part = built.objective.fraction if built.objective.name == "proxy" else 1.0
    return math.ceil(part * built.training.steps)


def _proxy_faults(built: Settings) -> list[str]:
    """One line when a proxy has too few validations to extrapolate from; empty when all is well."""
    points = sum(step <= _last_step(built) for step in evaluation_steps(built.training))
    if built.objective.name != "proxy" or points >= LEAST_POINTS:
        return []
    return [
        f"objective.fraction={built.objective.fraction:g}: {points} of training.evaluations={built.training.evaluations} fall into it,"
        f" expected at least {LEAST_POINTS} to extrapolate from"
    ]


def _stopping(built: Settings, report: Report | None) -> Report | None:
    """The report of a run, which also ends a proxy after its fraction of the steps."""
    last = _last_step(built)
    if last == built.training.steps:
        return report

    def told(step: int, loss: float) -> None:
        if report is not None:
            report(step, loss)
        if step >= last:
            raise Pruned(step)

    return told


def check(cfg: DictConfig) -> None:
    """Raise UserError with every fault of a configuration, before any compute."""
    settings(cfg)


def fingerprint(built: Settings) -> str:
    """SHA-256 of everything that determines a run's result: not where it is written, nor how often it is saved."""
    plain = {group: dataclasses.asdict(getattr(built, group)) for group in ("model", "synapse", "data", "training")}
    for name in ("resume", "checkpoint_every", "test"):
        del plain["training"][name]
    return hashlib.sha256(json.dumps(plain | {"seed": built.seed}, sort_keys=True).encode()).hexdigest()


def apply_tuned(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Put the values of the best.yaml `cfg.tuned` names into the configuration, below the given overrides; returns those it used.

    An override may give a value, or choose the variant of a subsystem (`synapse/calcium=slow`): none of its values is tuned then.
    Raises UserError when the file is missing, no best.yaml, or has a name or a value that the configuration does not take.
    """
    path = Path(cfg.tuned)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        values = {str(name): value for name, value in content["parameters"].items()}
    except OSError as error:
        raise mistake(got=f"tuned={path}: {error.strerror}", expected="the best.yaml of a study", do="check the path") from error
    except (
        yaml.YAMLError,
        OmegaConfBaseException,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # no best.yaml
        raise mistake(
            got=f"tuned={path}, not a best.yaml", expected="`parameters: {name: value, ...}`", do="give the best.yaml of a study"
        ) from error
    known = flat(cfg)
    if unknown := [name for name in values if name not in known]:
        lines = "; ".join(f"{name} (closest: {nearest(name, known)})" for name in unknown)
        raise mistake(got=f"tuned={path} with unknown names: {lines}", expected="names of the configuration", do="correct the file")
    given = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    chosen = tuple(f"{key.replace('/', '.')}." for key in given if key.startswith("synapse/"))
    used = {name: value for name, value in values.items() if name not in given and not name.startswith(chosen)}
    for name, value in used.items():
        try:
            OmegaConf.update(cfg, name, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise mistake(got=f"tuned={path} with {name}: {reason}", expected="values of their type", do="correct the file") from error
    return used


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(
    cfg: DictConfig,
    run_dir: Path | None = None,
    overrides: Sequence[str] | None = None,
    *,
    report: Report | None = None,
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
        used = apply_tuned(cfg, overrides if overrides is not None else list(HydraConfig.get().overrides.task) if hydra_runs else [])
        print(f"tuned: {len(used)} values from {cfg.tuned}: " + ", ".join(f"{name}={_short(value)}" for name, value in used.items()))
    built = settings(cfg)
    check_ready(built.objective, _metrics_of(built), generation)
    folder = Path(run_dir) if run_dir is not None else Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    in_search = run_dir is not None or (hydra_runs and HydraConfig.get().mode == RunMode.MULTIRUN)
    record = {name: value for name, value in flat(cfg).items() if not name.startswith("notify.")}  # its URLs hold secrets
    return _run(built, folder, record, in_search=in_search, report=report or _told_the_search, generation=generation)


def _told_the_search(step: int, loss: float) -> None:
    if reporting.report(step, loss):
        raise Pruned(step)


def _run(built: Settings, folder: Path, record: dict[str, Any], *, in_search: bool, report: Report, generation: int) -> Outcome:
    import torch

    from synaptune.model.gpt import GPT
    from synaptune.training.job import Job
    from synaptune.training.trainer import fit, warm_up

    warm_up()
    began = time.perf_counter()
    torch.manual_seed(built.seed)
    corpus = _corpus(built.data, built.model.context)
    model = GPT(built.model, built.synapse, vocab=corpus.vocab, seed=built.seed)
    identity = fingerprint(built)
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
        record=record,
        in_search=in_search,
        report=_stopping(built, report),
    )
    fitted = fit(job)
    metrics = fitted.metrics
    seconds = time.perf_counter() - began
    metrics["setup_seconds"] = seconds - fitted.busy_seconds
    pruned_at = int(metrics["steps"]) if fitted.pruned and metrics["steps"] < _last_step(built) else None
    if fitted.pruned:
        metrics = projected(metrics, fitted.curve, built.training.steps)
    objective = score(built.objective, metrics, generation) if "val_loss" in metrics else None
    result = dict(objective=objective, pruned_at=pruned_at, metrics=metrics, config_fingerprint=identity)
    result |= dict(data_fingerprint=corpus.fingerprint, seconds=seconds, curve=fitted.curve, life=fitted.life)
    _write(folder / "result.json", json.dumps(result, indent=1))
    return Outcome(objective, metrics, folder, pruned_at)


@functools.lru_cache(maxsize=4)
def _corpus(data: DataConfig, context: int):
    from synaptune.data.corpus import load_corpus

    return load_corpus(data, context)


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text + "\n")
    os.replace(draft, path)
