"""The log of a search for TensorBoard: its trials and its search distribution.

It has two runs: `trials` has a step for each ended trial, `generations` one for each generation of
an optimizer with a search distribution.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import find_choice
from synaptune.search.trial import Trial, find_best
from synaptune.study.callbacks.images import draw_distribution_image
from synaptune.study.database import keys as schema

# Most of a search's time that goes into images; chosen: less than one run's noise in time.
DRAWING_SHARE = 0.02
_BUCKET_COUNT = 20


class TensorBoardCallback(Callback):
    """A callback that writes the log of one phase."""

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        phase: str | None = None,
        maximize: bool = False,
        earlier: Sequence[Trial] = (),
    ) -> None:
        """Prepare a log.

        Args:
            folder: folder of the log, with a subfolder for each of its two runs.
            earlier: trials that ended before this process started.
        """
        self.phase = phase
        self._folder, self._space, self._maximize = folder, space, maximize
        self._writers: dict[str, Any] = {}
        self._best = find_best(earlier, maximize)
        self._failed = sum(trial.state == "failed" for trial in earlier)
        self._undrawn: Diagnostics | None = None
        self._drawn, self._cost = float("-inf"), 0.0

    def on_end(self, trial: Trial, finished: int) -> None:
        """Write how a trial ended, at the step of ended trials."""
        self._best = find_best(
            [entry for entry in (self._best, trial) if entry is not None], self._maximize
        )
        self._failed += trial.state == "failed"
        values = {
            "trial/objective": trial.objective,
            "trial/estimate": trial.estimate,
            "trial/seconds": trial.facts.get(schema.SECONDS),
            "search/failed": self._failed,
            "search/best": None if self._best is None else self._best.objective,
        }
        self._add("trials", finished, values)

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Write a generation: its losses, its distribution, its points."""
        step = diagnostics.generation
        objectives = [trial.objective for trial in members if trial.objective is not None]
        histograms = {
            f"values/{dimension.name}": _to_numbers(dimension, members)
            for dimension in self._space.dimensions
        } | {"generation/objectives": objectives}
        self._add("generations", step, self._list_scalars(diagnostics, members, objectives))
        writer = self._writers["generations"]
        for tag, values in histograms.items():
            if values:
                writer.add_histogram(tag, np.array(values), step, bins=_BUCKET_COUNT)
        self._undrawn = diagnostics
        if time.monotonic() - self._drawn >= self._cost / DRAWING_SHARE:
            self._draw(diagnostics)
        writer.flush()

    def close(self, exit_code: int) -> None:
        """Draw the last generation if that was left out, and close the files."""
        try:
            if self._undrawn is not None:
                self._draw(self._undrawn)
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers = {}

    def _add(self, run: str, step: int, values: Mapping[str, Any]) -> None:
        """Write numbers; a value that JSON does not have as a number is stored as text."""
        from torch.utils.tensorboard import SummaryWriter

        if run not in self._writers:
            # A log that is continued hides what it already has from this step on.
            self._writers[run] = SummaryWriter(str(self._folder / run), purge_step=step)
        for tag, value in values.items():
            if isinstance(value, int | float):
                self._writers[run].add_scalar(tag, value, step)
        self._writers[run].flush()

    def _list_scalars(
        self, diagnostics: Diagnostics, members: Sequence[Trial], objectives: Sequence[float]
    ) -> Mapping[str, float | None]:
        best, worst = (max, min) if self._maximize else (min, max)
        found: dict[str, float | None] = {
            "generation/failed": sum(trial.state == "failed" for trial in members)
        }
        if objectives:
            found |= {"generation/best": best(objectives), "generation/worst": worst(objectives)}
            found |= {"generation/mean": statistics.fmean(objectives)}
        found |= {"search/best": None if self._best is None else self._best.objective}
        numbers = ("step", "condition", "eigenvalue_ratio", "stagnation")
        found |= {f"distribution/{name}": float(getattr(diagnostics, name)) for name in numbers}
        for dimension in self._space.dimensions:
            mean, sigma = to_own_unit(
                dimension, diagnostics.mean[dimension.name], diagnostics.sigma[dimension.name]
            )
            found |= {f"mean/{dimension.name}": mean, f"sigma/{dimension.name}": sigma}
        return found

    def _draw(self, diagnostics: Diagnostics) -> None:
        started_at = time.monotonic()
        image = draw_distribution_image(diagnostics, list(diagnostics.mean))
        self._writers["generations"].add_image(
            "correlation", image, diagnostics.generation, dataformats="HWC"
        )
        self._undrawn, self._drawn = None, time.monotonic()
        self._cost = self._drawn - started_at


def to_own_unit(dimension: Dimension, mean: float, sigma: float) -> tuple[float, float]:
    """Convert a parameter's mean and half the width of mean +- sigma to its own unit.

    Those of a choice stay coordinates of the unit box.
    """
    if dimension.scale == "categorical":
        return mean, sigma
    centre, low, high = (
        float(dimension.to_value(unit)) for unit in (mean, mean - sigma, mean + sigma)
    )
    return centre, (high - low) / 2.0


def _to_numbers(dimension: Dimension, members: Sequence[Trial]) -> list[float]:
    """A parameter's values in a generation; of a choice its number among them."""
    values = [trial.values[dimension.name] for trial in members]
    if dimension.scale == "categorical":
        values = [find_choice(dimension.choices, value) for value in values]
    return [float(value) for value in values]
