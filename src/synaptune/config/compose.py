"""A configuration composed from conf/ and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from synaptune.config.conf import CONF_DIR
from synaptune.config.flat import select_value
from synaptune.core.errors import UserError, user_error
from synaptune.core.secrets import protect_passwords
from synaptune.core.text import get_override_key
from synaptune.search.objective.score import MAXIMIZED
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location

PROTOCOLS = ("phase1", "phase2", "ablation", "transfer", "dendritic", "focused")
_PERPLEXITY_PROTOCOLS = ("phase1", "phase2", "transfer")


class ComposedConfig(NamedTuple):
    """A configuration composed for a command.

    Attributes:
        base: the resolved configuration of a run.
        location: location of the study.
        fixed_names: names that the command line sets; a search does not vary them.
        protocol: the settings of the protocol; None for a command that is not a protocol.
    """

    base: DictConfig
    location: StudyLocation
    fixed_names: frozenset[str]
    protocol: DictConfig | None = None


def compose_config(
    overrides: Sequence[str], *, protocol: str | None = None, study: str | None = None
) -> ComposedConfig:
    """Compose conf/train.yaml with overrides, and with conf/protocol/<protocol>.yaml.

    Args:
        overrides: words of the command line.
        protocol: one of PROTOCOLS, whose settings the overrides `protocol.*` change.
        study: name of the study where the configuration gives none; None means the name of the
            search space.

    Raises:
        UserError: names every override that does not fit.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from synaptune.config.overrides import (
        check_overrides,
        expand_space_file,
        expand_tuned_groups,
        find_override_faults,
    )
    from synaptune.config.schema import register
    from synaptune.config.settings import apply_tuned

    register()
    _refuse_hydra_overrides(overrides)
    check_overrides(overrides)
    protect_passwords(overrides)
    chosen = [] if protocol is None else [f"+protocol={protocol}"]
    overrides = expand_space_file(expand_tuned_groups(overrides), CONF_DIR, "train", chosen)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            base = compose("train", overrides=[*chosen, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        faults = find_override_faults(overrides, CONF_DIR, "train", chosen)
        if faults:
            raise UserError("\n".join(map(str, faults))) from error
        raise user_error(
            got=str(error), expected="overrides of conf/train.yaml", do="correct them"
        ) from error
    OmegaConf.set_struct(base, False)
    settings = base.pop("protocol", None)
    if settings is not None and base.search.dry_run:
        settings.dry_run = True
    OmegaConf.set_struct(base, True)
    if base.tuned is not None:
        apply_tuned(base, overrides)
        base.tuned = None
    if protocol in _PERPLEXITY_PROTOCOLS and base.objective.name in MAXIMIZED:
        raise user_error(
            got=f"synaptune {protocol} with objective={base.objective.name}",
            expected="a language model, whose test perplexity the protocol is about",
            do="use synaptune dendritic or focused, or python train.py -m hydra/sweeper=...",
        )
    config = OmegaConf.to_object(base.study)
    assert isinstance(config, StudyConfig)
    name = study or select_value(base, "search_space.name") or config.name
    if name is None:
        raise user_error(
            got="search_space=base, which has no name",
            expected="a search space, or a name for the study",
            do="choose search_space=phase1 or another one, or add study.name=NAME",
        )
    location = resolve_location(config, name)
    fixed_names = frozenset(map(get_override_key, overrides))
    return ComposedConfig(base, location, fixed_names, settings)


def _refuse_hydra_overrides(overrides: Sequence[str]) -> None:
    words = [word for word in overrides if word.lstrip("+~").startswith("hydra")]
    if words:
        raise user_error(
            got=" ".join(words),
            expected="overrides of conf/train.yaml and conf/protocol",
            do="leave it out; protocol.budget sets the evaluations, protocol.optimizer the "
            "strategy",
        )
