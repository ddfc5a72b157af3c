"""A composed configuration to a finished run: the only reader of a DictConfig besides train.py."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from synaptune.data.config import DataConfig, data_faults
from synaptune.errors import UserError, mistake
from synaptune.hints import nearest
from synaptune.model.config import ModelConfig, model_faults
from synaptune.objective.score import ObjectiveConfig, objective_faults, score
from synaptune.parameters import faults
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.training.config import LoggerConfig, TrainingConfig, training_faults


class Outcome(NamedTuple):
    """objective: what a search minimises; metrics: by name, in the units of objective/metrics.py; run_dir: where it all is."""

    objective: float
    metrics: dict[str, float]
    run_dir: Path


class Settings(NamedTuple):
    """A configuration as typed values."""

    model: ModelConfig
    synapse: SynapseParams
    data: DataConfig
    training: TrainingConfig
    logger: LoggerConfig
    objective: ObjectiveConfig
    seed: int
    name: str


def settings(cfg: DictConfig) -> Settings:
    """The typed values of a composed configuration; raises UserError with every fault at once."""
    groups = ("model", "data", "training", "logger", "objective")
    model, data, training, logger, objective = (OmegaConf.to_object(cfg[group]) for group in groups)
    synapse = SynapseParams(**OmegaConf.to_object(cfg.synapse))  # type: ignore[arg-type]
    built = Settings(model, synapse, data, training, logger, objective, cfg.seed, cfg.name)  # type: ignore[arg-type]
    found = model_faults(built.model) + faults(built.synapse) + data_faults(built.data, built.model.context)
    found += training_faults(built.training, built.logger) + objective_faults(built.objective)
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        found.append(f"seed={cfg.seed}: expected an integer of at least 0")
    if found:
        raise UserError("got a configuration that cannot run\n  " + "\n  ".join(found) + "\n  to do: correct these values and start again")
    return built


def check(cfg: DictConfig) -> None:
    """Raise UserError with every fault of a configuration, before any compute."""
    settings(cfg)


def fingerprint(built: Settings) -> str:
    """SHA-256 of everything that determines a run's result: not where it is written, nor how often it is saved."""
    plain = {group: dataclasses.asdict(getattr(built, group)) for group in ("model", "synapse", "data", "training")}
    for name in ("resume", "checkpoint_every", "test"):
        del plain["training"][name]
    return hashlib.sha256(json.dumps(plain | {"seed": built.seed}, sort_keys=True).encode()).hexdigest()


def apply_tuned(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, float]:
    """Put the values of the best.yaml `cfg.tuned` names into the configuration, below the given overrides; returns those it used.

    Raises UserError when the file is missing, no best.yaml, or names a parameter that does not exist.
    """
    path = Path(cfg.tuned)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        values = {str(name): float(value) for name, value in content["parameters"].items()}
    except OSError as error:
        raise mistake(got=f"tuned={path}: {error.strerror}", expected="the best.yaml of a study", do="check the path") from error
    except Exception as error:  # the YAML reader's errors, and every wrong shape
        raise mistake(
            got=f"tuned={path}, not a best.yaml", expected="`parameters: {name: value, ...}`", do="give the best.yaml of a study"
        ) from error
    kinds = {spec.name: int if spec.scale == "int" or spec.of_run else float for spec in SPECS}
    if unknown := [name for name in values if name not in kinds]:
        lines = "; ".join(f"{name} (closest: {nearest(name, kinds)})" for name in unknown)
        raise mistake(got=f"tuned={path} with unknown parameters: {lines}", expected="names of docs/parameters.md", do="correct the file")
    given = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    used = {name: value for name, value in values.items() if name not in given}
    for name, value in used.items():
        OmegaConf.update(cfg, name, kinds[name](value))
    return used


def run(cfg: DictConfig, run_dir: Path | None = None, overrides: Sequence[str] | None = None) -> Outcome:
    """The whole run: configuration, objects, training, metrics, `run_dir/result.json`.

    run_dir: null is the folder Hydra made; overrides: those of the command line (null: Hydra's), which `tuned` stays below.
    Raises UserError for a bad configuration or input, DivergedError for a loss that is no number.
    """
    hydra_runs = HydraConfig.initialized()
    if cfg.tuned is not None:
        cfg = cfg.copy()
        used = apply_tuned(cfg, overrides if overrides is not None else list(HydraConfig.get().overrides.task) if hydra_runs else [])
        print(f"tuned: {len(used)} values from {cfg.tuned}: " + ", ".join(f"{name}={value:.4g}" for name, value in used.items()))
    built = settings(cfg)
    folder = Path(run_dir) if run_dir is not None else Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    in_search = run_dir is not None or (hydra_runs and HydraConfig.get().mode == RunMode.MULTIRUN)
    record = {name: value for name, value in flat(cfg).items() if not name.startswith("notify.")}  # its URLs hold secrets
    return _run(built, folder, record, in_search=in_search)


def _run(built: Settings, folder: Path, record: dict[str, Any], *, in_search: bool) -> Outcome:
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
    )
    metrics, curve, busy_seconds = fit(job)
    seconds = time.perf_counter() - began
    metrics["setup_seconds"] = seconds - busy_seconds
    objective = score(built.objective, metrics)
    result = dict(objective=objective, metrics=metrics, config_fingerprint=identity, data_fingerprint=corpus.fingerprint)
    _write(folder / "result.json", json.dumps(result | dict(seconds=seconds, curve=curve), indent=1))
    return Outcome(objective, metrics, folder)


@functools.lru_cache(maxsize=4)
def _corpus(data: DataConfig, context: int):
    from synaptune.data.corpus import load_corpus

    return load_corpus(data, context)


def flat(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as one level of `group.name` keys and plain values, for loggers and listings."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= walk(value, f"{prefix}.{key}" if prefix else str(key))
        return found

    return walk(OmegaConf.to_container(cfg, resolve=True), "")


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text + "\n")
    os.replace(draft, path)
