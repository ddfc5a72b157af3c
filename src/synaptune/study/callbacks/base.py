"""The callbacks of a logger configuration: terminal, TensorBoard, Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from synaptune.core.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from synaptune.core.terminal import is_terminal
from synaptune.search.callback import Callback, CallbackList, print_failure
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig
from synaptune.search.trial import Trial
from synaptune.study.callbacks.progress import SearchInfo
from synaptune.study.callbacks.search_lines import SearchLines
from synaptune.study.callbacks.trial_lines import TrialLines
from synaptune.study.retention import CheckpointRetention
from synaptune.study.study import PhaseLedger
from synaptune.training.config import LoggerConfig

TERMINAL_ONLY = LoggerConfig(tensorboard=False, wandb="off")
_EXIT_CODES = {KeyboardInterrupt: EXIT_INTERRUPTED, UserError: EXIT_USER_ERROR}


class PhaseTrials(NamedTuple):
    """The trials of a phase.

    Attributes:
        ledger: ledger of the phase.
        total: number of planned trials; None if unknown.
        earlier: trials that ended before this process started.
    """

    ledger: PhaseLedger
    total: int | None
    earlier: Sequence[Trial] = ()


@contextmanager
def open_callbacks(
    phases: Sequence[PhaseTrials],
    logger: LoggerConfig,
    *,
    label: str = "trial",
    maximize: bool = False,
    stop: StopConfig | None = None,
    logs: bool = True,
    keep: int | None = None,
) -> Iterator[CallbackList]:
    """Open the callbacks of phases that run side by side, and close them at the end of the block.

    Args:
        phases: phases of one study; the terminal shows them as one.
        logger: configuration of the callbacks.
        label: word for a trial on the terminal.
        maximize: whether larger objectives are better.
        stop: rules that the live table shows.
        logs: whether to write to TensorBoard and W&B as well as to the terminal.
        keep: number of best trials of each phase whose checkpoints are kept; None keeps all.

    Raises:
        UserError: the configuration of a callback is invalid. A callback that fails in another
            way is left out, and the reason is printed.
    """
    opened: list[Callback] = []

    def add(name: str, make: Callable[[], Sequence[Callback]]) -> None:
        try:
            opened[:0] = make()
        except UserError:
            raise
        except Exception as error:  # the search runs without a log that cannot be opened
            print_failure(name, error)

    if keep is not None:
        opened.append(_make_retention(phases, keep, maximize))
    if logs and logger.wandb != "off":
        add("the W&B log", lambda: _make_wandb(phases, logger, maximize))
    if logs and logger.tensorboard:
        add("the TensorBoard log", lambda: _make_tensorboard(phases, maximize))
    # The terminal callback is made last, because an error of the others would leave it open.
    if logger.progress != "off":
        rules = stop or StopConfig()
        add("the terminal output", lambda: [_make_view(phases, logger, label, maximize, rules)])
    callbacks, exit_code = CallbackList(opened), 0
    try:
        yield callbacks
    except BaseException as error:
        exit_code = next((_EXIT_CODES[cls] for cls in _EXIT_CODES if isinstance(error, cls)), 1)
        raise
    finally:
        callbacks.close(exit_code)


def _make_retention(phases: Sequence[PhaseTrials], keep: int, maximize: bool) -> Callback:
    folder = phases[0].ledger.study.location.trials_folder
    earlier = [trial for phase in phases for trial in phase.earlier]
    return CheckpointRetention(folder, keep, maximize=maximize, earlier=earlier)


def _make_view(
    phases: Sequence[PhaseTrials],
    logger: LoggerConfig,
    label: str,
    maximize: bool,
    stop: StopConfig,
) -> Callback:
    """Make a live table on a terminal, and lines about the search elsewhere.

    A line for each trial is printed on request, and on a terminal that shows no table.
    """
    totals = [phase.total for phase in phases if phase.total is not None]
    ledgers = [phase.ledger for phase in phases]
    names = ", ".join(ledger.phase for ledger in ledgers)
    info = SearchInfo(
        f"{ledgers[0].study.location.name}: {names}",
        Space(tuple(dimension for ledger in ledgers for dimension in ledger.space.dimensions)),
        label,
        sum(totals) if len(totals) == len(phases) else None,
        maximize,
        stop,
        len(phases),
    )
    earlier = [trial for phase in phases for trial in phase.earlier]
    if logger.progress in ("auto", "bar"):
        from synaptune.study.callbacks import screen

        console = screen.make_picture_console()
        if console is not None:
            from synaptune.study.callbacks.live_table import LiveTable

            return LiveTable(info, earlier, console)
        if not is_terminal(sys.stdout):
            return SearchLines(info, earlier)
    return TrialLines(info, earlier)


def _make_tensorboard(phases: Sequence[PhaseTrials], maximize: bool) -> Sequence[Callback]:
    from synaptune.study.callbacks.tensorboard import TensorBoardCallback

    return [
        TensorBoardCallback(
            ledger.study.location.folder / "controller" / ledger.phase,
            ledger.space,
            phase=ledger.phase,
            maximize=maximize,
            earlier=earlier,
        )
        for ledger, _, earlier in phases
    ]


def _make_wandb(
    phases: Sequence[PhaseTrials], logger: LoggerConfig, maximize: bool
) -> Sequence[Callback]:
    from synaptune.study.callbacks.wandb_search import open_search_run

    study = phases[0].ledger.study
    return open_search_run(
        logger,
        study,
        names={ledger.phase: ledger.space.names for ledger, _, _ in phases},
        flat_config=study.configuration,
        maximize=maximize,
        earlier={ledger.phase: earlier for ledger, _, earlier in phases},
    )
