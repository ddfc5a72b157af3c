"""Synaptune: which biological constants of a synaptic transformer matter, and what they are worth."""

import os
from typing import Any

# Read by OpenMP when torch loads it. Threads that spin between parallel regions take the cores from every other process: on a machine that
# runs two trainings at once a step is several times slower with the default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """The Python API by name, imported when it is asked for: a training run has no use for it."""
    if name == "TrialManager":
        from synaptune.study.manager import TrialManager

        return TrialManager
    if name == "TrialPruned":
        from synaptune.search.trial import TrialPruned

        return TrialPruned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
