"""From a composed configuration to the space a search moves in and to what makes the trials of its study comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import flatten_config
from synaptune.core.errors import UserError, find_nearest, user_error
from synaptune.core.parameters import Spec
from synaptune.search.space.file import parse_range_entry
from synaptune.search.space.space import (
    Dimension,
    Space,
    Value,
    expand_patterns,
    make_dimension,
    refuse_unused,
)
from synaptune.study.database import keys as schema

# What may change between two commands of one study: it does not touch any result.
_FREE_TRAINING_KEYS = ("training.resume", "training.checkpoint_every", "training.device")
_FREE_KEYS = (
    "hydra",
    "study",
    "search_space",
    "workers",
    "trial",
    "stop",
    "notify",
    "logger",
    "name",
    *_FREE_TRAINING_KEYS,
)


def read_dimensions(base: DictConfig) -> list[Dimension]:
    """The dimensions that `search_space.parameters` and `search_space.ranges` name; a range given there takes the place of the
    declared one. A parameter at its neutral value, which switches it off, is not searched. Raises UserError for an unknown name, and
    for a range that reaches where the parameter is not valid."""
    patterns = OmegaConf.select(base, "search_space.parameters") or []
    given = _read_mapping(base, "search_space.ranges")
    if not patterns and not given:
        return []
    from synaptune.config.flat import list_names
    from synaptune.synapse.circuit import SPECS

    by_name = {spec.name: spec for spec in SPECS}
    steps = OmegaConf.select(base, "training.steps")
    names = (
        [
            name
            for name in expand_patterns(list(patterns), list(by_name))
            if not _is_switched_off(by_name[name], base)
        ]
        if patterns
        else []
    )
    own = {
        name: make_dimension(by_name[name], OmegaConf.select(base, name), steps)
        for name in dict.fromkeys([*names, *given])
        if name in by_name
    }
    if not given:
        return list(own.values())
    known = [name for name in list_names(base) if not name.startswith("search_space.")]
    if unknown := [
        f"{name} (closest: {find_nearest(name, known)})" for name in given if name not in known
    ]:
        raise user_error(
            got=f"search_space.ranges {'; '.join(unknown)}",
            expected="names of the configuration",
            do="correct the names",
        )
    ranged = {
        name: parse_range_entry(name, entry, own.get(name), OmegaConf.select(base, name))
        for name, entry in given.items()
    }
    _check_ends(base, list(ranged.values()), own)
    return list((own | ranged).values())


def _is_switched_off(spec: Spec, base: DictConfig) -> bool:
    """Whether the configured value is the neutral one, outside of the range: `synapse/attention=off` is one such choice."""
    value = OmegaConf.select(base, spec.name)
    return spec.neutral is not None and value == spec.neutral and not spec.low <= value <= spec.high


def read_fixed_values(base: DictConfig) -> dict[str, Value]:
    """What the space file of a configuration holds at one value, by name."""
    return _read_mapping(base, "search_space.fixed")


def _read_mapping(base: DictConfig, key: str) -> dict[str, Any]:
    node = OmegaConf.select(base, key)
    found = OmegaConf.to_container(node, resolve=True) if node else {}
    assert isinstance(found, dict)
    return {str(name): entry for name, entry in found.items()}


def _check_ends(
    base: DictConfig, dimensions: Sequence[Dimension], own: Mapping[str, Dimension]
) -> None:
    """Raise UserError for a range whose ends (or choices) the configuration does not take; own: the declared ranges by name."""
    from synaptune.config.settings import check_config

    changed = base.copy()
    checked = "synapse" in base and "model" in base
    for dimension in dimensions:
        before = OmegaConf.select(base, dimension.name)
        for value in dimension.choices or tuple(dimension.to_value(unit) for unit in (0.0, 1.0)):
            try:
                OmegaConf.update(changed, dimension.name, value)
                if checked:
                    check_config(changed)
            except (OmegaConfBaseException, UserError) as error:
                if isinstance(error, UserError):
                    check_config(base)  # its own fault is said first
                place = 1 if isinstance(error, UserError) else 0
                declared = own.get(dimension.name)
                raise user_error(
                    got=f"search_space.ranges {dimension.name}: {dimension.describe()}, where {value} is not valid: "
                    + str(error).strip().splitlines()[place].strip(),
                    expected="declared " + declared.describe()
                    if declared
                    else "values that the configuration takes",
                    do="correct the range",
                ) from error
        OmegaConf.update(changed, dimension.name, before)


def find_declared_dimensions(base: DictConfig, names: Sequence[str]) -> dict[str, Dimension]:
    """The declared dimensions among names, by name."""
    if not any(name.startswith("synapse.") for name in names):
        return {}
    from synaptune.synapse.circuit import SPECS

    steps = OmegaConf.select(base, "training.steps")
    return {
        spec.name: make_dimension(spec, OmegaConf.select(base, spec.name), steps)
        for spec in SPECS
        if spec.name in names
    }


def check_search(base: DictConfig, names: Sequence[str]) -> None:
    """Refuse a configuration of ours that cannot run, and searched parameters that its model does not use; raises UserError."""
    if "synapse" not in base or "model" not in base:
        return
    from synaptune.config.settings import check_config
    from synaptune.model.config import ModelConfig, find_unused_parameters

    model = OmegaConf.to_object(base.model)
    if isinstance(model, ModelConfig):
        check_config(base)
        refuse_unused(names, find_unused_parameters(model))


def list_study_defaults(base: DictConfig) -> dict[str, Any]:
    """Return the values that keys of a study's configuration have where an earlier version lacked them.

    They are the defaults of the schema; another application than train.py has none.
    """
    from synaptune.config.schema import list_default_values

    return list_default_values() if "synapse" in base and "model" in base else {}


def make_study_configuration(
    base: DictConfig, space: Space, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that makes the trials of a study comparable, flat: the resolved configuration, the space, the search's settings."""
    plain = flatten_config(base)
    free = (*_FREE_KEYS, *space.names)
    kept = {
        key: value
        for key, value in plain.items()
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    }
    kept |= {f"search.{key}": value for key, value in settings.items()}
    kept |= {f"{schema.RANGE_PREFIX}{name}": text for name, text in space.describe().items()}
    kept |= {
        f"{schema.FIXED_PREFIX}{name}": value for name, value in read_fixed_values(base).items()
    }
    return kept | {
        f"{schema.START_PREFIX}{name}": value
        for name, value in space.to_values(space.get_start()).items()
    }
