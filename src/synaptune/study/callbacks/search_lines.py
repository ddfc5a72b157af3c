"""Lines about a search as a whole, for a log file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from synaptune.core.terminal import print_line
from synaptune.core.text import LINE_SECONDS, format_duration
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.trial import Trial
from synaptune.study.callbacks.progress import ProgressCallback, SearchInfo, SearchProgress

# [s] between two lines at least: a quick search has many generations a second
LEAST_SECONDS = 2.0


class SearchLines(ProgressCallback):
    """Prints a line at the end of a generation, every LINE_SECONDS, and at the end of the search.

    A line is printed when a trial starts, reports or ends, so there is none while nothing happens.
    """

    def __init__(
        self, info: SearchInfo, earlier: Sequence[Trial] = (), stream: TextIO | None = None
    ) -> None:
        """Count the earlier trials, and print to a stream; None means standard output."""
        super().__init__(info, earlier)
        self._stream = sys.stdout if stream is None else stream
        self._printed_at, self._printed = time.monotonic(), ""

    def on_start(self, trial: Trial) -> None:
        """Add a running trial, and print a line if one is due."""
        super().on_start(trial)
        self._print_after(LINE_SECONDS)

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """Store a reported value, and print a line if one is due."""
        super().on_report(trial, step, value)
        self._print_after(LINE_SECONDS)

    def on_end(self, trial: Trial, finished: int) -> None:
        """Count an ended trial, and print a line if one is due."""
        super().on_end(trial, finished)
        self._print_after(LINE_SECONDS)

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Print a line, unless the last one is very recent."""
        self._print_after(LEAST_SECONDS)

    def close(self, exit_code: int) -> None:
        """Print the last state if it has changed; a phase of one trial has its own message."""
        if self.progress.finished_here and self.progress.info.total != 1:
            self._print_after(0.0)

    def _print_after(self, seconds: float) -> None:
        """Print a line if the last one is older than `seconds` and says something else."""
        now = time.monotonic()
        if now - self._printed_at < seconds:
            return
        line = format_search_line(self.progress, now)
        if line != self._printed:
            print_line(line, self._stream)
            self._printed_at, self._printed = now, line


def format_search_line(progress: SearchProgress, now: float) -> str:
    """Return one line about a search at a time [s, monotonic]."""
    info, best = progress.info, progress.best
    total = "" if info.total is None else f"/{info.total}"
    parts = [f"  {info.label}s {progress.finished}{total}"]
    if best is not None:
        parts.append(f"best {best.objective:.5g} (#{best.number})")
    if progress.generation:
        parts.append(f"generation {progress.generation}")
    parts += [
        f"{count} {state}" for state in ("failed", "pruned") if (count := progress.states[state])
    ]
    if progress.running:
        parts.append(_describe_running(progress))
    seconds_left = progress.get_seconds_left(now)
    if progress.trials_left and seconds_left is not None:
        parts.append(f"left {format_duration(seconds_left)}")
    return "  ".join(parts)


def _describe_running(progress: SearchProgress) -> str:
    """Describe the running trials, and the latest report of the one that started last."""
    text = f"{len(progress.running)} running"
    last = progress.running[max(progress.running)]
    if last.step is None or last.value is None:
        return text
    return f"{text} (#{last.trial.number} at step {last.step}: {last.value:.5g})"
