"""Configurations as a flat dict from `group.name` to plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line

_UNRESOLVED = object()
_MIN_SECRET = 4  # characters; shorter values of the environment occur in other texts by chance


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a configuration, interpolations resolved, by dotted name."""
    return _flatten(OmegaConf.to_container(cfg, resolve=True), "")


def flatten_references(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a configuration as they are written: an interpolation is its text."""
    return _flatten(OmegaConf.to_container(cfg, resolve=False), "")


def resolve_references(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the resolved values of the entries that contain an interpolation.

    An interpolation that only a job can resolve is left out.

    Returns:
        By the dotted name of the entry: its values by dotted name, one unless it is a mapping.
    """
    return {
        name: _flatten(value, name)
        for name, written in flatten_references(cfg).items()
        if "${" in str(written)
        and (value := select_value(cfg, name, _UNRESOLVED)) is not _UNRESOLVED
    }


def flatten_without_secrets(cfg: DictConfig, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return the resolved values of a configuration, except those that stay as they are written.

    These are the values that come from the environment, also through other interpolations, since
    they may be secrets, and the interpolations that only a job can resolve.

    Args:
        cfg: the configuration.
        kept: further resolvers whose interpolations stay as they are written.
    """
    values, resolved = flatten_references(cfg), resolve_references(cfg)
    secrets = [
        str(value)
        for name in resolved
        if _uses_resolver(values[name], ["oc.env"])
        for value in resolved[name].values()
        if len(str(value)) >= _MIN_SECRET
    ]
    for name, entries in resolved.items():
        texts = list(map(str, entries.values()))
        is_secret = any(secret in text for secret in secrets for text in texts)
        if not is_secret and not _uses_resolver(values[name], ["oc.env", *kept]):
            del values[name]
            values |= entries
    return values


def _uses_resolver(written: Any, resolvers: Sequence[str]) -> bool:
    names = "|".join(map(re.escape, resolvers))
    return re.search(rf"\$\{{\s*({names})\s*:", str(written)) is not None


def select_value(cfg: DictConfig, name: str, default: Any = None) -> Any:
    """Return the plain value of a dotted name, or the default where it cannot be resolved.

    A name without a value gives None.
    """
    try:
        value = OmegaConf.select(cfg, name)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return default


def has_name(cfg: DictConfig, name: str) -> bool:
    """Return whether a configuration has a dotted name, whatever its value."""
    parent, _, key = name.rpartition(".")
    try:
        node = OmegaConf.select(cfg, parent) if parent else cfg
    except OmegaConfBaseException:
        return False
    if isinstance(node, ListConfig):
        return key.isdigit() and int(key) < len(node)
    return isinstance(node, DictConfig) and key in map(str, node)


def is_training_config(cfg: DictConfig) -> bool:
    """Return whether a configuration is one of train.py, not of another application."""
    from synaptune.model.config import ModelConfig

    return "synapse" in cfg and "model" in cfg and OmegaConf.get_type(cfg, "model") is ModelConfig


def get_typed_group(cfg: DictConfig, name: str, kind: type) -> DictConfig | None:
    """Return a group that has our schema; None where the application has none or its own."""
    is_typed = name in cfg and OmegaConf.get_type(cfg, name) is kind
    return cfg[name] if is_typed else None


def _flatten(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        name: value
        for key, child in node.items()
        for name, value in _flatten(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def list_names(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    """Return every dotted name of a configuration that holds a value."""
    groups = dict(list_children(cfg))
    for key in cfg:
        path = f"{prefix}{key}"
        if key in groups:
            yield from list_names(groups[key], f"{path}.")
        else:
            yield path


def read_group(base: DictConfig, name: str, kind: type) -> Any:
    """Return a group of the configuration as its dataclass.

    The result has the defaults if the application lacks the group, or if its group of this name has
    other keys than the dataclass.

    Raises:
        UserError: a value has the wrong type.
    """
    if name not in base:  # nor if its value is missing or known in a job alone
        return kind()
    known, node = {entry.name for entry in fields(kind)}, base[name]
    try:
        is_known = isinstance(node, DictConfig) and known.issuperset(node)
        # Resolved in its place: an interpolation may refer to other groups.
        values = OmegaConf.to_container(node, resolve=True) if is_known else {}
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        got = f"{name}: {get_first_line(error)}"
        raise user_error(
            got=got,
            expected=f"values of the right kinds for {', '.join(sorted(known))}",
            do="correct them",
        ) from error


def list_children(cfg: DictConfig) -> Iterator[tuple[Any, DictConfig]]:
    """Return the children of a configuration that are configurations, without interpolations."""
    key: Any
    for key in cfg:
        if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
            child = cfg[key]
            if isinstance(child, DictConfig):
                yield key, child
