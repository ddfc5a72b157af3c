"""Reading of a study from its database without locking it, for analysis, reports and dashboards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.files import make_absolute
from synaptune.search.optimizers.base import Engine
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import decode_choice
from synaptune.search.trial import ENQUEUED, Trial, get_loss, is_partial
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    add_driver,
    close_storage,
    get_sqlite_path,
    make_sqlite_url,
    open_storage,
    redact_url,
)
from synaptune.study.database.errors import as_user_errors, check_readable
from synaptune.study.database.rows import filter_phase, read_details, read_trials
from synaptune.study.state import SearchPlan, State, find_state, parse_holder, read_search_plan

STUDIES_ROOT = Path("outputs/studies")
SEARCH, BASELINE, INCUMBENTS, VALIDATION, ABLATION, REFERENCE = (
    "search",
    "baseline",
    "incumbents",
    "validation",
    "ablation",
    "reference",
)
TEST = "test"  # phase of an image study: its best on fresh seeds with the test split
# Phases of phase 2; the first is also the note with the decisions of the gates.
GATES, JOINT = ("gates", schema.JOINT)
RECOMMENDED = "recommended"  # note: trial of each phase that search.recommend=posterior chose
REPEATS = "repeats"  # note: the spread of repeated searches (analysis/repeats.py)
REGIMES = "regimes"  # note: gains of the mechanisms in their tasks (analysis/regimes.py)
# The phase of a screening, and the note with its result.
SCREEN, SCREENING = "screen", "screening"
# Phases of trials without a search.
# fmt: off
_NO_SEARCH = (
    "sanity", SCREEN, BASELINE, INCUMBENTS, VALIDATION, ABLATION, REFERENCE, TEST, "transfer",
    schema.IMPORTED,
)
# fmt: on
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class StudySnapshot:
    """A study at one moment.

    Attributes:
        name: name of the study.
        url: URL of the database.
        maximize: whether larger objectives are better.
        configuration: flat configuration, which all trials of the study share.
        notes: user attributes of the study.
        trials: all trials by number.
        start_times: start of each trial by number, on the clock of the controller.
        end_times: end of each ended trial by number, on the clock of the controller.
        curves: reported values by step, for each trial number.
        spaces: search space of each phase.
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
        """Return the trials of a phase, ordered by index."""
        return filter_phase(self.trials, name)

    @property
    def searches(self) -> list[str]:
        """Phases in which an optimizer searched, in order. The last one is the main search."""
        phases = dict.fromkeys(trial.facts.get(schema.PHASE, SEARCH) for trial in self.trials)
        return [phase for phase in phases if is_search(phase)]

    @property
    def search_trials(self) -> list[Trial]:
        """Trials of the last search; empty if no search has started."""
        return self.get_phase_trials(self.searches[-1]) if self.searches else []

    @property
    def whole_runs(self) -> list[Trial]:
        """Trials of the last search without those that trained a slice before the last."""
        return [trial for trial in self.search_trials if not is_partial(trial)]

    @property
    def plan(self) -> SearchPlan:
        """Plan of the last search."""
        phase = self.searches[-1] if self.searches else SEARCH
        return read_search_plan(self.notes, self.configuration, phase, self._ended_count)

    @property
    def state(self) -> State:
        """State of the study at this moment."""
        open_count = sum(trial.state == "running" for trial in self.trials)
        holder, ended = parse_holder(self.notes), self._ended_count
        return find_state(holder, self.plan, ended=ended, open_count=open_count)

    @property
    def _ended_count(self) -> int:
        return sum(trial.state != "running" for trial in self.search_trials)

    @property
    def engine(self) -> Engine | None:
        """Engine of the optimizer; None if no search has started."""
        stored = self.notes.get(schema.ENGINE)
        return None if stored is None else Engine(**stored)

    def get_loss(self, trial: Trial) -> float | None:
        """Return the loss of a whole run that the optimizer learned, or None for a failed trial.

        For a pruned trial it is the estimate. A running trial has none, nor has one that trained a
        slice before the last.
        """
        return None if is_partial(trial) else get_loss(trial, self.maximize)

    def get_complete_loss(self, trial: Trial) -> float | None:
        """Return the loss of a complete trial, or None for any other trial."""
        return self.get_loss(trial) if trial.state == "complete" else None


def is_search(phase: str) -> bool:
    """Return whether an optimizer proposed the trials of a phase."""
    return phase not in _NO_SEARCH and not phase.startswith("gate")


def read_study(url: str, name: str | None = None, *, prefer: str | None = None) -> StudySnapshot:
    """Read a study in its present state; its search can be running.

    Args:
        url: URL of the database.
        name: name of the study; None means the only study of the database.
        prefer: name of the study to read if `name` is None and the database has several studies.

    Raises:
        UserError: the database or study does not exist, or another program or version wrote it.
    """
    url = add_driver(url)
    path = get_sqlite_path(url)
    if path is not None and not path.exists():
        raise user_error(
            got=f"no study database {path}",
            expected="a study that has started",
            do="check its name, or pass --storage URL",
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
                    got=f"study {where} with several objectives",
                    expected="a study of synaptune, with one objective",
                    do="choose another study",
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


def identify_trials(trials: Sequence[Trial]) -> list[int]:
    """Return what tells the complete trials of a search from those of an earlier moment."""
    return [trials[-1].number, len(trials)]


def get_recommendation(stored: Any, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Return the choice of the note RECOMMENDED for a search; None if the search has gone on.

    Args:
        stored: the note, or None.
        trials: the complete trials of the search, at least one.
    """
    choice = (stored or {}).get(trials[-1].facts[schema.PHASE])
    return choice if choice is not None and choice["of"] == identify_trials(trials) else None


def find_study(
    study: str, storage: str | None = None, *, root: Path = STUDIES_ROOT
) -> StudySnapshot:
    """Read a study by its name or folder.

    Args:
        study: name of a study below `root`, or its folder; with `storage` the name in that
            database.
        storage: URL of the database; None means the SQLite file in the folder.
        root: folder of the studies.

    Raises:
        UserError: the study does not exist or cannot be read.
    """
    if storage is not None:
        return read_study(storage, study)
    folder = get_study_folder(study, root=root)
    return read_study(make_sqlite_url(folder / "study.db"), prefer=folder.resolve().name)


def get_study_folder(study: str, *, root: Path = STUDIES_ROOT) -> Path:
    """Return the folder of a study, which is given as a name below `root` or as a folder.

    Raises:
        UserError: no folder can have this name.
    """
    if not study:  # Path("") is the working folder
        raise user_error(
            got="an empty name of a study",
            expected="a name below outputs/studies, or a folder",
            do="give one; `synaptune list` shows them",
        )
    make_absolute(study)
    return Path(study) if Path(study).is_dir() else root / study


def _choose(names: Sequence[str], name: str | None, *, prefer: str | None, where: str) -> str:
    choice = name or (names[0] if len(names) == 1 else prefer)
    if choice is not None and choice in names:
        return choice
    known = (
        ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "") or "none"
    )
    raise user_error(
        got=f"no study {choice or 'chosen'} in {where}",
        expected=f"one of its studies: {known}",
        do="pass its name with --storage URL",
    )


def _build_spaces(
    trials: Sequence[Trial],
    distributions: Mapping[int, Mapping[str, str]],
    configuration: Mapping[str, Any],
) -> dict[str, Space]:
    """Return the space of each phase from its first trial, where the search also started."""
    spaces: dict[str, Space] = {}
    # An enqueued point is no start.
    for trial in sorted(trials, key=lambda trial: (ENQUEUED in trial.facts, trial.index)):
        phase = trial.facts.get(schema.PHASE, SEARCH)
        if phase not in spaces and trial.values:
            # A dimension without a start starts at the middle. The coordinate of its rounded value
            # would differ, so a value at the middle is not a start.
            dimensions = (
                _build_dimension(
                    name,
                    json.loads(distributions[trial.number][name]),
                    value=value,
                    is_middle=unit == 0.5 or ENQUEUED in trial.facts,
                    described=str(configuration.get(f"{schema.RANGE_PREFIX}{name}", "")),
                )
                for (name, value), unit in zip(trial.values.items(), trial.unit, strict=True)
            )
            spaces[phase] = Space(tuple(dimensions))
    phases = {trial.facts.get(schema.PHASE, SEARCH) for trial in trials}
    return {phase: Space(()) for phase in phases} | spaces  # empty: of a trial without parameters


def _build_dimension(
    name: str, stored: Mapping[str, Any], *, value: Any, is_middle: bool, described: str
) -> Dimension:
    """Build a dimension from its Optuna distribution.

    The weights of choices and the scale `decay` are taken from the configuration, since Optuna does
    not store them.
    """
    attributes = stored["attributes"]
    if stored["name"] == "CategoricalDistribution":
        choices = tuple(map(decode_choice, attributes["choices"]))
        start = None if is_middle and None not in choices else value
        dimension = Dimension(name, "categorical", choices=choices, start=start)
        head, separator, weights = described.rpartition(" weights ")
        if not separator or head != dimension.describe():
            return dimension
        return replace(dimension, weights=tuple(json.loads(weights)))
    plain = "decay" if described.startswith("decay ") else "lin"
    return Dimension(
        name,
        "log" if attributes["log"] else plain,
        float(attributes["low"]),
        float(attributes["high"]),
        integer=stored["name"] == "IntDistribution",
        start=None if is_middle else value,
        step=(attributes.get("step") or 1) if stored["name"] == "IntDistribution" else 1,
    )
