"""Callbacks of a search: terminal output, logs, notifications and user functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from synaptune.core.errors import NO_SPACE, UserError, explain_disk_error
from synaptune.core.terminal import print_line
from synaptune.core.text import get_first_line
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.trial import PHASE, Trial, make_failure


class Callback:
    """Base class of callbacks; a search calls the methods in its own thread, so keep them short.

    Attributes:
        phase: phase of the study whose trials the callback receives; None means every phase.
        is_required: whether an exception ends the search; otherwise the callback is dropped.
    """

    phase: str | None = None
    is_required = False

    def on_start(self, trial: Trial) -> None:
        """A worker receives a trial, possibly for another attempt."""

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """A running trial reports an intermediate value."""

    def on_end(self, trial: Trial, finished: int) -> None:
        """A trial has ended; `finished` counts the ended trials of its phase."""

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        """A trial of another process has ended; `values` are its reported values by step."""

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """The optimizer was updated with a generation; after a kill one may be repeated."""

    def on_stop(self, reason: str) -> None:
        """A rule ends the search before its budget; callbacks of one phase do not receive it."""

    def close(self, exit_code: int) -> None:
        """The search has ended; `exit_code` is 0 when it succeeded."""


class CallbackList(Callback):
    """A callback that calls a list of callbacks in order.

    A callback that fails is closed and dropped, and the reason is printed. A UserError, a full
    disk and an error of a required callback end the search.
    """

    is_required = True

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def on_start(self, trial: Trial) -> None:
        self._call(trial, lambda callback: callback.on_start(trial))

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        self._call(trial, lambda callback: callback.on_report(trial, step, value))

    def on_end(self, trial: Trial, finished: int) -> None:
        self._call(trial, lambda callback: callback.on_end(trial, finished))

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        self._call(trial, lambda callback: callback.on_foreign_end(trial, values))

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        self._call(members[0], lambda callback: callback.on_generation(diagnostics, members))

    def on_stop(self, reason: str) -> None:
        self._call(None, lambda callback: callback.on_stop(reason))

    def close(self, exit_code: int) -> None:
        """Close every callback; a failure is printed and never raised."""
        while self._callbacks:
            callback = self._callbacks.pop(0)
            try:
                callback.close(exit_code)
            except Exception as error:  # the search has its result, or a more important error
                print_failure(type(callback).__name__, error)

    def _call(self, trial: Trial | None, call: Callable[[Callback], None]) -> None:
        phase = None if trial is None else trial.facts.get(PHASE)
        for callback in [entry for entry in self._callbacks if entry.phase in (None, phase)]:
            try:
                call(callback)
            except UserError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    do = "make room and give the same command; every finished trial is kept"
                    raise explain_disk_error(error, do) or error from error
                if callback.is_required:
                    raise
                self._callbacks.remove(callback)
                with suppress(Exception):  # it has failed already
                    callback.close(1)
                print_failure(type(callback).__name__, error)


def print_failure(name: str, error: Exception) -> None:
    """Print that a callback is dropped, and the first line of the reason."""
    reason = get_first_line(make_failure(error).reason)
    print_line(f"{name} failed and is switched off; the search continues: {reason}", sys.stderr)
