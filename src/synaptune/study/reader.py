"""A whole study read from its database, without holding it: what analysis, reports and dashboards work on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.optimizers.base import Engine
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial, get_loss
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    add_driver,
    close_storage,
    get_sqlite_path,
    open_storage,
    redact_url,
)
from synaptune.study.database.errors import as_user_errors, check_readable
from synaptune.study.database.rows import filter_phase, read_details, read_trials

STUDIES_ROOT = Path("outputs/studies")
SEARCH, BASELINE, VALIDATION, ABLATION, REFERENCE = (
    "search",
    "baseline",
    "validation",
    "ablation",
    "reference",
)
# Phases of a protocol that make runs and search nothing.
GATES, JOINT = (
    "gates",
    "joint",
)  # phases of phase 2; the first is also the note with what was decided there
_NO_SEARCH = ("sanity", BASELINE, VALIDATION, ABLATION, REFERENCE, "incumbents", "transfer")
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class StudySnapshot:
    """A study at one moment.

    name, url: where it is; configuration: flat, everything that made its trials comparable; notes: its user attributes;
    trials: all of them by number; began, ended: their times on the clock of the controller, by number (a running trial has no end);
    curves: reported values by step, by number; spaces: what each phase moved in.
    """

    name: str
    url: str
    maximize: bool
    configuration: Mapping[str, Any]
    notes: Mapping[str, Any]
    trials: Sequence[Trial]
    start_times: Mapping[int, datetime]
    end_times: Mapping[int, datetime]
    curves: Mapping[int, Mapping[int, float]]
    spaces: Mapping[str, Space]

    def get_phase_trials(self, name: str) -> list[Trial]:
        """The trials of a phase, by index."""
        return filter_phase(self.trials, name)

    @property
    def searches(self) -> list[str]:
        """The phases in which an optimizer searched, in their order; the last one is what the study is about."""
        phases = dict.fromkeys(trial.facts.get(schema.PHASE, SEARCH) for trial in self.trials)
        return [phase for phase in phases if is_search(phase)]

    @property
    def search_trials(self) -> list[Trial]:
        """The trials of the last search; empty when none has begun."""
        return self.get_phase_trials(self.searches[-1]) if self.searches else []

    @property
    def engine(self) -> Engine | None:
        """What determined the optimizer's sequence; null for a study that has not begun to search."""
        stored = self.notes.get(schema.ENGINE)
        return None if stored is None else Engine(**stored)

    def get_loss(self, trial: Trial) -> float | None:
        """What the search was told, of a pruned trial its estimate; null for a failed or running trial."""
        return get_loss(trial, self.maximize)

    def get_complete_loss(self, trial: Trial) -> float | None:
        """What a trial reached, less is better; null unless complete: an estimate is no result."""
        return self.get_loss(trial) if trial.state == "complete" else None


def is_search(phase: str) -> bool:
    """Whether an optimizer proposed the trials of a phase."""
    return phase not in _NO_SEARCH and not phase.startswith("gate")


def read_study(url: str, name: str | None = None, *, prefer: str | None = None) -> StudySnapshot:
    """A study as it stands; its search may go on meanwhile.

    name: null is the only study of the database, or among several the one named `prefer`.
    Raises UserError: no such database or study, or a study of another program or version.
    """
    url = add_driver(url)
    path = get_sqlite_path(url)
    if path is not None and not path.exists():
        raise user_error(
            got=f"no study database {path}",
            expected="a study that has begun",
            do="check its name, or give --storage URL",
        )
    with as_user_errors(url):
        if path is not None:
            check_readable(path)
        storage = open_storage(url, "read")
        try:
            studies = {study.study_name: study for study in storage.get_all_studies()}
            study = studies[_choose(sorted(studies), name, prefer=prefer, where=redact_url(url))]
            key = storage.get_study_id_from_name(study.study_name)
            where = f"{study.study_name} in {redact_url(url)}"
            if schema.CONFIGURATION in study.user_attrs or storage.get_n_trials(key) > 0:
                schema.check_schema(study.user_attrs, where)
            if len(study.directions) > 1:
                raise user_error(
                    got=f"study {where} of several objectives",
                    expected="a study of ours, of one",
                    do="choose another",
                )
            trials = read_trials(storage, key, where)
            details = read_details(storage, key)
        finally:
            close_storage(storage)
    notes = dict(study.user_attrs)
    configuration = notes.pop(schema.CONFIGURATION, {})
    return StudySnapshot(
        name=study.study_name,
        url=url,
        maximize=study.direction.name == "MAXIMIZE",
        configuration=configuration,
        notes=notes,
        trials=trials,
        start_times=details.start_times,
        end_times=details.end_times,
        curves=details.curves,
        spaces=_build_spaces(trials, details.distributions, configuration),
    )


def find_study(
    study: str, storage: str | None = None, *, root: Path = STUDIES_ROOT
) -> StudySnapshot:
    """A study given as a name below root, as a folder, or with its storage URL as the name there; raises UserError."""
    if storage is not None:
        return read_study(storage, study)
    folder = get_study_folder(study, root=root)
    return read_study(f"sqlite:///{folder}/study.db", prefer=folder.resolve().name)


def get_study_folder(study: str, *, root: Path = STUDIES_ROOT) -> Path:
    """The folder of a study given as a name below root or as a folder."""
    return Path(study) if Path(study).is_dir() else root / study


def _choose(names: Sequence[str], name: str | None, *, prefer: str | None, where: str) -> str:
    wanted = name or (names[0] if len(names) == 1 else prefer)
    if wanted is not None and wanted in names:
        return wanted
    known = (
        ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "") or "none"
    )
    raise user_error(
        got=f"no study {wanted or 'chosen'} in {where}",
        expected=f"one of its studies: {known}",
        do="give its name with --storage URL",
    )


def _build_spaces(
    trials: Sequence[Trial],
    distributions: Mapping[int, Mapping[str, str]],
    configuration: Mapping[str, Any],
) -> dict[str, Space]:
    """The space of each phase, as its first trial tells it; a search began there too."""
    spaces: dict[str, Space] = {}
    for trial in sorted(trials, key=lambda trial: trial.index):
        phase = trial.facts.get(schema.PHASE, SEARCH)
        if phase not in spaces and trial.values:
            stored, dimensions = distributions[trial.number], []
            for (name, value), unit in zip(trial.values.items(), trial.unit, strict=True):
                # The middle is where a dimension without a start begins; the coordinate of its rounded value would be another.
                start = None if unit == 0.5 else value
                described = str(configuration.get(f"{schema.RANGE_PREFIX}{name}", ""))
                dimensions.append(
                    _build_dimension(
                        name, json.loads(stored[name]), start=start, described=described
                    )
                )
            spaces[phase] = Space(tuple(dimensions))
    return spaces


def _build_dimension(
    name: str, stored: Mapping[str, Any], *, start: Any, described: str
) -> Dimension:
    """A dimension from Optuna's description of it; weights of choices are in ours alone."""
    about = stored["attributes"]
    if stored["name"] == "CategoricalDistribution":
        _, _, weights = described.partition(" weights ")
        return Dimension(
            name,
            "categorical",
            choices=tuple(about["choices"]),
            start=start,
            weights=tuple(json.loads(weights or "[]")),
        )
    return Dimension(
        name,
        "log" if about["log"] else "lin",
        float(about["low"]),
        float(about["high"]),
        integer=stored["name"] == "IntDistribution",
        start=start,
    )
