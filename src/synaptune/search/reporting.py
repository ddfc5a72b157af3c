"""Intermediate values: from inside a running trial to whoever runs it, wherever that is.

`report` may be called anywhere below an evaluation; what runs the trial decides where the value goes (a function call in this
process, a message to the controller from another) and answers whether the trial should stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Report = Callable[[int, float], bool]
_report: ContextVar[Report | None] = ContextVar("report", default=None)


def report(step: int, value: float) -> bool:
    """Hand on the value at a step; true when the trial should stop. Outside a trial nobody listens, and nothing should stop."""
    handler = _report.get()
    return handler(step, value) if handler is not None else False


@contextlib.contextmanager
def reporting(handler: Report) -> Iterator[None]:
    """Send what is reported inside to a handler."""
    token = _report.set(handler)
    try:
        yield
    finally:
        _report.reset(token)
