"""Configurations as one level of `group.name` keys and plain values, for fingerprints, loggers and listings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf


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


def list_children(cfg: DictConfig) -> Iterator[tuple[Any, DictConfig]]:
    """Return the keys of a configuration that hold a configuration, with it; no interpolations."""
    key: Any
    for key in cfg:
        if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
            child = cfg[key]
            if isinstance(child, DictConfig):
                yield key, child
