"""A composed configuration read as typed values and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.conf import is_choice
from synaptune.config.flat import flatten_config, has_name
from synaptune.config.schema import find_unknown_keys
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.parameters import find_faults
from synaptune.core.text import get_first_line, get_override_key
from synaptune.data.config import CLASSES, IMAGE_SOURCES, SOURCES, DataConfig, find_data_faults
from synaptune.model.budget import BudgetConfig, check_budget, find_budget_faults
from synaptune.model.config import ModelConfig, find_model_faults, find_unused_parameters
from synaptune.model.network import (
    NetworkConfig,
    Shape,
    count_parameters,
    find_network_faults,
    find_shape_faults,
    fit_budget,
)
from synaptune.search.objective.learning_curve import LEAST_POINTS
from synaptune.search.objective.score import ObjectiveConfig, find_objective_faults
from synaptune.search.pruning import PrunerConfig, find_pruner_faults
from synaptune.search.space.values import Value
from synaptune.study.artifacts import read_best
from synaptune.synapse.circuit import SUBSYSTEMS, SynapseParams
from synaptune.synapse.learned import find_learn_faults
from synaptune.training.config import (
    LoggerConfig,
    PolicyConfig,
    TrainingConfig,
    find_policy_faults,
    find_training_faults,
)
from synaptune.training.schedules import get_evaluation_steps

# torch takes seeds below 2**64, and protocols add to the seed of the configuration.
_MAX_SEED = 2**63 - 1


class Settings(NamedTuple):
    """A configuration as typed values."""

    model: ModelConfig
    network: NetworkConfig
    budget: BudgetConfig
    synapse: SynapseParams
    data: DataConfig
    training: TrainingConfig
    policy: PolicyConfig
    logger: LoggerConfig
    objective: ObjectiveConfig
    pruner: PrunerConfig
    seed: int
    name: str


def read_settings(cfg: DictConfig) -> Settings:
    """Return the typed values of a composed configuration.

    Raises:
        UserError: names every fault at once.
    """
    if unknown := list(find_unknown_keys(cfg)):
        known = [name for name in flatten_config(cfg) if name not in unknown]
        raise user_error(
            got="; ".join(f"{name}: no such name{suggest(name, known)}" for name in unknown),
            expected="names of the configuration",
            do="correct the name; python train.py --cfg job lists all, --help the groups",
        )
    synapse = _read_synapse(cfg.synapse)
    groups: dict[str, Any] = {
        name: OmegaConf.to_object(cfg[name])
        for name in Settings._fields
        if name not in ("synapse", "seed", "name")
    }
    settings = Settings(**groups, synapse=synapse, seed=cfg.seed, name=cfg.name)
    faults = [
        *find_model_faults(settings.model),
        *find_network_faults(settings.network),
        *find_budget_faults(settings.budget),
        *find_policy_faults(settings.policy),
        *_find_kind_faults(settings),
        *find_faults(settings.synapse),
        *find_learn_faults(settings.synapse, find_unused_parameters(settings.model)),
        *find_data_faults(settings.data, settings.model.context),
        *find_training_faults(settings.training, settings.logger),
        *find_objective_faults(settings.objective),
        *find_pruner_faults(settings.pruner, settings.training.evaluations),
    ]
    faults += [] if faults else _find_proxy_faults(settings)
    if type(cfg.seed) is not int or not 0 <= cfg.seed <= _MAX_SEED:  # true is an int, too
        faults.append(f"seed={cfg.seed}: expected an integer from 0 to {_MAX_SEED}")
    if not isinstance(cfg.name, str | int | float):
        faults.append(f"name={cfg.name}: expected a text, which names the folder of the run")
    if faults:
        raise UserError(
            "got a configuration that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values and start again"
        )
    return settings


def _read_synapse(cfg: DictConfig) -> SynapseParams:
    values: Any = OmegaConf.to_object(cfg)
    for name in SUBSYSTEMS:
        if not dataclasses.is_dataclass(values[name]):
            raise user_error(
                got=f"synapse.{name}={values[name]}",
                expected=f"synapse/{name}=CHOICE or synapse.{name}.NAME=VALUE",
                do="write a choice with a slash; python train.py --help lists the choices",
            )
    learn = values.pop("learn", ())
    if not isinstance(learn, str | list):
        raise user_error(
            got=f"synapse.learn={learn}",
            expected="names of parameters, e.g. synapse.learn=[calcium.tau_c]",
            do="correct it; synapse.learn=[] learns none",
        )
    names = [learn] if isinstance(learn, str) else map(str, learn)
    return SynapseParams(**values, learn=tuple(names))


def _find_kind_faults(settings: Settings) -> list[str]:
    """Return a line if the data or the objective is not one of the model's kind."""
    faults, data, objective = [], settings.data, settings.objective.name
    if is_image_run(settings) != data.has_images:
        known = IMAGE_SOURCES if is_image_run(settings) else SOURCES
        faults.append(
            f"model.kind={settings.model.kind} with data.source={data.source}: "
            f"expected one of data={', '.join(known)}, or another model"
        )
    if is_image_run(settings) and objective not in ("accuracy", "val_loss"):
        faults.append(f"objective.name={objective}: expected accuracy or val_loss of an image run")
    if not is_image_run(settings) and objective == "accuracy":
        faults.append(f"objective.name={objective}: expected an objective of a language model")
    if is_policy_run(settings) and settings.policy.start is None:
        faults.append("policy.start: expected a checkpoint; add policy.start=FILE_OR_RUN_FOLDER")
    return faults


def is_policy_run(settings: Settings) -> bool:
    """Return whether a run trains a checkpoint by rewards."""
    return settings.objective.name == "policy"


def is_image_run(settings: Settings) -> bool:
    """Return whether a run trains an image network."""
    return settings.model.kind == "dendritic"


def size_network(settings: Settings, shape: Shape) -> NetworkConfig:
    """Return the image network of a run, at its largest size if `budget.fit` is set.

    Args:
        settings: settings of the run.
        shape: channels, height and width of an image.

    Raises:
        BudgetExceeded: the network has more parameters than the budget.
        UserError: the network does not fit the images.
    """
    network, budget = settings.network, settings.budget
    if faults := find_shape_faults(network, shape):
        raise user_error(
            got="; ".join(faults).replace(": expected", ", expected"),
            expected="a network that the images fit",
            do="correct these values",
        )
    if budget.fit and budget.max_params is not None:
        network = fit_budget(network, shape, CLASSES, budget.max_params)
    check_budget(count_parameters(network, shape, CLASSES), budget)
    return network


def list_metrics(settings: Settings) -> set[str]:
    """Return the names of the metrics that a run gives its objective."""
    if is_image_run(settings):
        return {"val_loss", "val_accuracy", "images_per_second"}
    if is_policy_run(settings):
        return {"val_loss", "val_reward", "reward_delta", "samples_per_second"}
    recall = {"val_recall_accuracy"} if settings.data.recall_fraction > 0 else set()
    experts = {"expert_gini", "expert_dead_fraction"} if settings.model.experts > 1 else set()
    return (
        {"val_loss", "val_perplexity", "val_calibration_error", "tokens_per_second"}
        | recall
        | experts
    )


def find_last_step(settings: Settings) -> int:
    """Return the last step of a run.

    A proxy stops at a fraction of the steps; its schedules are those of the full run.
    """
    fraction = settings.objective.fraction if settings.objective.name == "proxy" else 1.0
    return min(math.ceil(fraction * settings.training.steps), settings.training.end)


def _find_proxy_faults(settings: Settings) -> list[str]:
    """Return a line if a proxy has too few validations to extrapolate from."""
    points = sum(
        step <= find_last_step(settings) for step in get_evaluation_steps(settings.training)
    )
    if settings.objective.name != "proxy" or points >= LEAST_POINTS:
        return []
    evaluations = settings.training.evaluations
    return [
        f"objective.fraction={settings.objective.fraction:g}: {points} of "
        f"training.evaluations={evaluations} fall into it, "
        f"expected at least {LEAST_POINTS} to extrapolate from"
    ]


def check_config(cfg: DictConfig) -> None:
    """Raise UserError with every fault of a configuration, before any compute.

    A search calls it before its first trial. A missing file would otherwise fail each of them.
    """
    settings = read_settings(cfg)
    data, paths = settings.data, {}
    if is_policy_run(settings):
        paths["policy.start"] = str(settings.policy.start)
    if data.has_images and data.path is not None and not data.download:
        paths["data.path"] = data.path
    for name, path in paths.items():
        if not Path(path).expanduser().exists():
            raise user_error(
                got=f"{name}={path}, which does not exist",
                expected="a checkpoint, or the folder of its run"
                if name == "policy.start"
                else f"the folder of the images of {data.source}",
                do=f"correct {name}",
            )


def compute_fingerprint(settings: Settings) -> str:
    """Return the SHA-256 of everything that determines a run's result.

    Where the run is written and how often it is saved are not part of it.
    """
    plain = {
        group: dataclasses.asdict(getattr(settings, group))
        for group in ("model", "synapse", "data", "training")
    }
    for name in ("resume", "checkpoint_every", "keep", "test", "graphs"):
        del plain["training"][name]
    del plain["data"]["download"]
    if not settings.data.needle_lengths:
        del plain["data"]["needle_lengths"]
    if not settings.synapse.learn:
        del plain["synapse"]["learn"]
    for name, default in (("smear", False), ("balance_rate", 0.0), ("memory_heads", 1)):
        if plain["model"][name] == default:
            del plain["model"][name]
    if is_image_run(settings):
        plain["network"] = dataclasses.asdict(settings.network)
        plain["budget"] = dataclasses.asdict(settings.budget)
    else:  # the keys that a version adds leave the fingerprints of the runs before as they are
        del plain["model"]["kind"], plain["data"]["subset_size"]
        if settings.model.mixer == "attention":
            del plain["model"]["mixer"]
    if is_policy_run(settings):
        plain["policy"] = dataclasses.asdict(settings.policy)
        plain["objective"] = {"name": "policy"}
    training = plain["training"]
    del training["representation"]
    for name in ("start", "last_step"):
        if training[name] is None:
            del training[name]
    if settings.training.optimizer == "adamw":
        del training["optimizer"], training["biostatis"]
    if settings.training.schedule == "cosine":
        del training["schedule"]
    return hashlib.sha256(
        json.dumps(plain | {"seed": settings.seed}, sort_keys=True).encode()
    ).hexdigest()


def apply_tuned(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Set the values of the best.yaml that `cfg.tuned` names in the configuration.

    Args:
        cfg: the configuration, changed in place.
        overrides: overrides of the command line, which take precedence: one that gives a value, and
            one that chooses the variant of a subsystem (`synapse/calcium=slow`) for all values of
            the subsystem.

    Returns:
        The values that were set, by name.

    Raises:
        UserError: the file is missing, is no best.yaml, or has a name or a value that the
            configuration does not take.
    """
    path = Path(cfg.tuned)
    values = read_best(path)
    groups = [
        name
        for name, value in values.items()
        if not _takes(cfg, name, value) and is_choice(name, value)
    ]
    keys = {get_override_key(override) for override in overrides}
    if late := [name for name in groups if name not in keys]:
        raise user_error(
            got=f"tuned={path}, which chooses {', '.join(late)}, in a file of conf/",
            expected="tuned=FILE on the command line, where it can choose groups",
            do="move it there",
        )
    values = {name: value for name, value in values.items() if name not in groups}
    if unknown := [name for name, value in values.items() if not _takes(cfg, name, value)]:
        known = flatten_config(cfg)
        lines = "; ".join(f"{name}{suggest(name, known)}" for name in unknown)
        raise user_error(
            got=f"tuned={path} with unknown names: {lines}",
            expected="names of the configuration",
            do="correct the file",
        )
    variants = tuple(f"{key.replace('/', '.')}." for key in keys if key.startswith("synapse/"))
    used = {
        name: value
        for name, value in values.items()
        if name not in keys and not name.startswith(variants)
    }
    for name, value in used.items():
        try:
            OmegaConf.update(cfg, name, value, merge=False)
        except OmegaConfBaseException as error:
            reason = get_first_line(error)
            raise user_error(
                got=f"tuned={path} with {name}: {reason}",
                expected="values of their type",
                do="correct the file",
            ) from error
    return used


def _takes(cfg: DictConfig, name: str, value: Value) -> bool:
    """Return whether a configuration has a place for a value: a mapping only takes a mapping."""
    if not has_name(cfg, name):
        return False
    return isinstance(value, dict) or not isinstance(OmegaConf.select(cfg, name), DictConfig)
