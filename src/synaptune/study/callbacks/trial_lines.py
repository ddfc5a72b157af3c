"""A line for each ended trial (`logger.progress=lines`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from synaptune.core.terminal import print_line
from synaptune.core.text import format_duration, get_first_line
from synaptune.search.trial import Trial
from synaptune.study.callbacks.progress import ProgressCallback, SearchInfo, SearchProgress
from synaptune.study.database import keys as schema

_MAX_REASON = 80  # characters


class TrialLines(ProgressCallback):
    """Prints a line for each ended trial: number, objective, best objective, times."""

    def __init__(
        self, info: SearchInfo, earlier: Sequence[Trial] = (), stream: TextIO | None = None
    ) -> None:
        """Count the earlier trials, and print to a stream; None means standard output."""
        super().__init__(info, earlier)
        self._stream = sys.stdout if stream is None else stream

    def on_end(self, trial: Trial, finished: int) -> None:
        """Print the line of a trial."""
        super().on_end(trial, finished)
        print_line(_format_line(self.progress, trial, time.monotonic()), self._stream)


def _format_line(progress: SearchProgress, trial: Trial, now: float) -> str:
    info, best, seconds_left = progress.info, progress.best, progress.get_seconds_left(now)
    width = len(str(info.total or progress.finished))
    line = f"  {info.label} {progress.finished:>{width}}{f'/{info.total}' if info.total else ''}"
    line += f"  {_format_result(trial)}"
    line += "" if best is None else f"  best {best.objective:.5g} (#{best.number})"
    line += f"  {format_duration(trial.facts.get(schema.SECONDS, 0.0))}"
    if progress.trials_left and seconds_left is not None:
        line += f"  left {format_duration(seconds_left)}"
    return line


def _format_result(trial: Trial) -> str:
    if trial.objective is not None:
        return f"{trial.objective:.5g}"
    detail = get_first_line(trial.reason)
    if trial.state == "pruned":
        detail = "no estimate" if trial.estimate is None else f"estimate {trial.estimate:.5g}"
    elif len(detail) > _MAX_REASON:
        detail = detail[: _MAX_REASON - 3] + "..."
    return f"{trial.state} ({detail})"
