"""Intermediate values: from inside a running trial to whoever runs it, wherever that is.

`report` may be called anywhere below an evaluation; what runs the trial decides where the value goes (a function call in this
process, a message to the controller from another) and answers whether the trial should stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

ReportHandler = Callable[[int, float], bool]
_report_handler: ContextVar[ReportHandler | None] = ContextVar("report", default=None)
_stop: ContextVar[bool] = ContextVar("stop", default=False)


def report(step: int, value: float) -> bool:
    """Hand on the value at a step; true when the trial should stop. Outside a trial nobody listens, and nothing should stop."""
    handler = _report_handler.get()
    stop = handler(step, value) if handler is not None else False
    _stop.set(stop)
    return stop


def should_stop() -> bool:
    """The answer to the latest report of this trial."""
    return _stop.get()


@contextlib.contextmanager
def handle_reports(handler: ReportHandler) -> Iterator[None]:
    """Send what is reported inside to a handler."""
    token, stop = _report_handler.set(handler), _stop.set(False)
    try:
        yield
    finally:
        _report_handler.reset(token)
        _stop.reset(stop)
