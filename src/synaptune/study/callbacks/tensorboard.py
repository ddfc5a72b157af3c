"""The log of a search for TensorBoard: how its trials end, how its distribution moves.

Two runs, since one counts trials and the other generations: `trials` has a step for each ended trial, `generations` one for each
generation that an optimizer with a distribution was told. It writes the event files by itself, without torch.
"""

from __future__ import annotations

import importlib
import io
import os
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial, find_best
from synaptune.study.callbacks.images import draw_distribution_image
from synaptune.study.database import keys as schema

# Most of a search's time that goes into images; chosen: less than one run's noise in time.
DRAWING_SHARE = 0.02
_BUCKET_COUNT = 20


class EventFile:
    """An event file that hides, when it continues a log, what the log already has from its first step on."""

    def __init__(self, folder: Path, first: int) -> None:
        """first: the step that it begins at, written again or new."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # Files of one log are read in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        event = _import_proto("event").Event
        log = _import_proto("event").SessionLog
        self._write(event(step=first, file_version="brain.Event:2"))
        self._write(event(step=first, session_log=log(status=log.START)))

    def add(self, step: int, values: Sequence[Any]) -> None:
        """Write the values (of a Summary) of a step, at once."""
        self._write(
            _import_proto("event").Event(
                step=step, summary=_import_proto("summary").Summary(value=values)
            )
        )
        self._file.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """End the file."""
        self._file.close()


def _import_proto(name: str) -> Any:
    """A module of TensorBoard's messages; their classes are made when it is imported."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


class TensorBoardCallback:
    """A search's listener that writes its log."""

    def __init__(
        self, folder: Path, space: Space, *, maximize: bool = False, earlier: Sequence[Trial] = ()
    ) -> None:
        """folder: of the log, with a subfolder for each of its two runs; earlier: trials that had ended before this process began."""
        self._folder, self._space, self._maximize = folder, space, maximize
        self._files: dict[str, EventFile] = {}
        self._best = find_best(earlier, maximize)
        self._failed = sum(trial.state == "failed" for trial in earlier)
        self._undrawn: Diagnostics | None = None
        self._drawn, self._cost = float("-inf"), 0.0

    def on_start(self, trial: Trial) -> None:
        """A trial is written when it ends."""

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
        }
        values |= {
            "search/failed": self._failed,
            "search/best": None if self._best is None else self._best.objective,
        }
        self._get_file("trials", finished).add(finished, _make_scalars(values))

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Write a generation: its losses, its distribution, its points."""
        step = diagnostics.generation
        file = self._get_file("generations", step)
        objectives = [trial.objective for trial in members if trial.objective is not None]
        file.add(step, _make_scalars(self._list_scalars(diagnostics, members, objectives)))
        points = {
            dimension.name: _to_numbers(dimension, members) for dimension in self._space.dimensions
        }
        file.add(
            step,
            [
                _make_histogram(f"values/{name}", values)
                for name, values in points.items()
                if values
            ],
        )
        if objectives:
            file.add(step, [_make_histogram("generation/objectives", objectives)])
        self._undrawn = diagnostics
        if time.monotonic() - self._drawn >= self._cost / DRAWING_SHARE:
            self._draw(diagnostics)

    def close(self, exit_code: int) -> None:
        """Draw the last generation, if that was left out, and end the files."""
        try:
            if self._undrawn is not None:
                self._draw(self._undrawn)
        finally:
            for file in self._files.values():
                file.close()
            self._files = {}

    def _get_file(self, run: str, step: int) -> EventFile:
        if run not in self._files:
            self._files[run] = EventFile(self._folder / run, step)
        return self._files[run]

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
        about = ("step", "condition", "eigenvalue_ratio", "stagnation")
        found |= {f"distribution/{name}": float(getattr(diagnostics, name)) for name in about}
        for dimension in self._space.dimensions:
            mean, sigma = to_own_unit(
                dimension, diagnostics.mean[dimension.name], diagnostics.sigma[dimension.name]
            )
            found |= {f"mean/{dimension.name}": mean, f"sigma/{dimension.name}": sigma}
        return found

    def _draw(self, diagnostics: Diagnostics) -> None:
        began = time.monotonic()
        image = _make_image(diagnostics)
        self._get_file("generations", diagnostics.generation).add(diagnostics.generation, [image])
        self._undrawn, self._drawn = None, time.monotonic()
        self._cost = self._drawn - began


def to_own_unit(dimension: Dimension, mean: float, sigma: float) -> tuple[float, float]:
    """A parameter's mean and half the width of mean +- sigma, in its own unit; of a choice they stay coordinates of the unit box."""
    if dimension.scale == "categorical":
        return mean, sigma
    centre, low, high = (
        float(dimension.to_value(unit)) for unit in (mean, mean - sigma, mean + sigma)
    )
    return centre, (high - low) / 2.0


def _to_numbers(dimension: Dimension, members: Sequence[Trial]) -> list[float]:
    """A parameter's values in a generation; of a choice its number among them."""
    values = [trial.values[dimension.name] for trial in members]
    return [
        float(dimension.choices.index(value) if dimension.scale == "categorical" else value)
        for value in values
    ]


def _make_scalars(values: Mapping[str, Any]) -> list[Any]:
    message = _import_proto("summary").Summary.Value
    return [
        message(tag=tag, simple_value=float(value))
        for tag, value in values.items()
        if isinstance(value, int | float)  # a number that JSON does not have is stored as its name
    ]


def _make_histogram(tag: str, values: Sequence[float]) -> Any:
    import numpy as np

    counts, edges = np.histogram(values, bins=_BUCKET_COUNT)
    about = dict(
        min=min(values),
        max=max(values),
        num=len(values),
        sum=sum(values),
        sum_squares=sum(value**2 for value in values),
    )
    # TensorBoard keeps right edges only: an empty bucket first gives the left one.
    messages = _import_proto("summary")
    histogram = messages.HistogramProto(
        **about, bucket_limit=edges.tolist(), bucket=[0, *counts.tolist()]
    )
    return messages.Summary.Value(tag=tag, histo=histogram)


def _make_image(diagnostics: Diagnostics) -> Any:
    """Return the image of a search distribution as a Summary value `correlation`."""
    from matplotlib.image import imsave

    pixels, file = draw_distribution_image(diagnostics, list(diagnostics.mean)), io.BytesIO()
    imsave(file, pixels, format="png")
    height, width, _ = pixels.shape
    summary = _import_proto("summary").Summary
    image = summary.Image(
        width=width, height=height, colorspace=4, encoded_image_string=file.getvalue()
    )
    return summary.Value(tag="correlation", image=image)
