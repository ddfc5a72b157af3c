"""Configurations as one level of `group.name` keys and plain values, for fingerprints, loggers and listings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.core.errors import user_error


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """A resolved configuration by dotted name."""
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
    """Every dotted name of a configuration that holds a value."""
    groups = dict(list_children(cfg))
    for key in cfg:
        path = f"{prefix}{key}"
        if key in groups:
            yield from list_names(groups[key], f"{path}.")
        else:
            yield path


def read_group(base: DictConfig, name: str, kind: type) -> Any:
    """Return a group of the configuration as its dataclass.

    An application may leave the group out, or mean something of its own by the name: both give the
    defaults.
    """
    node, known = base.get(name), {entry.name for entry in fields(kind)}
    ours = isinstance(node, DictConfig) and known.issuperset(node)
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(kind), node if ours else {})
        )
    except OmegaConfBaseException as error:
        got = f"{name}: {str(error).splitlines()[0]}"
        raise user_error(
            got=got,
            expected=f"values of the right kinds for {', '.join(sorted(known))}",
            do="correct them",
        ) from error


def list_children(cfg: DictConfig) -> Iterator[tuple[Any, DictConfig]]:
    """Return the keys of a configuration that hold a configuration, with it; no interpolations."""
    key: Any
    for key in cfg:
        if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
            child = cfg[key]
            if isinstance(child, DictConfig):
                yield key, child
