"""Who hears of a search while it runs: the terminal, TensorBoard, Weights & Biases. None of them can stop it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from synaptune.errors import NO_SPACE, UserError, of_disk
from synaptune.report.lines import TrialLines
from synaptune.search.diagnostics import Diagnostics
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.search.workers import Judge, Lenient
from synaptune.storage.study import PhaseLedger
from synaptune.training.config import LoggerConfig

SILENT = LoggerConfig(progress="off", tensorboard=False, wandb="off")
VIEWER = LoggerConfig(tensorboard=False, wandb="off")


class Listener(Protocol):
    """Hears of a search; called in the thread that runs it, so that it should be quick."""

    def started(self, trial: Trial) -> None:
        """A trial was given to a worker, again perhaps."""
        ...

    def ended(self, trial: Trial, finished: int) -> None:
        """A trial ended; `finished` counts all that have."""
        ...

    def generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """The optimizer was told a generation, and this is its search distribution; after a kill one may come twice."""
        ...

    def close(self, exit_code: int) -> None:
        """The search is over; `exit_code` is 0 when it ended well."""
        ...


@runtime_checkable
class Hearing(Protocol):
    """A listener that also wants what running trials report."""

    def reported(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        ...


class Listeners:
    """All listeners of a search as one. One that fails is dropped, and the reason said; a full disk ends the search as ever."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def started(self, trial: Trial) -> None:
        """A trial was given to a worker."""
        self._each(lambda listener: listener.started(trial))

    def reported(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        self._each(lambda listener: listener.reported(trial, step, value) if isinstance(listener, Hearing) else None)

    def ended(self, trial: Trial, finished: int) -> None:
        """A trial ended."""
        self._each(lambda listener: listener.ended(trial, finished))

    def generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """The optimizer was told a generation."""
        self._each(lambda listener: listener.generation(diagnostics, members))

    def close(self, exit_code: int) -> None:
        """Close all, in their order; a fault of one is said, never raised: the search is over."""
        while self._listeners:
            listener = self._listeners.pop(0)
            try:
                listener.close(exit_code)
            except Exception as error:  # the search has its result, or an error of its own that matters more
                _say(listener, error)

    def _each(self, call: Callable[[Listener], None]) -> None:
        for listener in list(self._listeners):
            try:
                call(listener)
            except UserError:
                raise
            except Exception as error:  # the border of the search: whatever a listener does ends here
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    full = of_disk(error, "make room and give the same command; every finished trial is kept")
                    assert full is not None
                    raise full from error
                self._drop(listener, error)

    def _drop(self, listener: Listener, error: Exception) -> None:
        self._listeners.remove(listener)
        with suppress(Exception):  # it is broken already
            listener.close(1)
        _say(listener, error)


def _say(listener: Listener | type | str, error: Exception) -> None:
    name = listener if isinstance(listener, str) else type(listener).__name__
    first = (str(error).splitlines() or [""])[0]
    with suppress(OSError):  # a terminal that is gone
        print(f"{name} failed and is left out, the search goes on: {type(error).__name__}: {first}", file=sys.stderr, flush=True)


class Overheard:
    """A judge whose trials' reports go to the listeners first."""

    def __init__(self, listeners: Listeners, judge: Judge | None = None) -> None:
        self._listeners, self._judge = listeners, judge or Lenient()

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Pass a report on; whether the trial should stop there."""
        self._listeners.reported(trial, step, value)
        return self._judge(trial, step, value)

    def estimate(self, trial: Trial) -> float | None:
        """The judge's."""
        return self._judge.estimate(trial)


@dataclass(frozen=True)
class Show:
    """What is to be shown of a phase.

    total: trials planned, null when unknown; label: what one of them is called; earlier: trials that had ended before; logs: a
    search, which TensorBoard and W&B are to have too, not only the terminal.
    """

    total: int | None
    label: str = "trial"
    maximize: bool = False
    earlier: Sequence[Trial] = ()
    stop: StopConfig = field(default_factory=StopConfig)
    logs: bool = True


@contextmanager
def opened(ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Iterator[Listeners]:
    """The listeners that a configuration asks for, as long as the block lasts; raises UserError for those that cannot be had."""
    made = [listener for name, make in _MAKERS.items() if (listener := _made(name, make, ledger, logger, show)) is not None]
    listeners = Listeners(made[::-1])
    code = 1
    try:
        yield listeners
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    except UserError:
        code = 2
        raise
    finally:
        listeners.close(code)


Make = Callable[[PhaseLedger, LoggerConfig, Show], Listener | None]


def _made(name: str, make: Make, ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Listener | None:
    try:
        return make(ledger, logger, show)
    except UserError:
        raise
    except Exception as error:  # a log that cannot be opened is no reason not to search
        _say(name, error)
        return None


def _view(ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Listener | None:
    """A live table on a terminal, lines elsewhere; lines that nobody asked for only where somebody sees them."""
    if logger.progress == "off":
        return None
    if logger.progress in ("auto", "bar"):
        from synaptune.report.screen import terminal

        console = terminal()
        if console is not None:
            from synaptune.report.live import LiveTable, Scene

            title = f"{ledger.study.place.name}: {ledger.phase}"
            scene = Scene(title, ledger.space, f"{show.label}s", show.total, show.maximize, show.stop)
            return LiveTable(scene, show.earlier, console)
    return TrialLines(show.total, show.label, show.maximize, show.earlier, always=logger.progress == "lines")


def _tensorboard(ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Listener | None:
    if not (logger.tensorboard and show.logs):
        return None
    from synaptune.report.tensorboard import TensorBoardLog

    folder = ledger.study.place.folder / "controller" / ledger.phase
    return TensorBoardLog(folder, ledger.space, maximize=show.maximize, earlier=show.earlier)


def _wandb(ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Listener | None:
    if logger.wandb == "off" or not show.logs:
        return None
    from synaptune.report.wandb_controller import open_controller

    study = ledger.study
    return open_controller(logger, study, phase=ledger.phase, names=ledger.space.names, record=study.configuration, maximize=show.maximize)


# The terminal's is made last, when nothing can be refused any more, and told and closed first.
_MAKERS: dict[str, Make] = {"W&B's log": _wandb, "TensorBoard's log": _tensorboard, "the terminal's view": _view}
