"""Configurations as one level of `group.name` keys and plain values, for fingerprints, loggers and listings."""

from __future__ import annotations

from collections.abc import Iterable
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
    for key in cfg:
        path = f"{prefix}{key}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from list_names(node, f"{path}.")
        else:
            yield path
