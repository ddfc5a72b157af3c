"""A composed configuration to a finished run: the only reader of a DictConfig besides train.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import flatten_config
from synaptune.config.schema import find_unknown_keys
from synaptune.core.errors import UserError, find_nearest, user_error
from synaptune.core.parameters import find_faults
from synaptune.core.text import get_first_line, get_override_key
from synaptune.data.config import DataConfig, find_data_faults
from synaptune.model.config import ModelConfig, find_model_faults
from synaptune.search.objective.learning_curve import LEAST_POINTS
from synaptune.search.objective.score import ObjectiveConfig, find_objective_faults
from synaptune.search.pruning import PrunerConfig, find_pruner_faults
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.config import LoggerConfig, TrainingConfig, find_training_faults
from synaptune.training.schedules import get_evaluation_steps


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


def read_settings(cfg: DictConfig) -> Settings:
    """The typed values of a composed configuration; raises UserError with every fault at once."""
    if unknown := list(find_unknown_keys(cfg)):
        known = [name for name in flatten_config(cfg) if name not in unknown]
        raise user_error(
            got="; ".join(
                f"{name}: no such name (closest: {find_nearest(name, known)})" for name in unknown
            ),
            expected="names of the configuration",
            do="correct the name; python train.py --cfg job lists all, --help the groups",
        )
    groups = ("model", "data", "training", "logger", "objective", "pruner")
    model, data, training, logger, objective, pruner = (
        OmegaConf.to_object(cfg[group]) for group in groups
    )
    synapse = SynapseParams(**OmegaConf.to_object(cfg.synapse))  # type: ignore[arg-type]
    built = Settings(model, synapse, data, training, logger, objective, pruner, cfg.seed, cfg.name)  # type: ignore[arg-type]
    found = (
        find_model_faults(built.model)
        + find_faults(built.synapse)
        + find_data_faults(built.data, built.model.context)
    )
    found += find_training_faults(built.training, built.logger) + find_objective_faults(
        built.objective
    )
    found += find_pruner_faults(built.pruner, built.training.evaluations)
    found += _find_proxy_faults(built) if not found else []
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        found.append(f"seed={cfg.seed}: expected an integer of at least 0")
    if found:
        raise UserError(
            "got a configuration that cannot run\n  "
            + "\n  ".join(found)
            + "\n  to do: correct these values and start again"
        )
    return built


def _list_metrics(built: Settings) -> set[str]:
    """Names of the metrics that an objective may find in a run."""
    recall = {"val_recall_accuracy"} if built.data.recall_fraction > 0 else set()
    experts = {"expert_gini", "expert_dead_fraction"} if built.model.experts > 1 else set()
    return (
        {"val_loss", "val_perplexity", "val_calibration_error", "tokens_per_second"}
        | recall
        | experts
    )


def _find_last_step(built: Settings) -> int:
    """The step that a run is trained to: a proxy stops on its way, on the schedule of the whole run."""
    part = built.objective.fraction if built.objective.name == "proxy" else 1.0
    return math.ceil(part * built.training.steps)


def _find_proxy_faults(built: Settings) -> list[str]:
    """One line when a proxy has too few validations to extrapolate from; empty when all is well."""
    points = sum(step <= _find_last_step(built) for step in get_evaluation_steps(built.training))
    if built.objective.name != "proxy" or points >= LEAST_POINTS:
        return []
    return [
        f"objective.fraction={built.objective.fraction:g}: {points} of training.evaluations={built.training.evaluations} fall into it,"
        f" expected at least {LEAST_POINTS} to extrapolate from"
    ]


def check_config(cfg: DictConfig) -> None:
    """Raise UserError with every fault of a configuration, before any compute."""
    read_settings(cfg)


def compute_fingerprint(built: Settings) -> str:
    """SHA-256 of everything that determines a run's result: not where it is written, nor how often it is saved."""
    plain = {
        group: dataclasses.asdict(getattr(built, group))
        for group in ("model", "synapse", "data", "training")
    }
    for name in ("resume", "checkpoint_every", "test"):
        del plain["training"][name]
    return hashlib.sha256(
        json.dumps(plain | {"seed": built.seed}, sort_keys=True).encode()
    ).hexdigest()


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
        raise user_error(
            got=f"tuned={path}: {error.strerror}",
            expected="the best.yaml of a study",
            do="check the path",
        ) from error
    except (
        yaml.YAMLError,
        OmegaConfBaseException,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # no best.yaml
        raise user_error(
            got=f"tuned={path}, not a best.yaml",
            expected="`parameters: {name: value, ...}`",
            do="give the best.yaml of a study",
        ) from error
    known = flatten_config(cfg)
    if unknown := [name for name in values if name not in known]:
        lines = "; ".join(f"{name} (closest: {find_nearest(name, known)})" for name in unknown)
        raise user_error(
            got=f"tuned={path} with unknown names: {lines}",
            expected="names of the configuration",
            do="correct the file",
        )
    given = {get_override_key(override) for override in overrides}
    chosen = tuple(f"{key.replace('/', '.')}." for key in given if key.startswith("synapse/"))
    used = {
        name: value
        for name, value in values.items()
        if name not in given and not name.startswith(chosen)
    }
    for name, value in used.items():
        try:
            OmegaConf.update(cfg, name, value)
        except OmegaConfBaseException as error:
            reason = get_first_line(error)
            raise user_error(
                got=f"tuned={path} with {name}: {reason}",
                expected="values of their type",
                do="correct the file",
            ) from error
    return used
