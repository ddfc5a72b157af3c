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
    """The protocol's own command on the study."""
    place = get_reference(evidence)
    elsewhere = [f"study.dir={place.study}"] if place.study != evidence.name else []
    elsewhere += [f"study.storage={place.storage}"] if place.storage else []
    return _format_make_command(
        f"sweep-{get_protocol(evidence)}", study=evidence.name, more=elsewhere
    )


def format_ablation_command(evidence: Evidence) -> str:
    """The ablation of the study's optimum."""
    study, *more = get_reference(evidence).arguments
    return _format_make_command("ablation", study=study, more=more)


def format_next_command(evidence: Evidence, target: str) -> str:
    """A protocol that begins where the study ended; it looks for it below the usual folder."""
    return _format_make_command(target, more=["--from", get_reference(evidence).study])


def _format_make_command(target: str, *, study: str = "", more: Sequence[str] = ()) -> str:
    """A target of the Makefile; where make would split a word, the module behind it."""
    if all(shlex.quote(word) == word for word in (study or "-", *more)):
        parts = [f"STUDY={study}"] if study else []
        return (
            f"`{' '.join(['make', target, *parts, *([_format_arguments(more)] if more else [])])}`"
        )
    module = target.removeprefix("sweep-")
    return f"`{shlex.join(['python', '-m', f'synaptune.{module}', *(['--study', study] if study else []), *more])}`"


def _format_arguments(more: Sequence[str]) -> str:
    return f'ARGS="{" ".join(more)}"'
