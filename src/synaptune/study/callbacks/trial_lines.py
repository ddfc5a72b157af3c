"""A line for every trial that ends, on a terminal or where lines are asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from synaptune.core.terminal import is_terminal, print_line
from synaptune.core.text import format_duration, get_first_line
from synaptune.search.callback import Callback
from synaptune.search.trial import Trial, find_best


@dataclass
class TrialLines(Callback):
    """A line for every ended trial: its number, objective, best so far, time taken and left.

    Attributes:
        total: number of planned trials; None when unknown.
        label: what is counted.
        earlier: trials that ended before this process started.
        always: whether to print where the stream is no terminal.
    """

    total: int | None
    label: str = "trial"
    maximize: bool = False
    earlier: Sequence[Trial] = ()
    always: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def __post_init__(self) -> None:
        self._shown = self.always or is_terminal(self.stream)
        self._best = find_best(self.earlier, self.maximize)
        self._started_at = time.perf_counter()
        self._ended = 0

    def on_end(self, trial: Trial, finished: int) -> None:
        """Print the line of a trial; trials of every phase are counted together."""
        self._ended += 1
        finished = len(self.earlier) + self._ended
        self._best = find_best(
            [entry for entry in (self._best, trial) if entry is not None], self.maximize
        )
        if not self._shown:
            return
        width = len(str(self.total or finished))
        counted = f"{self.label} {finished:>{width}}" + (f"/{self.total}" if self.total else "")
        ending = (
            f"{trial.objective:.5g}"
            if trial.objective is not None
            else f"{trial.state} ({_describe_ending(trial)})"
        )
        best = (
            f"  best {self._best.objective:.5g} (#{self._best.number})"
            if self._best is not None
            else ""
        )
        pace = (time.perf_counter() - self._started_at) / self._ended
        left = (
            f"  left {format_duration(pace * (self.total - finished))}"
            if self.total and finished < self.total
            else ""
        )
        print_line(
            f"  {counted}  {ending}{best} "
            f" {format_duration(trial.facts.get('seconds', 0.0))}{left}",
            self.stream,
        )


def _describe_ending(trial: Trial) -> str:
    if trial.state == "pruned":
        return "no estimate" if trial.estimate is None else f"estimate {trial.estimate:.5g}"
    line = get_first_line(trial.reason)
    return line if len(line) <= 80 else line[:77] + "..."
