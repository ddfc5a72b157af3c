"""Synaptune: search the biological constants of a synaptic transformer and measure their effect."""

import os
import sys
from typing import Any

from synaptune.core import errors
from synaptune.core.errors import UserError as UserError

# OpenMP reads this when torch loads it. By default, threads spin between parallel regions and take
# the cores from other processes: a step is several times slower on a machine that runs two
# trainings at once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.modules[f"{__name__}.errors"] = errors  # `from synaptune.errors import UserError`


def __getattr__(name: str) -> Any:
    """Import a name of the Python API on first use, because a training run does not need it."""
    if name in ("TrialManager", "HPOTrialManager"):
        from synaptune.study.manager import TrialManager

        return TrialManager
    if name == "LightningTrial":
        from synaptune.study.lightning_trial import LightningTrial

        return LightningTrial
    if name == "HyperparameterSearcher":
        from synaptune.protocols.hyperparameter_searcher import HyperparameterSearcher

        return HyperparameterSearcher
    if name == "BiostatisV6":
        from synaptune.training.biostatis import BiostatisV6

        return BiostatisV6
    if name == "TrialPruned":
        from synaptune.search.trial import TrialPruned

        return TrialPruned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
