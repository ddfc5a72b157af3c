"""Configurations as a flat dict from `group.name` to plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.core.errors import user_error


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a configuration, interpolations resolved, by dotted name."""
    return _flatten(OmegaConf.to_container(cfg, resolve=True), "")


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
    node, known = base.get(name), {entry.name for entry in fields(kind)}
    is_known = isinstance(node, DictConfig) and known.issuperset(node)
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(kind), node if is_known else {})
        )
    except OmegaConfBaseException as error:
        got = f"{name}: {str(error).splitlines()[0]}"
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
