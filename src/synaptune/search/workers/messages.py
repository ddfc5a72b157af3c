"""Messages between the controller (pool.py) and its workers (process.py).

controller -> worker   the evaluation (cloudpickle), list[Trial], bool (answer to a report)
worker -> controller   Ready, Heartbeat, ReportedValue, EndedTrial, or LoadFailure (the
                       evaluation cannot be loaded)
"""

from __future__ import annotations

from typing import NamedTuple

from synaptune.search.trial import Result

# Time between two signs of life of a worker [s]; chosen: cheap, and soon enough.
HEARTBEAT_INTERVAL = 5.0
# Silence after which a worker counts as dead [s]; chosen: longer than any pause of a network.
HEARTBEAT_TIMEOUT = 120.0


class Heartbeat(NamedTuple):
    """A worker is alive."""


class Ready(NamedTuple):
    """A worker has loaded the evaluation."""


class LoadFailure(NamedTuple):
    """A worker could not load the evaluation."""

    trace: str


class ReportedValue(NamedTuple):
    """An intermediate value of a running trial; the answer is whether the trial should stop."""

    number: int
    step: int
    value: float


class EndedTrial(NamedTuple):
    """The result of a trial, by its number; the other trials of the batch go on."""

    number: int
    result: Result
