"""The commands that a report advises, as they fit its study: which there are depends on what made it, their words on where it lies."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.study.reader import ROOT

PROTOCOLS = ("phase1", "phase2")  # those that end in a validation


class Address(NamedTuple):
    """How a command is told of a study: its name or folder, and the URL of its database where that is elsewhere, else empty."""

    study: str
    storage: str = ""

    @property
    def words(self) -> list[str]:
        """The arguments of a command that takes STUDY and --storage URL."""
        return [self.study, *(["--storage", self.storage] if self.storage else [])]


def address(name: str, database: str) -> Address:
    """Where a study is; database: its file, or URL without a password, empty where that is not known."""
    if not database:
        return Address(name)
    if "://" in database:
        return Address(name, database)
    folder, file = Path(database).parent, Path(database).name
    if file != "study.db":
        return Address(name, f"sqlite:///{database}")
    usual = ROOT / name
    return Address(name if folder.parts[-len(usual.parts) :] == usual.parts else str(folder))


def of(evidence: Evidence) -> Address:
    """Where the study of a report is."""
    return address(evidence.name, str(evidence.provenance.get("database") or ""))


def configuration(evidence: Evidence) -> Mapping[str, Any]:
    """The study's, flat; empty where it has none."""
    return evidence.provenance.get("configuration") or {}


def protocol(evidence: Evidence) -> str | None:
    """The protocol that made the study; null for a sweep, and for a search of another program's model."""
    found = configuration(evidence).get("search.protocol")
    return found if found in PROTOCOLS else None


def trained_here(evidence: Evidence) -> bool:
    """Whether its runs were `train.py`'s, whose configuration has the synapse's parameters."""
    return any(name.startswith("synapse.") for name in (*configuration(evidence), *evidence.names))


def command(evidence: Evidence, name: str) -> str:
    """A command of `synaptune` on the study."""
    return f"`synaptune {name} {shlex.join(of(evidence).words)}`"


def again(evidence: Evidence) -> str:
    """The protocol's own command on the study."""
    place = of(evidence)
    elsewhere = [f"study.dir={place.study}"] if place.study != evidence.name else []
    elsewhere += [f"study.storage={place.storage}"] if place.storage else []
    return _made(f"sweep-{protocol(evidence)}", study=evidence.name, more=elsewhere)


def ablation(evidence: Evidence) -> str:
    """The ablation of the study's optimum."""
    study, *more = of(evidence).words
    return _made("ablation", study=study, more=more)


def onward(evidence: Evidence, target: str) -> str:
    """A protocol that begins where the study ended; it looks for it below the usual folder."""
    return _made(target, more=["--from", of(evidence).study])


def _made(target: str, *, study: str = "", more: Sequence[str] = ()) -> str:
    """A target of the Makefile; where make would split a word, the module behind it."""
    if all(shlex.quote(word) == word for word in (study or "-", *more)):
        parts = [f"STUDY={study}"] if study else []
        return f"`{' '.join(['make', target, *parts, *([_arguments(more)] if more else [])])}`"
    module = target.removeprefix("sweep-")
    return f"`{shlex.join(['python', '-m', f'synaptune.{module}', *(['--study', study] if study else []), *more])}`"


def _arguments(more: Sequence[str]) -> str:
    return f'ARGS="{" ".join(more)}"'
