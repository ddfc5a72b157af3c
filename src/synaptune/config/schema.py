"""The types and defaults of the configuration, and the resolvers of conf/.

`register()` stores one configuration named `schema`, which conf/train.yaml lists first. It holds
every key with its type and its default, so a file of conf/ holds only the values it changes, and
every choice of a group is a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from synaptune.config.flat import flatten_config, list_children
from synaptune.core.errors import UserError
from synaptune.data.config import DataConfig, find_data_faults
from synaptune.model.budget import BudgetConfig
from synaptune.model.config import ModelConfig
from synaptune.model.network import NetworkConfig
from synaptune.search.config import SearchConfig, SearchSpaceConfig
from synaptune.search.objective.score import ObjectiveConfig
from synaptune.search.pruning import PrunerConfig
from synaptune.search.stopping import StopConfig
from synaptune.search.workers.config import TrialConfig, WorkersConfig
from synaptune.study.callbacks.notify import NotifyConfig
from synaptune.study.location import StudyConfig
from synaptune.synapse.circuit import SUBSYSTEMS
from synaptune.training.config import LoggerConfig, PolicyConfig, TrainingConfig

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "network": NetworkConfig,
    "budget": BudgetConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "policy": PolicyConfig,
    "logger": LoggerConfig,
    "objective": ObjectiveConfig,
    "pruner": PrunerConfig,
    "search_space": SearchSpaceConfig,
    "search": SearchConfig,
    "study": StudyConfig,
    "workers": WorkersConfig,
    "trial": TrialConfig,
    "stop": StopConfig,
    "notify": NotifyConfig,
}
# The groups of conf/train.yaml.
CONFIG_GROUPS = (*GROUPS, "synapse", "position", "scale", "ablation", "experiment")
RUN_KEYS = ("name", "seed", "tuned")  # keys of conf/train.yaml itself

# The memory of version 0.1.0 had no gate tick and bound a token to itself.
NO_EARLIER_FORM = frozenset({"model.memory_tick"})


def make_writable_node(cls: type) -> DictConfig:
    """Return a typed config node that accepts overrides.

    OmegaConf makes the nodes of frozen dataclasses read-only.
    """
    node = OmegaConf.structured(cls)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for _, child in list_children(node):
        _unlock(child)


def list_default_values() -> dict[str, Any]:
    """Return the default of every key of the schema by dotted name.

    A key that a version adds has the default that stands for the behaviour before: then the studies
    of earlier versions, whose configuration lacks the key, continue. `NO_EARLIER_FORM` lists the
    keys that have no such default: a study without them ran another model and does not continue.
    """
    values = flatten_config(_make_schema())
    return {name: value for name, value in values.items() if name not in NO_EARLIER_FORM}


def _make_schema() -> DictConfig:
    groups = {group: make_writable_node(cls) for group, cls in GROUPS.items()}
    groups["synapse"] = OmegaConf.create(
        {name: make_writable_node(cls) for name, cls in SUBSYSTEMS.items()} | {"learn": []}
    )
    return OmegaConf.create(groups)


@functools.cache
def register() -> None:
    """Register the schema and the resolvers; calling it again changes nothing."""
    ConfigStore.instance().store(name="schema", node=_make_schema())
    OmegaConf.register_new_resolver("fraction_of_steps", _fraction_of_steps, replace=True)
    OmegaConf.register_new_resolver("steps_of_epochs", _steps_of_epochs, replace=True)


def find_unknown_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Return the dotted names in a configuration that the schema does not declare.

    Hydra lets `+NAME=VALUE` add any name.
    """
    kind = OmegaConf.get_type(cfg)
    declared = (
        {field.name for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else None
    )
    for key in cfg:
        if (declared is not None and key not in declared) or (
            not prefix and key not in (*GROUPS, "synapse", *RUN_KEYS)
        ):
            yield f"{prefix}{key}"
        elif (
            not OmegaConf.is_missing(cfg, key)
            and not OmegaConf.is_interpolation(cfg, key)  # type: ignore[arg-type]
            and isinstance(cfg[key], DictConfig)
        ):
            yield from find_unknown_keys(cfg[key], f"{prefix}{key}.")


def _steps_of_epochs(epochs: float, *, _root_: DictConfig) -> int:
    """Resolve `${steps_of_epochs:15}` to the optimizer steps of so many passes over the images.

    Without readable images it is the default of training.steps; the run then names the fault.
    """
    data = OmegaConf.to_object(_root_.data)
    assert isinstance(data, DataConfig)
    if data.has_images and not find_data_faults(data, 1):
        with contextlib.suppress(UserError):
            from synaptune.data.images import count_batches, load_images

            batch = max(1, int(_root_.training.batch) * int(_root_.training.accumulate))
            return max(1, round(float(epochs) * count_batches(load_images(data), batch)))
    return TrainingConfig().steps


def _fraction_of_steps(fraction: float, *, _root_: DictConfig) -> int:
    """Resolve `${fraction_of_steps:0.1}` to a tenth of training.steps, at least 1."""
    return max(1, round(float(fraction) * _root_.training.steps))
