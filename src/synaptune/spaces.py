"""From a composed configuration to the space a search moves in and to what makes the trials of its study comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.plain import flat
from synaptune.search.optimizers import Engine
from synaptune.search.space import Dimension, Space, expand, of_spec, refuse_unused
from synaptune.storage import schema
from synaptune.storage.study import Study

# What may change between two commands of one study: it does not touch any result.
_RUN = ("training.resume", "training.checkpoint_every", "training.device")
_FREE = ("hydra", "study", "search_space", "workers", "trial", "stop", "notify", "logger", "name", *_RUN)


def declared_space(base: DictConfig) -> list[Dimension]:
    """The dimensions `search_space.parameters` names; raises UserError for an unknown one."""
    patterns = OmegaConf.select(base, "search_space.parameters")
    if not patterns:
        return []
    from synaptune.synapse.circuit import SPECS

    by_name = {spec.name: spec for spec in SPECS}
    steps = OmegaConf.select(base, "training.steps")
    return [of_spec(by_name[name], OmegaConf.select(base, name), steps) for name in expand(list(patterns), list(by_name))]


def declared(base: DictConfig, names: Sequence[str]) -> dict[str, Dimension]:
    """The declared dimensions among names, by name."""
    if not any(name.startswith("synapse.") for name in names):
        return {}
    from synaptune.synapse.circuit import SPECS

    steps = OmegaConf.select(base, "training.steps")
    return {spec.name: of_spec(spec, OmegaConf.select(base, spec.name), steps) for spec in SPECS if spec.name in names}


def check_base(base: DictConfig, names: Sequence[str]) -> None:
    """Refuse a configuration of ours that cannot run, and searched parameters that its model does not use; raises UserError."""
    if "synapse" not in base or "model" not in base:
        return
    from synaptune.build import check
    from synaptune.model.config import ModelConfig, unused_parameters

    model = OmegaConf.to_object(base.model)
    if isinstance(model, ModelConfig):
        check(base)
        refuse_unused(names, unused_parameters(model))


def configuration_of(base: DictConfig, space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that makes the trials of a study comparable, flat: the resolved configuration, the space, the search's settings."""
    plain = flat(base)
    free = (*_FREE, *space.names)
    kept = {key: value for key, value in plain.items() if not any(key == name or key.startswith(f"{name}.") for name in free)}
    kept |= {f"search.{key}": value for key, value in settings.items()}
    kept |= {f"search.space.{name}": text for name, text in space.describe().items()}
    return kept | {f"search.start.{name}": value for name, value in space.values(space.start()).items()}


def resumed_engine(study: Study, engine: Engine) -> Engine:
    """The engine a study began with: its sequence depends on the first workers, budget and seed, whatever they are now."""
    stored = study.note(schema.ENGINE)
    if stored is None:
        study.put_note(schema.ENGINE, asdict(engine))
        return engine
    return Engine(**stored)
