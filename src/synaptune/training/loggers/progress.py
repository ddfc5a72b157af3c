"""Progress output of a run: a bar on a terminal, lines elsewhere, nothing inside a search."""

from __future__ import annotations

import sys
import time

from synaptune.core.terminal import is_terminal
from synaptune.core.text import LINE_SECONDS

MAX_LINES = 50  # lines of one run for its validations; chosen: they fit on a page


class Progress:
    """Progress output of a run; this class shows nothing."""

    def update(self, step: int, loss: float, speed: float) -> None:
        """Show the training loss and the speed [1/s] of a logged step."""

    def show_validation(self, step: int, loss: float) -> None:
        """Show a validation loss."""

    def close(self) -> None:
        """Restore the terminal."""


class ProgressLines(Progress):
    """One line per validation and at least every LINE_SECONDS, for log files and pipes.

    Of more than MAX_LINES validations only those LINE_SECONDS apart, and the last, have a line.
    """

    def __init__(self, steps: int, evaluations: int = 1, unit: str = "token") -> None:
        self._unit = unit
        self._steps, self._is_frequent = steps, evaluations > MAX_LINES
        self._started_at = self._printed_at = time.perf_counter()
        self._latest = ""

    def update(self, step: int, loss: float, speed: float) -> None:
        self._latest = f"train {loss:.4f}  {speed:,.0f} {self._unit}s/s  "
        if self._is_due:
            self._print(step, "")

    def show_validation(self, step: int, loss: float) -> None:
        if not self._is_frequent or self._is_due or step == self._steps:
            self._print(step, f"val {loss:.4f} nats/{self._unit}  ")

    @property
    def _is_due(self) -> bool:
        return time.perf_counter() - self._printed_at >= LINE_SECONDS

    def _print(self, step: int, validation: str) -> None:
        self._printed_at = time.perf_counter()
        seconds = self._printed_at - self._started_at
        width = len(str(self._steps))
        line = f"step {step:>{width}}/{self._steps}  {self._latest}{validation}{seconds:.1f} s"
        try:
            print(line, flush=True)
        except BrokenPipeError:  # the reader, such as head, has seen enough: the run ends
            raise
        except OSError:  # no space for a log file: the run has its result without the line
            return


class ProgressBar(Progress):
    """A rich bar of one 80-column line: losses, speed, time left."""

    def __init__(self, steps: int, done: int, unit: str = "token") -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("[bold]training"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn(
                "train [cyan]{task.fields[train]}[/]  val [green]{task.fields[val]}[/]  "
                f"{{task.fields[speed]}} {unit}s/s"
            ),
            progress.TimeRemainingColumn(),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task(
            "training", total=steps, completed=done, train="-", val="-", speed="-"
        )
        self._bar.start()

    def update(self, step: int, loss: float, speed: float) -> None:
        self._bar.update(self._task, completed=step, train=f"{loss:.3f}", speed=f"{speed:,.0f}")

    def show_validation(self, step: int, loss: float) -> None:
        self._bar.update(self._task, completed=step, val=f"{loss:.3f}")

    def close(self) -> None:
        self._bar.stop()


def make_progress(
    choice: str,
    steps: int,
    done: int,
    *,
    evaluations: int = 1,
    in_search: bool,
    unit: str = "token",
) -> Progress:
    """Return the progress output for `logger.progress`.

    A trial of a search has none, because the search controls the terminal.

    Args:
        choice: value of `logger.progress`.
        steps: optimizer steps of the run.
        done: steps done before a resume.
        evaluations: validations of the run.
        in_search: whether the run is a trial of a search.
        unit: what a batch consists of.
    """
    if choice == "auto":
        choice = "bar" if is_terminal(sys.stdout) else "lines"
    if in_search or choice == "off":
        return Progress()
    if choice == "bar":
        return ProgressBar(steps, done, unit)
    return ProgressLines(steps, evaluations, unit)
