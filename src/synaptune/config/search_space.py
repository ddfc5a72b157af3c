"""The search space of a composed configuration, and the configuration that identifies its study."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import (
    flatten_references,
    flatten_without_secrets,
    is_training_config,
    list_names,
    select_value,
)
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.parameters import Spec
from synaptune.search.config import SearchConfig, SearchSpaceConfig
from synaptune.search.space.file import parse_range_entry
from synaptune.search.space.space import (
    Dimension,
    Space,
    Value,
    expand_patterns,
    make_dimension,
)
from synaptune.study.database import keys

# Keys that may change between two commands of one study: they do not affect any result.
_FREE_TRAINING_KEYS = (
    "training.resume",
    "training.checkpoint_every",
    "training.keep",
    "training.device",
)
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
    "search.dry_run",
    *_FREE_TRAINING_KEYS,
)
# Settings of a search as a whole: no run depends on them, or its objective has another scale.
_SEARCH_KEYS = (
    *("study", "search_space", "search", "workers", "trial", "stop", "notify"),
    *("objective", "pruner", "name"),
)
_SPACE_FIELDS = {field.name for field in dataclasses.fields(SearchSpaceConfig)}
_JOB_RESOLVERS = ("hydra", "now")  # their values differ between the jobs of a study


def read_dimensions(base: DictConfig) -> list[Dimension]:
    """Return the dimensions that `search_space.parameters` and `search_space.ranges` name.

    A range of `search_space.ranges` replaces the declared one. A parameter at its neutral value,
    which switches it off, is left out.

    Raises:
        UserError: a name is unknown, or a range includes invalid values.
    """
    patterns = select_value(base, "search_space.parameters") if is_training_config(base) else []
    entries = _read_mapping(base, "ranges")
    if not patterns and not entries:
        return []
    from synaptune.synapse.circuit import SPECS

    by_name = {spec.name: spec for spec in SPECS}
    steps = select_value(base, "training.steps")
    names = (
        [
            name
            for name in expand_patterns(list(patterns), list(by_name))
            if not _is_switched_off(by_name[name], base)
        ]
        if patterns
        else []
    )
    declared = {
        name: make_dimension(by_name[name], select_value(base, name), steps)
        for name in dict.fromkeys([*names, *entries])
        if name in by_name
    }
    if not entries:
        return list(declared.values())
    known = [name for name in list_names(base) if not name.startswith("search_space.")]
    if unknown := [f"{name}{suggest(name, known)}" for name in entries if name not in known]:
        raise user_error(
            got=f"search_space.ranges {'; '.join(unknown)}",
            expected="names of the configuration",
            do="correct the names",
        )
    ranged = {
        name: parse_range_entry(name, entry, declared.get(name), select_value(base, name))
        for name, entry in entries.items()
    }
    if is_training_config(base):
        unused = _find_unused_settings(base)
        ranged = {name: dimension for name, dimension in ranged.items() if name not in unused}
    _check_ends(base, list(ranged.values()), declared)
    return list((declared | ranged).values())


def _find_unused_settings(base: DictConfig) -> set[str]:
    """Return the names of `network` on which the architecture does not depend."""
    from synaptune.model.network import NetworkConfig, list_used_settings

    network = OmegaConf.to_object(base.network)
    assert isinstance(network, NetworkConfig)
    used = list_used_settings(network, fit=base.budget.fit) | {"architecture"}
    return {f"network.{name}" for name in base.network if name not in used}


def _is_switched_off(spec: Spec, base: DictConfig) -> bool:
    """Return whether the configured value is the neutral one and lies outside of the range.

    `synapse/attention=off` sets such values.
    """
    value = OmegaConf.select(base, spec.name)
    return spec.neutral is not None and value == spec.neutral and not spec.low <= value <= spec.high


def read_fixed_values(base: DictConfig) -> dict[str, Value]:
    """Return the values that a space file fixes, by name."""
    return _read_mapping(base, "fixed")


def read_space_name(base: DictConfig) -> str | None:
    """Return the name of the search space, or None if it has none."""
    name = _read_space(base).get("name")
    return name if isinstance(name, str) and name != MISSING else None


def _read_space(base: DictConfig) -> dict[str, Any]:
    """Return `search_space`; an empty mapping if the application's group is another."""
    group = select_value(base, "search_space")
    is_ours = isinstance(group, dict) and _SPACE_FIELDS.issuperset(group)
    return group if is_ours else {}


def _read_mapping(base: DictConfig, key: str) -> dict[str, Any]:
    mapping = _read_space(base).get(key)
    entries = mapping.items() if isinstance(mapping, Mapping) else ()
    return {str(name): entry for name, entry in entries}


def _check_ends(
    base: DictConfig, dimensions: Sequence[Dimension], declared: Mapping[str, Dimension]
) -> None:
    """Refuse a range whose ends or choices are not valid values.

    Args:
        base: the resolved configuration.
        dimensions: the ranges to check.
        declared: the declared ranges by name.

    Raises:
        UserError: names the first invalid value.
    """
    from synaptune.config.settings import check_config

    changed = base.copy()
    is_ours = is_training_config(base)
    for dimension in dimensions:
        before = select_value(base, dimension.name)
        for value in dimension.choices or tuple(dimension.to_value(unit) for unit in (0.0, 1.0)):
            try:
                OmegaConf.update(changed, dimension.name, value)
                if is_ours:
                    check_config(changed)
            except (OmegaConfBaseException, UserError) as error:
                if isinstance(error, UserError):
                    check_config(base)  # a fault of the configuration itself is reported first
                line = 1 if isinstance(error, UserError) else 0
                reason = str(error).strip().splitlines()[line].strip()
                own = declared.get(dimension.name)
                raise user_error(
                    got=f"search_space.ranges {dimension.name}: {dimension.describe()}, "
                    f"where {value} is not valid: {reason}",
                    expected=f"declared {own.describe()}"
                    if own
                    else "values that the configuration takes",
                    do="correct the range",
                ) from error
        OmegaConf.update(changed, dimension.name, before)


def find_declared_dimensions(base: DictConfig, names: Iterable[str]) -> dict[str, Dimension]:
    """Return the declared dimensions of those names that are parameters, by name."""
    if not is_training_config(base):
        return {}
    from synaptune.synapse.circuit import SPECS

    steps = select_value(base, "training.steps")
    return {
        spec.name: make_dimension(spec, select_value(base, spec.name), steps)
        for spec in SPECS
        if spec.name in names
    }


def check_slices(base: DictConfig, search: SearchConfig) -> None:
    """Raise UserError if the runs of a configuration cannot be trained in the slices of `pbt`."""
    if not is_training_config(base):
        raise user_error(
            got="pbt in an application without our training",
            expected="train.py, whose runs continue from a checkpoint",
            do="choose another strategy",
        )
    steps, objective = select_value(base, "training.steps"), base.objective.name
    faults = []
    if base.pruner.name != "none":
        faults.append(f"pruner={base.pruner.name}: expected none, pbt replaces the worst itself")
    if search.seeds > 1:
        faults.append(f"search.seeds={search.seeds}: expected 1, a member has one set of weights")
    if objective in ("proxy", "hybrid", "policy"):
        faults.append(f"objective={objective}: expected one that a validation of a slice gives")
    if steps < search.slices:
        faults.append(f"training.steps={steps}: expected at least search.slices={search.slices}")
    if faults:
        raise UserError(
            "got a search by pbt that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values, or choose another strategy"
        )


def check_search(base: DictConfig, names: Sequence[str]) -> None:
    """Check that a search can run. A configuration of another application is not checked.

    Args:
        base: the configuration.
        names: names of the searched parameters.

    Raises:
        UserError: a name is a setting of the search itself, the configuration cannot run, or its
            model does not use a searched parameter.
    """
    if not is_training_config(base):
        return
    if settings := [name for name in names if re.split("[./@]", name)[0] in _SEARCH_KEYS]:
        raise user_error(
            got=f"a search over {', '.join(settings)}, which is a setting of the search itself",
            expected="one value of it, and a search over the values of a run",
            do="give it one value; start the command once for each value to compare",
        )
    from synaptune.config.settings import check_config

    check_config(base)
    refuse_unused(names, find_unused(base))


def find_unused(base: DictConfig) -> Mapping[str, str]:
    """Return, by name, why the configured model does not use a parameter."""
    from synaptune.model.config import ModelConfig, find_unused_parameters

    model = OmegaConf.to_object(base.model)
    assert isinstance(model, ModelConfig)
    return find_unused_parameters(model)


def list_study_defaults(base: DictConfig) -> dict[str, Any]:
    """Return the values of keys that the configuration of an older study may lack.

    They are the defaults of the schema; an application other than train.py has none.
    """
    from synaptune.config.schema import list_default_values

    return list_default_values() if is_training_config(base) else {}


def make_study_configuration(
    base: DictConfig, space: Space, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return, as a flat dict, everything on which the comparability of a study's trials depends.

    The values of train.py are resolved, except those from the environment or of a job. Those of
    another application are stored as they are written.

    Args:
        base: the configuration.
        space: the search space, whose names are left out of the configuration.
        settings: settings of the search by name.
    """
    if is_training_config(base):
        plain = flatten_without_secrets(base, _JOB_RESOLVERS)
    else:
        plain = flatten_references(base)
    free = (*_FREE_KEYS, *space.names)
    configuration = {
        key: value
        for key, value in plain.items()
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    }
    configuration |= {f"search.{key}": value for key, value in settings.items()}
    configuration |= {f"{keys.RANGE_PREFIX}{name}": text for name, text in space.describe().items()}
    configuration |= {
        f"{keys.FIXED_PREFIX}{name}": value for name, value in read_fixed_values(base).items()
    }
    return configuration | {
        f"{keys.START_PREFIX}{name}": value
        for name, value in space.to_values(space.get_start()).items()
    }


def refuse_unused(names: Iterable[str], unused: Mapping[str, str]) -> None:
    """Refuse searched parameters that have no effect in the configured model.

    Args:
        names: the searched parameters.
        unused: reason by name, for each parameter without effect.

    Raises:
        UserError: at least one of the names has no effect.
    """
    faults = [f"{name}: {unused[name]}" for name in names if name in unused]
    if faults:
        raise UserError(
            "got searched parameters that the configured model does not use\n  "
            + "\n  ".join(faults)
            + "\n  expected: parameters that can change the result"
            + "\n  to do: switch the mechanism on, "
            + "or remove the parameters from search_space.parameters"
        )
