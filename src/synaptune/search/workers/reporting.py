"""Intermediate values that a running trial reports.

`report` can be called anywhere within an evaluation, in its threads as well. The workers set a
handler that receives the value (by a function call in this process, or by a message to the
controller from a worker process) and returns whether the trial should stop.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from synaptune.search.space.values import to_number, to_plain

ReportHandler = Callable[[int, float], bool]
_MAX_STEP = 2**31 - 1  # databases store a step in 32 bits


@dataclass
class _RunningTrial:
    """The trial that runs in this context.

    Attributes:
        handler: receives its reports.
        stop: the answer to the last report.
        process: process of the trial.
        lock: allows one report at a time.
    """

    handler: ReportHandler
    stop: bool = False
    process: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)


_current: ContextVar[_RunningTrial | None] = ContextVar("trial", default=None)
_running: list[_RunningTrial] = []  # of all threads


def report(step: Any, value: Any) -> bool:
    """Report the value at a step.

    Args:
        step: an integer.
        value: a number, also of numpy or torch.

    Returns:
        Whether the trial should stop; False outside a trial, where the value is discarded.

    Raises:
        TypeError: the step or the value is of another type.
        ValueError: the step is too large to be stored.
        RuntimeError: this process is a child of the process of the trial.
    """
    try:
        number = to_number(value)
    except TypeError as error:
        raise TypeError(f"reported value {error}, expected a number") from error
    index = _read_step(step)
    trial = _get_running()
    if trial is None:
        return False
    if trial.process != os.getpid():
        raise RuntimeError("report in a child process; report in the process of the objective")
    with trial.lock:
        trial.stop = trial.handler(index, number)
        return trial.stop


def should_stop() -> bool:
    """Return the answer to the last report of this trial."""
    trial = _get_running()
    return trial is not None and trial.stop


def _read_step(step: Any) -> int:
    plain: Any = to_plain(step)
    if not isinstance(plain, int | float) or plain != plain or plain % 1:
        raise TypeError(f"reported step {step!r}, expected an integer")
    if abs(plain) > _MAX_STEP:
        raise ValueError(f"reported step {plain}, expected at most {_MAX_STEP}")
    return int(plain)


def _get_running() -> _RunningTrial | None:
    """Return the trial of this context; in a thread of an objective, the only one that runs."""
    return _current.get() or (_running[0] if len(_running) == 1 else None)


@contextlib.contextmanager
def handle_reports(handler: ReportHandler) -> Iterator[None]:
    """Pass the values that are reported within the context to a handler."""
    trial = _RunningTrial(handler)
    token = _current.set(trial)
    _running.append(trial)
    try:
        yield
    finally:
        _running.remove(trial)
        _current.reset(token)
