"""A configuration composed from conf/ and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

import synaptune
from synaptune.core.errors import UserError, user_error
from synaptune.core.text import get_override_key
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location


def find_conf() -> Path:
    """conf/ of the installed package, or of the checkout that the package lies in."""
    folders = (parent / "conf" for parent in Path(synaptune.__file__).parents)
    return next(folder for folder in folders if (folder / "train.yaml").is_file())


CONF_DIR = find_conf()


class ComposedConfig(NamedTuple):
    """base: the resolved configuration; place: of its study; given: names that the command line fixes."""

    base: DictConfig
    location: StudyLocation
    fixed_names: frozenset[str]


def compose_config(
    overrides: Sequence[str], study: str | None, default: str | None = None
) -> ComposedConfig:
    """The configuration of overrides; raises UserError for every one that does not fit.

    study: its name, null is that of `study.name`, else the default (null: the search space's).
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from synaptune.config.overrides import check_overrides, expand_space_file, find_override_faults
    from synaptune.config.schema import register
    from synaptune.config.settings import apply_tuned

    register()
    check_overrides(overrides)
    overrides = expand_space_file(overrides, CONF_DIR, "train")
    if of_hydra := [
        override for override in overrides if get_override_key(override).startswith("hydra")
    ]:
        raise user_error(
            got=" ".join(of_hydra),
            expected="overrides of conf/train.yaml: the protocol brings its own optimizer",
            do="leave it out; --budget sets the evaluations",
        )
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            base = compose("train", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        found = find_override_faults(overrides, CONF_DIR, "train")
        if found:
            raise UserError("\n".join(map(str, found))) from error
        raise user_error(
            got=str(error), expected="overrides of conf/train.yaml", do="correct them"
        ) from error
    if base.tuned is not None:
        apply_tuned(base, overrides)
        base.tuned = None
    config = OmegaConf.to_object(base.study)
    assert isinstance(config, StudyConfig)
    config.name = study or config.name or default
    given = frozenset(get_override_key(override) for override in overrides)
    return ComposedConfig(base, resolve_location(config, str(base.search_space.name)), given)
