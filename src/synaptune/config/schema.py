"""What the configuration may hold: every typed dataclass, registered with Hydra, and the resolvers of conf/.

`register()` fills the ConfigStore: an entry `base` for each group, and for the synapse one group per subsystem with the
entry `default`, all of it derived from the dataclasses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import Container, DictConfig, OmegaConf

from synaptune.data.config import DataConfig
from synaptune.model.config import ModelConfig
from synaptune.search import config as search
from synaptune.search import stopping
from synaptune.search.objective.score import ObjectiveConfig
from synaptune.search.pruning import PrunerConfig
from synaptune.search.workers import config as execution
from synaptune.study.callbacks import notify
from synaptune.study.location import StudyConfig
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.config import LoggerConfig, TrainingConfig


def make_writable_node(cls: type) -> DictConfig:
    """A typed config node that accepts overrides (OmegaConf makes those of frozen dataclasses read-only)."""
    node = OmegaConf.structured(cls)
    _unlock(node)
    return node


def _unlock(node: Container) -> None:
    OmegaConf.set_readonly(node, None)
    for child in node._content.values() if isinstance(node, DictConfig) and isinstance(node._content, dict) else ():
        if isinstance(child, DictConfig):
            _unlock(child)


def register() -> None:
    """Register every schema and resolver; calling it again changes nothing."""
    store = ConfigStore.instance()
    groups = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig, "logger": LoggerConfig, "objective": ObjectiveConfig}
    groups |= {"pruner": PrunerConfig}
    for group, cls in groups.items():
        store.store(group=group, name="base", node=make_writable_node(cls))
    subsystems: list[Any] = []
    for field in dataclasses.fields(SynapseParams):
        store.store(group=f"synapse/{field.name}", name="default", node=make_writable_node(field.default_factory))  # type: ignore[arg-type]
        subsystems.append({field.name: "default"})
    store.store(group="synapse", name="default", node={"defaults": subsystems})
    OmegaConf.register_new_resolver("fraction_of_steps", _fraction_of_steps, replace=True)
    store.store(group="study", name="default", node=StudyConfig)
    search.register_search_schemas()
    execution.register_worker_schemas()
    stopping.register_stop_schema()
    notify.register_notify_schema()


def _fraction_of_steps(fraction: float, *, _root_: DictConfig) -> int:
    """`${fraction_of_steps:0.1}`: a tenth of training.steps, at least 1."""
    return max(1, round(float(fraction) * _root_.training.steps))
