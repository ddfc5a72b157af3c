"""Keys of the data that Synaptune stores in a study, and the version of this schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.trial import ENQUEUED, LEARNED, Result, Trial
from synaptune.search.trial import PHASE as PHASE
from synaptune.search.trial import PROCESS as PROCESS

SCHEMA_VERSION = 1

# Notes: user attributes of the study.
CONFIGURATION = "configuration"
VERSION_KEY = "schema_version"
WRITER = "synaptune_version"
HOLDER = "holder"
ENGINE = "engine"
PARAMETERS = "parameters"  # names of the searched parameters in the order of the coordinates
# By phase: the budget of the latest command, and why a search stopped before it (study/state.py).
SEARCHES = "searches"
IMPORTED = "imported"  # number of the imported trials, and their phase (study/additions.py)
ARCHIVED = "synaptune:archived"  # whether lists of studies hide the study

# Phase of the last search of phase 2.
JOINT = "joint"

# Prefixes of configuration keys: the range of a searched parameter, its start value, and the values
# that a search-space file fixes.
RANGE_PREFIX = "search.space."
START_PREFIX = "search.start."
FIXED_PREFIX = "search.fixed."

# User attributes of every trial, written at its start.
INDEX = "index"
UNIT = "unit"
GENERATION = "generation"
SEED = "seed"

# Of a trial whose runs are shorter or longer than those of the study: steps and validations.
RUN_STEPS = "run_steps"
RUN_EVALUATIONS = "run_evaluations"

# User attributes of an imported trial: where it comes from, and its number there.
SOURCE = "source"
SOURCE_NUMBER = "source_number"

# User attributes that are written later: the reasons of lost attempts, the extrapolated objective
# of a pruned trial, and the end of the trial; for a failed one also the kind of failure
# (search/trial.py).
ATTEMPTS = "attempts"
ESTIMATE = "estimate"
SECONDS = "seconds"
FAILURE = "failure"
REASON = "reason"
TRACEBACK = "traceback"

# Attributes that only the study and the search write; some of them identify a trial.
# fmt: off
_RESERVED_NAMES = frozenset({
    PHASE, INDEX, UNIT, GENERATION, SEED, PROCESS, ATTEMPTS, ESTIMATE, SECONDS, FAILURE, REASON,
    TRACEBACK, SOURCE, ENQUEUED, LEARNED, "config_fingerprint", "code_version",
})
# fmt: on


def check_schema(notes: Mapping[str, Any], where: str) -> None:
    """Refuse a study that this version of Synaptune cannot continue.

    A study with a configuration but without a version has version 1, whose first releases stored
    none.

    Args:
        notes: notes of a study with trials.
        where: name of the study, for the message.

    Raises:
        UserError: another program or an incompatible version wrote the study.
    """
    if CONFIGURATION not in notes:
        raise user_error(
            got=f"study {where}, which another program made: "
            "it has trials but no configuration of synaptune",
            expected="a study of synaptune, or a new name",
            do="set study.name (or study.storage)",
        )
    version = notes.get(VERSION_KEY, SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise user_error(
            got=f"study {where} of schema version {version}, "
            f"written by synaptune {notes.get(WRITER, '(unknown)')}",
            expected=f"schema version {SCHEMA_VERSION}",
            do="continue it with the version of synaptune that wrote it, "
            "or start a new study under another study.name",
        )


def get_slot(trial: Trial) -> int:
    """Return the slot of the process that runs a trial; 0 if the study cannot be shared."""
    return trial.facts.get(PROCESS, 0)


def get_end_state(result: Result) -> str:
    """Return the final state of a trial with this result: `complete`, `pruned` or `failed`."""
    if result.cause is not None:
        return "failed"
    return "pruned" if result.pruned else "complete"


def collect_facts(result: Result) -> dict[str, Any]:
    """Return the facts that a result adds to its trial.

    A non-finite number becomes a string, because JSON has no such number. Metrics can come from any
    program: a metric that is not a number is left out, and a reserved name gets the prefix `run.`.
    """
    facts = {name: value for name, value in result.facts.items() if name not in _RESERVED_NAMES}
    metrics: Any = result.metrics
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        if isinstance(value, int | float):
            facts[f"run.{name}" if name in _RESERVED_NAMES else name] = value
    facts[SECONDS] = result.seconds
    cause = result.cause
    if cause is not None:
        facts |= {FAILURE: cause.kind, REASON: cause.reason, TRACEBACK: cause.trace}
    elif result.pruned and result.estimate is not None:
        facts[ESTIMATE] = result.estimate
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
