"""The commands that a report recommends.

Which commands apply depends on the protocol of the study. Their arguments depend on where the study
is stored.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.study.database.connection import make_sqlite_url
from synaptune.study.reader import STUDIES_ROOT

VALIDATING_PROTOCOLS = ("phase1", "phase2")  # protocols that end with a validation


class StudyReference(NamedTuple):
    """The arguments by which a command finds a study.

    Attributes:
        study: name or folder of the study.
        storage: URL of its database; empty for the usual file in the folder.
    """

    study: str
    storage: str = ""

    @property
    def arguments(self) -> list[str]:
        """Arguments of a command that takes STUDY and --storage URL."""
        return [self.study, *(["--storage", self.storage] if self.storage else [])]


def make_reference(name: str, database: str) -> StudyReference:
    """Make the reference of a study.

    Args:
        name: name of the study.
        database: file of its database, or its URL without a password; empty when unknown.
    """
    if not database:
        return StudyReference(name)
    if "://" in database:
        return StudyReference(name, database)
    folder, file = Path(database).parent, Path(database).name
    if file != "study.db":
        return StudyReference(name, make_sqlite_url(Path(database)))
    default = STUDIES_ROOT / name
    is_default = folder.parts[-len(default.parts) :] == default.parts
    return StudyReference(name if is_default else str(folder))


def get_reference(evidence: Evidence) -> StudyReference:
    """Return the reference of a report's study."""
    return make_reference(evidence.name, str(evidence.provenance.get("database") or ""))


def get_configuration(evidence: Evidence) -> Mapping[str, Any]:
    """Return the flat configuration of the study; empty when none is stored."""
    return evidence.provenance.get("configuration") or {}


def get_protocol(evidence: Evidence) -> str | None:
    """Return the protocol of the study; None for a sweep and for another program's search."""
    protocol = get_configuration(evidence).get("search.protocol")
    return protocol if protocol in VALIDATING_PROTOCOLS else None


def is_training_study(evidence: Evidence) -> bool:
    """Return whether the runs are those of `train.py`, which configures the synapse."""
    return any(
        name.startswith("synapse.") for name in (*get_configuration(evidence), *evidence.names)
    )


def format_command(evidence: Evidence, name: str) -> str:
    """Format a command of `synaptune` for the study."""
    return f"`synaptune {name} {shlex.join(get_reference(evidence).arguments)}`"


def format_protocol_command(evidence: Evidence, target: str) -> str:
    """Format the command of a protocol on the study."""
    reference = get_reference(evidence)
    overrides = [f"study.dir={reference.study}"] if reference.study != evidence.name else []
    overrides += [f"study.storage={reference.storage}"] if reference.storage else []
    return _format_make_command(target, evidence.name, overrides)


def format_next_command(evidence: Evidence, target: str) -> str:
    """Format the command of a protocol that starts from the best point of the study."""
    overrides = [f"protocol.start={get_reference(evidence).study}"]
    return _format_make_command(target, None, overrides)


def _format_make_command(target: str, study: str | None, overrides: Sequence[str]) -> str:
    """Format a target of the Makefile, or `synaptune` where make would split a word."""
    if all(shlex.quote(word) == word for word in (study or "-", *overrides)):
        words = ["make", target, *([f"STUDY={study}"] if study else [])]
        words += [f'ARGS="{" ".join(overrides)}"'] if overrides else []
        return f"`{' '.join(words)}`"
    named = [f"study.name={study}"] if study else []
    return f"`{shlex.join(['synaptune', target.removeprefix('sweep-'), *named, *overrides])}`"
