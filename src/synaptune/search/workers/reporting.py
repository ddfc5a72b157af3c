"""Intermediate values that a running trial reports.

`report` can be called anywhere within an evaluation. The workers set a handler that receives the
value (by a function call in this process, or by a message to the controller from a worker process)
and returns whether the trial should stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

ReportHandler = Callable[[int, float], bool]
_report_handler: ContextVar[ReportHandler | None] = ContextVar("report", default=None)
_stop: ContextVar[bool] = ContextVar("stop", default=False)


def report(step: int, value: float) -> bool:
    """Report the value at a step.

    Returns:
        Whether the trial should stop; False outside a trial, where the value is discarded.
    """
    handler = _report_handler.get()
    stop = handler(step, value) if handler is not None else False
    _stop.set(stop)
    return stop


def should_stop() -> bool:
    """Return the answer to the last report of this trial."""
    return _stop.get()


@contextlib.contextmanager
def handle_reports(handler: ReportHandler) -> Iterator[None]:
    """Pass the values that are reported within the context to a handler."""
    token, stop = _report_handler.set(handler), _stop.set(False)
    try:
        yield
    finally:
        _report_handler.reset(token)
        _stop.reset(stop)
