"""What a study of ours holds, by name: notes of the study, user attributes of its trials, and the version of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synaptune.core.errors import user_error

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
