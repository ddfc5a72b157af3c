"""The configuration of a run as its logs and files hold it: without secrets."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.config.flat import flatten_config
from synaptune.core.secrets import mask_passwords

_MIN_SECRET = 4  # characters; shorter values of the environment occur in other texts by chance


def make_record(cfg: DictConfig) -> dict[str, Any]:
    """Return the flat values of a configuration, interpolations resolved.

    A value that contains one of the environment is kept as it is written, passwords of URLs are
    masked, and `notify`, whose URLs are secrets whole, is left out.
    """
    written = OmegaConf.to_container(cfg, resolve=False)
    resolved = {
        name: value for name, value in flatten_config(cfg).items() if not name.startswith("notify.")
    }
    references = {name: _find_written(written, name) for name in resolved}
    secrets = [
        value
        for name, value in resolved.items()
        if "oc.env" in references[name] and len(str(value)) >= _MIN_SECRET
    ]
    return {
        name: references[name]
        if "${" in references[name] and any(str(secret) in str(value) for secret in secrets)
        else mask_passwords(value)
        for name, value in resolved.items()
    }


def _find_written(node: Any, name: str) -> str:
    """Return the text of a value before its resolution; "" if it is no text."""
    while isinstance(node, dict):
        key = next((key for key in node if name == str(key) or name.startswith(f"{key}.")), None)
        if key is None:
            return ""
        node, name = node[key], name[len(str(key)) + 1 :]
    return str(node)
