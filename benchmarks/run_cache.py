"""Cached training runs of a benchmark.

Each run is trained once, in this process, and stored as a file that is named by the fingerprint of
its configuration.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runs import compose_config

from synaptune.config.run import run
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import compute_fingerprint, read_settings
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space
from synaptune.study.artifacts import write_json
from synaptune.study.provenance import get_code_version
from synaptune.training.config import RESULT_FILE
from synaptune.training.errors import DivergedError

QUIET = ("logger=csv", "logger.progress=off", "training.checkpoint_every=0")


class CachedRun(NamedTuple):
    """A finished run.

    Attributes:
        curve: [step, validation loss] pairs; None when the run diverged.
        steps: optimizer steps of the configuration.
    """

    curve: list[list[float]] | None
    steps: int

    @property
    def loss(self) -> float:
        """Validation loss at the end [nats/token]."""
        assert self.curve is not None
        return self.curve[-1][1]


def draw_candidates(common: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Draw random points of the search space, as overrides."""
    space = Space(tuple(read_dimensions(compose_config(common))))
    stream = make_optimizer(Engine("random", seed), space)
    units = [unit for unit in (stream.ask() for _ in range(count)) if unit is not None]
    return [
        tuple(f"{name}={value}" for name, value in space.to_values(unit).items()) for unit in units
    ]


def load_or_train(folder: Path, overrides: Sequence[str], label: str) -> CachedRun:
    """Load the run of the overrides from a folder, or train it.

    Raises:
        UserError: the configuration is invalid.
    """
    cfg = compose_config([*QUIET, *overrides])
    settings = read_settings(cfg)
    path = folder / f"{compute_fingerprint(settings)}.json"
    if path.exists():
        return CachedRun(json.loads(path.read_text())["curve"], settings.training.steps)
    record: dict[str, Any] = {
        "label": label,
        "overrides": list(overrides),
        "code_version": get_code_version(),
        "curve": None,
    }
    with tempfile.TemporaryDirectory() as run_dir:
        try:
            metrics = run(cfg, Path(run_dir), overrides=[]).metrics
            record |= {
                "metrics": metrics,
                "curve": json.loads((Path(run_dir) / RESULT_FILE).read_text())["curve"],
            }
            seconds = metrics["train_seconds"] + metrics["evaluation_seconds"]
            outcome = f"validation loss {metrics['val_loss']:.4f}  {seconds:.1f} s"
        except DivergedError as error:
            record |= {"failed": str(error)}
            outcome = "diverged"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    print(f"{label}: {outcome}", flush=True)
    return CachedRun(record["curve"], settings.training.steps)
