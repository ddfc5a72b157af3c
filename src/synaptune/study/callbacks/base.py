"""Who hears of a search while it runs: the terminal, TensorBoard, Weights & Biases. None of them can stop it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from synaptune.core.errors import NO_SPACE, UserError, explain_disk_error
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.search.workers.base import NeverStop, TrialStopper
from synaptune.study.callbacks.trial_lines import TrialLines
from synaptune.study.study import PhaseLedger
from synaptune.training.config import LoggerConfig

NO_LOGGING = LoggerConfig(progress="off", tensorboard=False, wandb="off")
TERMINAL_ONLY = LoggerConfig(tensorboard=False, wandb="off")


class Callback(Protocol):
    """Hears of a search; called in the thread that runs it, so that it should be quick."""

    def on_start(self, trial: Trial) -> None:
        """A trial was given to a worker, again perhaps."""
        ...

    def on_end(self, trial: Trial, finished: int) -> None:
        """A trial ended; `finished` counts all that have."""
        ...

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """The optimizer was told a generation, and this is its search distribution; after a kill one may come twice."""
        ...

    def close(self, exit_code: int) -> None:
        """The search is over; `exit_code` is 0 when it ended well."""
        ...


@runtime_checkable
class Hearing(Protocol):
    """A listener that also wants what running trials report."""

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        ...


class Listeners:
    """All listeners of a search as one. One that fails is dropped, and the reason said; a full disk ends the search as ever."""

    def __init__(self, listeners: Sequence[Callback] = ()) -> None:
        self._listeners = list(listeners)

    def on_start(self, trial: Trial) -> None:
        """A trial was given to a worker."""
        self._call_each(lambda listener: listener.on_start(trial))

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """A running trial told a value."""
        self._call_each(
            lambda listener: (
                listener.on_report(trial, step, value) if isinstance(listener, Hearing) else None
            )
        )

    def on_end(self, trial: Trial, finished: int) -> None:
        """A trial ended."""
        self._call_each(lambda listener: listener.on_end(trial, finished))

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """The optimizer was told a generation."""
        self._call_each(lambda listener: listener.on_generation(diagnostics, members))

    def close(self, exit_code: int) -> None:
        """Close all, in their order; a fault of one is said, never raised: the search is over."""
        while self._listeners:
            listener = self._listeners.pop(0)
            try:
                listener.close(exit_code)
            except (
                Exception
            ) as error:  # the search has its result, or an error of its own that matters more
                _print_failure(listener, error)

    def _call_each(self, call: Callable[[Callback], None]) -> None:
        for listener in list(self._listeners):
            try:
                call(listener)
            except UserError:
                raise
            except (
                Exception
            ) as error:  # the border of the search: whatever a listener does ends here
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    full = explain_disk_error(
                        error, "make room and give the same command; every finished trial is kept"
                    )
                    assert full is not None
                    raise full from error
                self._drop(listener, error)

    def _drop(self, listener: Callback, error: Exception) -> None:
        self._listeners.remove(listener)
        with suppress(Exception):  # it is broken already
            listener.close(1)
        _print_failure(listener, error)


def _print_failure(listener: Callback | type | str, error: Exception) -> None:
    name = listener if isinstance(listener, str) else type(listener).__name__
    first = (str(error).splitlines() or [""])[0]
    with suppress(OSError):  # a terminal that is gone
        print(
            f"{name} failed and is left out, the search goes on: {type(error).__name__}: {first}",
            file=sys.stderr,
            flush=True,
        )


class Overheard:
    """A judge whose trials' reports go to the listeners first."""

    def __init__(self, listeners: Listeners, judge: TrialStopper | None = None) -> None:
        self._listeners, self._judge = listeners, judge or NeverStop()

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Pass a report on; whether the trial should stop there."""
        self._listeners.on_report(trial, step, value)
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


class Together:
    """A listener that the searches of several phases have in common: it counts the ended trials of all, and closes with the last.

    Generations are not passed on: each search has its own.
    """

    def __init__(self, whole: Callback, finished: int, phases: int) -> None:
        """finished: trials of all phases that had ended before."""
        self._whole, self._finished, self._open = (
            Listeners([whole]),
            finished,
            phases,
        )  # one that fails is dropped for all

    def on_start(self, trial: Trial) -> None:
        """A trial of any phase was given to a worker."""
        self._whole.on_start(trial)

    def on_report(self, trial: Trial, step: int, value: float) -> None:
        """A running trial of any phase told a value."""
        self._whole.on_report(trial, step, value)

    def on_end(self, trial: Trial, finished: int) -> None:
        """A trial of any phase ended; `finished` counts those of its own."""
        self._finished += 1
        self._whole.on_end(trial, self._finished)

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Nothing."""

    def close(self, exit_code: int) -> None:
        """One phase is over."""
        self._open -= 1
        if not self._open:
            self._whole.close(exit_code)


ShownPhase = tuple[PhaseLedger, Show]


@contextmanager
def open_callbacks(ledger: PhaseLedger, logger: LoggerConfig, show: Show) -> Iterator[Listeners]:
    """The listeners that a configuration asks for, as long as the block lasts; raises UserError for those that cannot be had."""
    with open_shared_callbacks([(ledger, show)], logger) as (listeners,):
        yield listeners


@contextmanager
def open_shared_callbacks(
    phases: Sequence[ShownPhase], logger: LoggerConfig
) -> Iterator[list[Listeners]]:
    """The listeners of each of several phases that are searched side by side; the terminal shows them as one.

    Raises UserError for those that cannot be had.
    """
    made = [(_make_or_drop(name, make, phases, logger)) for name, make in _MAKERS.items()]
    together = [
        Listeners(listeners[::-1]) for listeners in zip(*filter(None, made), strict=True)
    ] or [Listeners() for _ in phases]
    code = 1
    try:
        yield together
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    except UserError:
        code = 2
        raise
    finally:
        for listeners in together:
            listeners.close(code)


MakeCallbacks = Callable[[Sequence[ShownPhase], LoggerConfig], Sequence[Callback]]


def _make_or_drop(
    name: str, make: MakeCallbacks, phases: Sequence[ShownPhase], logger: LoggerConfig
) -> Sequence[Callback]:
    """A listener for each phase; none when nobody asked for it."""
    try:
        return make(phases, logger)
    except UserError:
        raise
    except Exception as error:  # a log that cannot be opened is no reason not to search
        _print_failure(name, error)
        return ()


def _make_view(phases: Sequence[ShownPhase], logger: LoggerConfig) -> Sequence[Callback]:
    """A live table on a terminal, lines elsewhere; lines that nobody asked for only where somebody sees them."""
    if logger.progress == "off":
        return ()
    shows = [show for _, show in phases]
    totals = [show.total for show in shows if show.total is not None]
    total = sum(totals) if len(totals) == len(shows) else None
    view = _make_one_view(
        phases,
        logger,
        replace(shows[0], total=total, earlier=[trial for show in shows for trial in show.earlier]),
    )
    if len(phases) == 1:
        return (view,)
    together = Together(view, sum(len(show.earlier) for show in shows), len(phases))
    return [together] * len(phases)


def _make_one_view(phases: Sequence[ShownPhase], logger: LoggerConfig, show: Show) -> Callback:
    if logger.progress in ("auto", "bar"):
        from synaptune.study.callbacks.screen import make_console

        console = make_console()
        if console is not None:
            from synaptune.study.callbacks.live_table import LiveTable, SearchInfo

            ledgers = [ledger for ledger, _ in phases]
            title = (
                f"{ledgers[0].study.location.name}: {', '.join(ledger.phase for ledger in ledgers)}"
            )
            space = Space(
                tuple(dimension for ledger in ledgers for dimension in ledger.space.dimensions)
            )
            return LiveTable(
                SearchInfo(title, space, f"{show.label}s", show.total, show.maximize, show.stop),
                show.earlier,
                console,
            )
    return TrialLines(
        show.total, show.label, show.maximize, show.earlier, always=logger.progress == "lines"
    )


def _make_tensorboard(phases: Sequence[ShownPhase], logger: LoggerConfig) -> Sequence[Callback]:
    if not (logger.tensorboard and all(show.logs for _, show in phases)):
        return ()
    from synaptune.study.callbacks.tensorboard import TensorBoardCallback

    return [
        TensorBoardCallback(
            ledger.study.location.folder / "controller" / ledger.phase,
            ledger.space,
            maximize=show.maximize,
            earlier=show.earlier,
        )
        for ledger, show in phases
    ]


def _make_wandb(phases: Sequence[ShownPhase], logger: LoggerConfig) -> Sequence[Callback]:
    if logger.wandb == "off" or not all(show.logs for _, show in phases):
        return ()
    from synaptune.study.callbacks.wandb_search import open_search_run

    study, (_, show) = phases[0][0].study, phases[0]
    names = {ledger.phase: ledger.space.names for ledger, _ in phases}
    earlier = {ledger.phase: shown.earlier for ledger, shown in phases}
    return open_search_run(
        logger,
        study,
        names=names,
        flat_config=study.configuration,
        maximize=show.maximize,
        earlier=earlier,
    )


# The terminal's is made last, when nothing can be refused any more, and told and closed first.
_MAKERS: dict[str, MakeCallbacks] = {
    "W&B's log": _make_wandb,
    "TensorBoard's log": _make_tensorboard,
    "the terminal's view": _make_view,
}
