"""What a study gives away: best.yaml, which `python train.py tuned=...` reads, and files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synaptune.search.loop import Trial


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
