"""What a study of ours holds, by name: notes of the study, user attributes of its trials, and the version of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.trial import Result

SCHEMA_VERSION = 1

# Notes: user attributes of the study.
CONFIGURATION = "configuration"
VERSION_KEY = "schema_version"
WRITER = "synaptune_version"
HOLDER = "holder"
ENGINE = "engine"

# Beginnings of keys of the configuration: a searched parameter's range, where it began, what a space file fixed.
RANGE_PREFIX = "search.space."
START_PREFIX = "search.start."
FIXED_PREFIX = "search.fixed."

# User attributes of every trial, from its start.
PHASE = "phase"
INDEX = "index"
UNIT = "unit"
GENERATION = "generation"
SEED = "seed"

# User attributes that a trial gets later: reasons of attempts that were given up, extrapolated objective of a pruned trial, its end;
# of a failed one the kind (search/trial.py).
ATTEMPTS = "attempts"
ESTIMATE = "estimate"
SECONDS = "seconds"
FAILURE = "failure"
REASON = "reason"
TRACEBACK = "traceback"

# What only the study and the search write of a trial; by some of these names it is found again.
_RESERVED_NAMES = frozenset(
    {
        *(
            PHASE,
            INDEX,
            UNIT,
            GENERATION,
            SEED,
            ATTEMPTS,
            ESTIMATE,
        ),
        *(
            SECONDS,
            FAILURE,
            REASON,
            TRACEBACK,
            "config_fingerprint",
            "code_version",
        ),
    }
)


def check_schema(notes: Mapping[str, Any], where: str) -> None:
    """Refuse a study that this version cannot continue; notes: those of a study with trials; where: for the message.

    A study with our configuration and without a version is of version 1, which wrote none at first. Raises UserError.
    """
    if CONFIGURATION not in notes:
        raise user_error(
            got=f"study {where}, which another program made: it has trials and no configuration of ours",
            expected="a study of synaptune, or a new name",
            do="set study.name (or study.storage)",
        )
    version = notes.get(VERSION_KEY, SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise user_error(
            got=f"study {where} of schema version {version}, written by synaptune {notes.get(WRITER, '(unknown)')}",
            expected=f"schema version {SCHEMA_VERSION}",
            do="continue it with the synaptune that wrote it, or begin anew under another study.name",
        )


def get_end_state(result: Result) -> str:
    """The state a result gives its trial: `complete`, `pruned` or `failed`."""
    if result.cause is not None:
        return "failed"
    return "pruned" if result.pruned else "complete"


def collect_facts(result: Result) -> dict[str, Any]:
    """What a result adds to its trial's facts; a number that JSON does not have becomes its name.

    Metrics may be of any program: what is no number is left out, and a name that the study needs itself gets `run.` before it.
    """
    facts = {name: value for name, value in result.facts.items() if name not in _RESERVED_NAMES}
    metrics: Any = result.metrics
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        if isinstance(value, int | float):
            facts[f"run.{name}" if name in _RESERVED_NAMES else name] = value
    facts[SECONDS] = result.seconds
    cause = result.cause
    if cause is not None:
        facts |= {
            FAILURE: cause.kind,
            REASON: cause.reason,
            TRACEBACK: cause.trace,
        }
    elif result.pruned and result.estimate is not None:
        facts[ESTIMATE] = result.estimate
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
