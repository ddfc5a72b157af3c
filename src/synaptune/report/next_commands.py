"""The commands that a report advises, as they fit its study: which there are depends on what made it, their words on where it lies."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.study.reader import STUDIES_ROOT

VALIDATING_PROTOCOLS = ("phase1", "phase2")  # those that end in a validation


class StudyReference(NamedTuple):
    """How a command is told of a study: its name or folder, and the URL of its database where that is elsewhere, else empty."""

    study: str
    storage: str = ""

    @property
    def arguments(self) -> list[str]:
        """The arguments of a command that takes STUDY and --storage URL."""
        return [self.study, *(["--storage", self.storage] if self.storage else [])]


def make_reference(name: str, database: str) -> StudyReference:
    """Where a study is; database: its file, or URL without a password, empty where that is not known."""
    if not database:
        return StudyReference(name)
    if "://" in database:
        return StudyReference(name, database)
    folder, file = Path(database).parent, Path(database).name
    if file != "study.db":
        return StudyReference(name, f"sqlite:///{database}")
    usual = STUDIES_ROOT / name
    return StudyReference(name if folder.parts[-len(usual.parts) :] == usual.parts else str(folder))


def get_reference(evidence: Evidence) -> StudyReference:
    """Where the study of a report is."""
    return make_reference(evidence.name, str(evidence.provenance.get("database") or ""))


def get_configuration(evidence: Evidence) -> Mapping[str, Any]:
    """The study's, flat; empty where it has none."""
    return evidence.provenance.get("configuration") or {}


def get_protocol(evidence: Evidence) -> str | None:
    """The protocol that made the study; null for a sweep, and for a search of another program's model."""
    found = get_configuration(evidence).get("search.protocol")
    return found if found in VALIDATING_PROTOCOLS else None


def is_training_study(evidence: Evidence) -> bool:
    """Whether its runs were `train.py`'s, whose configuration has the synapse's parameters."""
    return any(
        name.startswith("synapse.") for name in (*get_configuration(evidence), *evidence.names)
    )


def format_command(evidence: Evidence, name: str) -> str:
    """A command of `synaptune` on the study."""
    return f"`synaptune {name} {shlex.join(get_reference(evidence).arguments)}`"


def format_resume_command(evidence: Evidence) -> str:
    """Return the protocol's own command on the study."""
    return _format_protocol_command(
        f"sweep-{get_protocol(evidence)}", evidence.name, _locate_study(evidence)
    )


def format_ablation_command(evidence: Evidence) -> str:
    """Return the command of the ablation of the study's optimum."""
    return _format_protocol_command("ablation", evidence.name, _locate_study(evidence))


def format_next_command(evidence: Evidence, target: str) -> str:
    """Return the command of a protocol that starts from the best point of the study."""
    return _format_protocol_command(
        target, None, [f"protocol.start={get_reference(evidence).study}"]
    )


def _locate_study(evidence: Evidence) -> list[str]:
    """Return the overrides that find a study outside of its usual folder."""
    reference = get_reference(evidence)
    overrides = [f"study.dir={reference.study}"] if reference.study != evidence.name else []
    return overrides + ([f"study.storage={reference.storage}"] if reference.storage else [])


def _format_protocol_command(target: str, study: str | None, overrides: Sequence[str]) -> str:
    """Return a target of the Makefile, or `synaptune` where make would split a word."""
    if all(shlex.quote(word) == word for word in (study or "-", *overrides)):
        words = ["make", target, *([f"STUDY={study}"] if study else [])]
        words += [f'ARGS="{" ".join(overrides)}"'] if overrides else []
        return f"`{' '.join(words)}`"
    named = [f"study.name={study}"] if study else []
    return f"`{shlex.join(['synaptune', target.removeprefix('sweep-'), *named, *overrides])}`"
