"""Files around a study: the result.json of its runs, and best.yaml, which `python train.py tuned=...` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synaptune.search.trial import Trial


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text)
    os.replace(draft, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_best(path: Path, study: str, best: Trial) -> None:
    """Write a trial's parameters as best.yaml."""
    from omegaconf import OmegaConf

    head = f"# study {study}, trial {best.number}, objective {best.objective:.6g}; use: python train.py tuned={path}\n"
    write_text(path, head + OmegaConf.to_yaml(OmegaConf.create({"parameters": dict(best.values)})))


def described(folder: Path) -> dict[str, dict[str, Any]]:
    """metrics and facts of a run folder's result.json; empty where a task writes none. A pruned run has the fact `pruned_at`."""
    try:
        content = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return {}
    facts = {key: content[key] for key in ("data_fingerprint", "device", "pruned_at") if content.get(key) is not None}
    return {"metrics": content.get("metrics", {}), "facts": facts | {"run_fingerprint": content.get("config_fingerprint")}}
