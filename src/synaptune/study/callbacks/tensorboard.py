"""The TensorBoard log of a search, with two runs.

`trials` has a step for each ended trial, `generations` has a step for each generation of an
optimizer with a search distribution.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synaptune.core.moments import compute_mean
from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import find_choice
from synaptune.search.trial import Trial, find_best
from synaptune.study.callbacks.images import draw_distribution_image
from synaptune.study.database import keys as schema

# Largest fraction of the time of a search for drawing; chosen: below the variation between runs.
DRAWING_FRACTION = 0.02
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
        """Count the earlier trials.

        Args:
            folder: folder of the log, with a subfolder for each run.
            space: search space of the phase.
            phase: phase whose trials are logged; None means every phase.
            maximize: whether larger objectives are better.
            earlier: trials that ended before this process started.
        """
        self.phase = phase
        self._folder, self._space, self._maximize = folder, space, maximize
        self._writers: dict[str, Any] = {}
        self._best = find_best(earlier, maximize)
        self._failed = sum(trial.state == "failed" for trial in earlier)
        self._undrawn: Diagnostics | None = None
        self._next_drawing = 0.0  # earliest time of the next drawing [s, monotonic]

    def on_end(self, trial: Trial, finished: int) -> None:
        """Write the result of a trial; the step is the number of ended trials."""
        self._best = find_best(filter(None, (self._best, trial)), self._maximize)
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
        """Write the objectives, the search distribution and the points of a generation."""
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
        if time.monotonic() >= self._next_drawing:
            self._draw(diagnostics)
        writer.flush()

    def close(self, exit_code: int) -> None:
        """Draw the last generation if it is not drawn, and close the files."""
        try:
            if self._undrawn is not None:
                self._draw(self._undrawn)
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers = {}

    def _add(self, run: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among some values; a non-finite number is stored as text."""
        from torch.utils.tensorboard import SummaryWriter

        if run not in self._writers:
            # TensorBoard discards the steps that an earlier process wrote from this step on.
            self._writers[run] = SummaryWriter(str(self._folder / run), purge_step=step)
        for tag, value in values.items():
            if isinstance(value, int | float):
                self._writers[run].add_scalar(tag, value, step)
        self._writers[run].flush()

    def _list_scalars(
        self, diagnostics: Diagnostics, members: Sequence[Trial], objectives: Sequence[float]
    ) -> Mapping[str, float | None]:
        best, worst = (max, min) if self._maximize else (min, max)
        scalars: dict[str, float | None] = {
            "generation/failed": sum(trial.state == "failed" for trial in members),
            "search/best": None if self._best is None else self._best.objective,
        }
        if objectives:
            scalars |= {
                "generation/best": best(objectives),
                "generation/worst": worst(objectives),
                "generation/mean": compute_mean(objectives),
            }
        for name in ("step", "condition", "eigenvalue_ratio", "stagnation"):
            scalars[f"distribution/{name}"] = float(getattr(diagnostics, name))
        for dimension in self._space.dimensions:
            name = dimension.name
            scalars[f"mean/{name}"], scalars[f"sigma/{name}"] = convert_to_unit(
                dimension, diagnostics.mean[name], diagnostics.sigma[name]
            )
        return scalars

    def _draw(self, diagnostics: Diagnostics) -> None:
        started_at = time.monotonic()
        image = draw_distribution_image(diagnostics, list(diagnostics.mean))
        self._writers["generations"].add_image(
            "correlation", image, diagnostics.generation, dataformats="HWC"
        )
        self._undrawn, now = None, time.monotonic()
        self._next_drawing = now + (now - started_at) / DRAWING_FRACTION


def convert_to_unit(dimension: Dimension, mean: float, sigma: float) -> tuple[float, float]:
    """Convert mean and sigma from the unit box to the unit of a parameter.

    The converted sigma is half the width of mean +- sigma. Both values of a categorical parameter
    stay coordinates of the unit box.
    """
    if dimension.scale == "categorical":
        return mean, sigma
    center, low, high = (
        float(dimension.to_value(unit)) for unit in (mean, mean - sigma, mean + sigma)
    )
    return center, (high - low) / 2.0


def _to_numbers(dimension: Dimension, members: Sequence[Trial]) -> list[float]:
    """Return the values of a parameter in a generation; a choice is replaced by its index."""
    values = [trial.values[dimension.name] for trial in members]
    if dimension.scale == "categorical":
        values = [find_choice(dimension.choices, value) for value in values]
    return [float(value) for value in values]
