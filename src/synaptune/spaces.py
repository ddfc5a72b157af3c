"""From a composed configuration to the space a search moves in and to what makes the trials of its study comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.errors import UserError, mistake
from synaptune.hints import nearest
from synaptune.plain import flat
from synaptune.search.optimizers import Engine
from synaptune.search.space import Dimension, Space, expand, of_spec, refuse_unused
from synaptune.search.space_file import dimension_of_entry
from synaptune.storage import schema
from synaptune.storage.study import Study

# What may change between two commands of one study: it does not touch any result.
_RUN = ("training.resume", "training.checkpoint_every", "training.device")
_FREE = ("hydra", "study", "search_space", "workers", "trial", "stop", "notify", "logger", "name", *_RUN)


def declared_space(base: DictConfig) -> list[Dimension]:
    """The dimensions that `search_space.parameters` and `search_space.ranges` name; a range given there takes the place of the
    declared one. Raises UserError for an unknown name, and for a range that reaches where the parameter is not valid."""
    patterns = OmegaConf.select(base, "search_space.parameters") or []
    given = _plain_ranges(base)
    if not patterns and not given:
        return []
    from synaptune.synapse.circuit import SPECS

    by_name = {spec.name: spec for spec in SPECS}
    steps = OmegaConf.select(base, "training.steps")
    names = expand(list(patterns), list(by_name)) if patterns else []
    own = {name: of_spec(by_name[name], OmegaConf.select(base, name), steps) for name in dict.fromkeys([*names, *given]) if name in by_name}
    ranged = {name: _ranged(base, name, entry, own.get(name)) for name, entry in given.items()}
    return list((own | ranged).values())


def _plain_ranges(base: DictConfig) -> dict[str, Any]:
    node = OmegaConf.select(base, "search_space.ranges")
    found = OmegaConf.to_container(node, resolve=True) if node else {}
    assert isinstance(found, dict)
    return {str(name): entry for name, entry in found.items()}


def _ranged(base: DictConfig, name: str, entry: Any, own: Dimension | None) -> Dimension:
    """The dimension of an entry of `search_space.ranges`, whose ends (or choices) the configuration takes."""
    from synaptune.entry import names_of

    known = [known for known in names_of(base) if not known.startswith("search_space.")]
    if name not in known:
        raise mistake(
            got=f"search_space.ranges {name}",
            expected=f"a name of the configuration (closest: {nearest(name, known)})",
            do="correct the name",
        )
    dimension = dimension_of_entry(name, entry, own, OmegaConf.select(base, name))
    ends = dimension.choices or tuple(dimension.value(unit) for unit in (0.0, 1.0))
    for value in ends:
        if fault := _end_fault(base, name, value):
            raise mistake(
                got=f"search_space.ranges {name}: {dimension.describe()}, where {value} is not valid: {fault}",
                expected="declared " + own.describe() if own else "values that the configuration takes",
                do="correct the range",
            )
    return dimension


def _end_fault(base: DictConfig, name: str, value: Any) -> str | None:
    """Why a configuration with this value cannot run; null when it can, or could not before."""
    from synaptune.build import check

    changed = base.copy()
    try:
        OmegaConf.update(changed, name, value)
    except OmegaConfBaseException as error:
        return str(error).strip().splitlines()[0]
    if "synapse" not in base or "model" not in base:
        return None
    for cfg, at_fault in ((base, False), (changed, True)):
        try:
            check(cfg)
        except UserError as error:
            return str(error).splitlines()[1].strip() if at_fault else None
    return None


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
