"""Overrides of the command line: check them, expand a space file, explain the faults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from synaptune.config.conf import is_choice
from synaptune.config.flat import list_names
from synaptune.config.schema import CONFIG_GROUPS, RUN_KEYS
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.text import get_first_line, get_override_key
from synaptune.search.space.file import find_unknown_names, get_space_file, read_space_file
from synaptune.study.artifacts import read_best

_SWEEPER_KEYS = tuple(
    f"hydra.sweeper.{key}" for key in ("optim", "params", "parametrization", "grid_points")
)

# What a field of a type takes, for messages.
_KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list such as [a,b]",
    tuple: "a list such as [a,b]",
    dict: "a mapping such as {a:1,b:2}",
    NoneType: "null",
}


def check_overrides(words: Sequence[str]) -> None:
    """Refuse overrides that Hydra itself would end with an error of little help.

    Raises:
        UserError: an override has no name, removes a key of every run, names a protocol, gives a
            group no choice, or sets a sweeper that is not chosen.
    """
    has_sweeper = any(get_override_key(word) == "hydra/sweeper" for word in words)
    for word in words:
        key, value = get_override_key(word), word.partition("=")[2]
        if not key and "=" in word:
            raise user_error(
                got=f"{word}, a value without a name",
                expected="NAME=VALUE",
                do="write the name before the =, without a space",
            )
        if word.startswith("~") and key in RUN_KEYS:
            raise user_error(
                got=f"{word}, which removes a key that every run has",
                expected=f"{key}=VALUE",
                do="leave it out for the value of conf/train.yaml",
            )
        if key == "hydra.run.dir" and value.lstrip("'\"").startswith("~"):
            raise user_error(
                got=f"{word}, where Hydra reads ~ as the name of a folder",
                expected="the path of the home folder",
                do="write $HOME for ~",
            )
        if key == "protocol":
            raise user_error(
                got=f"{word}, which is no choice of a run",
                expected="a protocol as a command of its own",
                do=f"synaptune {value or 'phase1'} [overrides]",
            )
        if key.startswith(_SWEEPER_KEYS) and not has_sweeper:
            raise user_error(
                got=f"{word} with the sweeper of Hydra, which has no such key",
                expected="a sweeper of this package",
                do="add hydra/sweeper=cma|pbt|random|grid|nevergrad|tpe|gp|cmaes|qmc",
            )
        is_group = key in CONFIG_GROUPS or "/" in key
        if is_group and re.fullmatch(r"[-+]?[\d.]+|true|false|\{.*", value):
            raise user_error(
                got=f"{word}, no choice of a group",
                expected=f"{key}=CHOICE, the name of a file of conf/{key}",
                do="choose one; python train.py --help lists them",
            )
        if value == "null" and is_group:
            raise user_error(
                got=f"{word}, no choice of a group",
                expected=f"{key}=CHOICE",
                do="leave it out for the default choice",
            )


def expand_space_file(
    words: Sequence[str], conf: Path, config_name: str, chosen: Sequence[str] = ()
) -> list[str]:
    """Replace `search_space=FILE.yaml` on a command line by the overrides that the file stands for.

    The format of the file is explained in search/space/file.py. Values of the command line take
    precedence over those that the file fixes.

    Args:
        words: words of the command line.
        conf: folder of the configuration.
        config_name: its primary file.
        chosen: overrides that the command itself adds.

    Raises:
        UserError: the file cannot be used.
    """
    files = {
        index: path
        for index, word in enumerate(words)
        if (path := get_space_file(word)) is not None
    }
    if not files:
        return list(words)
    if len(files) > 1:
        raise user_error(
            got=" ".join(words[index] for index in files),
            expected="one search_space",
            do="leave the others out",
        )
    ((index, path),) = files.items()
    file, rest = read_space_file(path), [*words[:index], *words[index + 1 :]]
    names = list_composed_names([*chosen, *rest], conf, config_name)
    if unknown := find_unknown_names(file, names):
        raise user_error(
            got=f"search_space={path} with unknown names: {'; '.join(unknown)}",
            expected="names of the configuration (python train.py --cfg job lists all)",
            do="correct the file",
        )
    fixed = [get_override_key(word) for word in rest]
    return [*words[:index], *file.to_overrides(fixed), *words[index + 1 :]]


def expand_tuned_groups(words: Sequence[str]) -> list[str]:
    """Add the groups that the best.yaml of `tuned=FILE` chooses, which only Hydra can apply.

    Choices of the command line take precedence.

    Raises:
        UserError: the file is not a best.yaml.
    """
    files = [word.partition("=")[2] for word in words if get_override_key(word) == "tuned"]
    path = files[-1].strip("'\"") if files else "null"
    if path == "null" or any(letter in path for letter in ",$("):
        return list(words)
    given = {get_override_key(word) for word in words}
    values = read_best(Path(path)).items()
    chosen = [
        f"{name}={value}" for name, value in values if name not in given and is_choice(name, value)
    ]
    return [*words, *chosen]


def list_composed_names(words: Sequence[str], conf: Path, config_name: str) -> list[str]:
    """Return the names of the configuration composed with the overrides of a command line.

    If the overrides have a fault, the names are those of the configuration without them.
    """
    parser = OverridesParser.create()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            overrides = [
                word
                for word in words
                if ("=" in word or word.startswith("~")) and not word.startswith(("-", "hydra"))
            ]
            fixed = [
                word for word in overrides if not parser.parse_override(word).is_sweep_override()
            ]
            return list(list_names(compose(config_name, overrides=fixed)))
        except (HydraException, OmegaConfBaseException):  # Hydra reports the fault later
            return list(list_names(compose(config_name)))


def find_override_faults(
    overrides: Sequence[str], conf: Path, config_name: str, chosen: Sequence[str] = ()
) -> list[UserError]:
    """Return an error, with near names, for every override that does not fit the configuration.

    Args:
        overrides: words of the command line, each tried alone.
        conf: folder of the configuration.
        config_name: its primary file.
        chosen: overrides that the command itself adds.
    """
    with initialize_config_dir(str(conf), version_base="1.3"):
        names = list(list_names(compose(config_name, overrides=list(chosen))))
        groups = _list_groups()
        faults = _find_hydra_faults(
            [override for override in overrides if _is_of_hydra(override)], config_name
        )
        for override in overrides:
            if _is_of_hydra(override):
                continue
            try:
                parsed = OverridesParser.create().parse_override(override)
                if not parsed.is_sweep_override():
                    compose(config_name, overrides=[*chosen, override])
            except (HydraException, OmegaConfBaseException) as error:
                faults.append(_explain_override(override, error, names, groups))
    return faults


def _is_of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith("hydra")


def _find_hydra_faults(overrides: Sequence[str], config_name: str) -> list[UserError]:
    """Return an error for every override of Hydra's own configuration that does not fit.

    The values are checked only if all choices are good: they depend on the choices.
    """
    loader, faults = GlobalHydra.instance().config_loader(), []
    choices = [override for override in overrides if override.startswith("hydra/")]
    for choice in choices:
        group, _, option = choice.partition("=")
        options = loader.get_group_options(group)
        if option not in options:
            expected = (
                f"{group}={'|'.join(options)}"
                if options
                else "hydra/sweeper=cma|random|grid|..., or hydra/launcher=..."
            )
            faults.append(user_error(got=choice, expected=expected, do="choose one of them"))
    if faults:
        return faults
    names = list(
        list_names(
            compose(config_name, overrides=choices, return_hydra_config=True).hydra, "hydra."
        )
    )
    for override in set(overrides).difference(choices):
        try:
            compose(config_name, overrides=[*choices, override])
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(_explain_override(override, error, names, {}))
    return faults


def _list_groups() -> dict[str, list[str]]:
    """Return the options by group of the current composition."""
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.object_type import ObjectType

    # one repository for all groups: the loader makes a new one for each question, in 25 ms
    repository = ConfigRepository(GlobalHydra.instance().config_loader().get_search_path())
    options_by_group: dict[str, list[str]] = {}

    def walk(group: str) -> None:
        options = repository.get_group_options(group, ObjectType.CONFIG)
        if group and options:
            options_by_group[group] = options
        for child in repository.get_group_options(group, ObjectType.GROUP):
            if child != "hydra":
                walk(f"{group}/{child}" if group else child)

    walk("")
    return options_by_group


def _describe_kind(error: Exception) -> str:
    """Return what a name takes whose value was refused, by the type of its field."""
    owner, field = getattr(error, "object_type", None), getattr(error, "key", None)
    hint = get_type_hints(owner).get(str(field)) if is_dataclass(owner) else None
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return " or ".join(
        _KINDS.get(get_origin(kind) or kind, "a value of the right kind") for kind in kinds
    )


def _explain_override(
    override: str, error: Exception, names: Iterable[str], groups: dict[str, list[str]]
) -> UserError:
    key, value = get_override_key(override), override.partition("=")[2]
    if key in groups:
        chosen = [name.strip() for name in value.strip("[]").split(",")]
        wrong = next((name for name in chosen if name not in groups[key]), None)
        do = (
            "write it without +"
            if wrong is None
            else "choose one of them" + suggest(wrong, groups[key])
        )
        return user_error(got=override, expected=f"{key}={'|'.join(groups[key])}", do=do)
    known = [*names, *groups]
    of_hydra = key.startswith("hydra")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    missing = getattr(cause, "full_key", None) or key  # an entry of a mapping has its own name
    if get_origin(getattr(cause, "ref_type", None)) is dict and isinstance(
        cause, ConfigKeyError | ConfigAttributeError
    ):
        return user_error(
            got=f"{override}, a new entry of a mapping",
            expected="a + before the name of a new entry",
            do=f"+{override}",
        )
    if key not in known and not isinstance(cause, ValidationError | ConfigTypeError):
        listing = "--cfg hydra with the same hydra/sweeper=" if of_hydra else "--cfg job"
        return user_error(
            got=f"{override}: no such name" + ("" if missing == key else f" as {missing}"),
            expected=f"a name of the configuration{suggest(missing, known)}",
            do=f"correct the name; python train.py {listing} lists all",
        )
    if type(error) in (HydraException, OverrideParseException):  # of the parser, not a subclass
        return user_error(
            got=f"{override}: {get_first_line(cause)}",
            expected="a value in the syntax of Hydra",
            do=f"quote it: '{key}=\"VALUE\"'",
        )
    if override.startswith("~"):
        return user_error(
            got=f"{override}, which removes a key that every run has",
            expected=f"{key}=VALUE",
            do="leave it out for the default value",
        )
    return user_error(
        got=f"{override}: {get_first_line(cause)}",
        expected=_describe_kind(cause),
        do="correct it; python train.py --cfg "
        + ("hydra" if of_hydra else f"job --package {key.split('.')[0]}")
        + " shows the kinds",
    )
