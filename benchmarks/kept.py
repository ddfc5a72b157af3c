"""Training runs of a benchmark: made in this process, each once, and kept as a file by the fingerprint of its configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ladder import composed

from synaptune.config.run import run
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import compute_fingerprint, read_settings
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space
from synaptune.study.artifacts import write_json
from synaptune.study.provenance import get_code_version
from synaptune.training.errors import DivergedError

QUIET = ("logger=csv", "logger.progress=off", "training.checkpoint_every=0")


class Kept(NamedTuple):
    """A finished run: curve of [step, validation loss], null when it diverged."""

    curve: list[list[float]] | None
    steps: int

    @property
    def loss(self) -> float:
        """Validation loss at the end [nats/token]."""
        assert self.curve is not None
        return self.curve[-1][1]


def candidates(common: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Overrides of random points of the search space."""
    space = Space(tuple(read_dimensions(composed(common))))
    stream = make_optimizer(Engine("random", seed), space)
    units = [unit for unit in (stream.ask() for _ in range(count)) if unit is not None]
    return [
        tuple(f"{name}={value}" for name, value in space.to_values(unit).items()) for unit in units
    ]


def kept_run(folder: Path, overrides: Sequence[str], label: str) -> Kept:
    """The run of some overrides, made unless `folder` has it. Raises UserError for a bad configuration."""
    cfg = composed([*QUIET, *overrides])
    built = read_settings(cfg)
    path = folder / f"{compute_fingerprint(built)}.json"
    if path.exists():
        return Kept(json.loads(path.read_text())["curve"], built.training.steps)
    about: dict[str, Any] = {
        "label": label,
        "overrides": list(overrides),
        "code_version": get_code_version(),
        "curve": None,
    }
    with tempfile.TemporaryDirectory() as place:
        try:
            metrics = run(cfg, Path(place), overrides=[]).metrics
            about |= {
                "metrics": metrics,
                "curve": json.loads((Path(place) / "result.json").read_text())["curve"],
            }
            said = f"validation loss {metrics['val_loss']:.4f}  {metrics['train_seconds'] + metrics['evaluation_seconds']:.1f} s"
        except DivergedError as error:
            about |= {"failed": str(error)}
            said = "diverged"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, about)
    print(f"{label}: {said}", flush=True)
    return Kept(about["curve"], built.training.steps)
