"""Configurations as one level of `group.name` keys and plain values, for fingerprints, loggers and listings."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def flat(cfg: DictConfig) -> dict[str, Any]:
    """A resolved configuration by dotted name."""
    return _flat(OmegaConf.to_container(cfg, resolve=True), "")


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {name: value for key, child in node.items() for name, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()}
