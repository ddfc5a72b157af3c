"""Progress output of a run: a bar on a terminal, lines elsewhere, nothing inside a search."""

from __future__ import annotations

import sys
import time

from synaptune.core.terminal import is_terminal


class Progress:
    """Progress output of a run; this class shows nothing."""

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the training loss [nats/token] and the speed [tokens/s] of a logged step."""

    def show_validation(self, step: int, loss: float) -> None:
        """Show a validation loss [nats/token]."""

    def close(self) -> None:
        """Restore the terminal."""


class ProgressLines(Progress):
    """One line per validation, for log files and pipes."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._started_at = time.perf_counter()
        self._latest = ""

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._latest = f"train {loss:.4f}  {tokens_per_second:,.0f} tokens/s  "

    def show_validation(self, step: int, loss: float) -> None:
        seconds = time.perf_counter() - self._started_at
        print(
            f"step {step:>{len(str(self._steps))}}/{self._steps}  {self._latest}"
            f"val {loss:.4f} nats/token  {seconds:.1f} s",
            flush=True,
        )


class ProgressBar(Progress):
    """A rich bar of one 80-column line: losses, speed, time left."""

    def __init__(self, steps: int, done: int) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("[bold]training"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn(
                "train [cyan]{task.fields[train]}[/]  val [green]{task.fields[val]}[/]  "
                "{task.fields[speed]} tokens/s"
            ),
            progress.TimeRemainingColumn(),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task(
            "training", total=steps, completed=done, train="-", val="-", speed="-"
        )
        self._bar.start()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._bar.update(
            self._task, completed=step, train=f"{loss:.3f}", speed=f"{tokens_per_second:,.0f}"
        )

    def show_validation(self, step: int, loss: float) -> None:
        self._bar.update(self._task, completed=step, val=f"{loss:.3f}")

    def close(self) -> None:
        self._bar.stop()


def make_progress(choice: str, steps: int, done: int, *, in_search: bool) -> Progress:
    """Return the progress output for `logger.progress`.

    A trial of a search has none, because the search controls the terminal.

    Args:
        choice: value of `logger.progress`.
        steps: optimizer steps of the run.
        done: steps done before a resume.
        in_search: whether the run is a trial of a search.
    """
    if choice == "auto":
        choice = "bar" if is_terminal(sys.stdout) else "lines"
    if in_search or choice == "off":
        return Progress()
    return ProgressBar(steps, done) if choice == "bar" else ProgressLines(steps)
