"""Points that a user enqueues in a study, and finished trials that come from elsewhere.

An enqueued point is a note of the study, so that it can be written while another process runs the
study. The search gives it the next index, and stores its key as a fact of the trial in the same
transaction. A point is open as long as no trial has its key, and a kill neither loses nor repeats
one.

Imported trials are trials of the phase `imported`. They have ended, have the fact `source`, and
belong to no search: they count neither as evaluations nor as runs with the seeds of the study. The
optimizer of the next search over the same parameters learns them between two generations.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from synaptune.core.errors import UserError, suggest, user_error
from synaptune.search.inbox import EnqueuedPoint, Inbox
from synaptune.search.optimizers.base import Observation
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import Value, is_same, to_plain
from synaptune.search.trial import ENQUEUED, Trial, TrialStatus, get_loss
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import add_driver, close_storage, open_storage
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.rows import create_finished_trials
from synaptune.study.study import PhaseLedger

_QUEUE_PREFIX = "enqueued:"


class ImportedTrial(NamedTuple):
    """A finished trial of another program or study.

    Attributes:
        values: the searched parameters by name.
        state: `complete`, `pruned` or `failed`.
        objective: the objective of a complete trial, the estimate of a pruned one, else None.
        source: where the trial comes from.
        number: its number there; None if it has none.
    """

    values: Mapping[str, Value]
    state: TrialStatus
    objective: float | None
    source: str
    number: int | None = None


class ImportCounts(NamedTuple):
    """What an import did.

    Attributes:
        added: number of stored trials.
        known: number of trials that the study already had.
        outside: number of trials outside the ranges of the study.
    """

    added: int
    known: int
    outside: int


def complete_point(space: Space, params: Mapping[str, Any]) -> dict[str, Value]:
    """Return the point that is evaluated for some values; the others get their start value.

    Args:
        space: the search space.
        params: values by name.

    Raises:
        UserError: names every unknown parameter, and every value outside its range.
    """
    by_name = {dimension.name: dimension for dimension in space.dimensions}
    faults = [
        f"{name}: no searched parameter{suggest(name, by_name)}"
        for name in params
        if name not in by_name
    ]
    given = {name: _to_plain(name, value) for name, value in params.items() if name in by_name}
    faults += [
        f"{name}={value!r}: expected {by_name[name].describe()}"
        for name, value in given.items()
        if not _fits(by_name[name], value)
    ]
    if not params:
        faults.append("no parameter: give at least one as NAME=VALUE")
    if faults:
        raise UserError(
            "got a point that is not in the search space\n  "
            + "\n  ".join(faults)
            + f"\n  expected: values of {', '.join(by_name)}\n  to do: correct them"
        )
    start = space.to_values(space.get_start())
    return space.to_values(space.to_unit({**start, **given}))


def _to_plain(name: str, value: Any) -> Value:
    try:
        return to_plain(value)
    except TypeError as error:
        raise user_error(
            got=f"{name}: {error}", expected="a value that YAML has", do=f"correct {name}"
        ) from error


def _fits(dimension: Dimension, value: Value) -> bool:
    """Return whether a dimension has a value; a float may have more digits than are searched."""
    if not dimension.contains(value):
        return False
    return not dimension.integer or dimension.to_value(dimension.to_unit(value)) == value


def find_duplicate(
    values: Mapping[str, Value], trials: Iterable[Trial], notes: Mapping[str, Any], phase: str
) -> str | None:
    """Return what a study already has at a point, for a message; None if it has nothing there.

    Args:
        values: the point.
        trials: trials of the search.
        notes: notes of the study.
        phase: phase of the search.
    """
    trials = list(trials)
    for trial in trials:
        if is_same(trial.values, dict(values)):
            result = "" if trial.objective is None else f", objective {trial.objective:.6g}"
            return f"trial {trial.number} has this point ({trial.state}{result})"
    is_open = any(is_same(point, dict(values)) for _, point in _list_open(notes, phase, trials))
    return "the point is enqueued already" if is_open else None


def _list_open(
    notes: Mapping[str, Any], phase: str, trials: Iterable[Trial]
) -> list[tuple[str, dict[str, Value]]]:
    """Return key and values of the points that no trial of the search has, oldest first."""
    prefix = f"{_QUEUE_PREFIX}{phase}:"
    keys = sorted(key for key in notes if key.startswith(prefix))
    used = {trial.facts.get(ENQUEUED) for trial in trials} if keys else set()
    return [(key, notes[key]) for key in keys if key not in used]


def count_open(notes: Mapping[str, Any], phase: str, trials: Iterable[Trial]) -> int:
    """Return the number of enqueued points that the search has not started."""
    return len(_list_open(notes, phase, trials))


@dataclass(frozen=True)
class StudyAddress:
    """A study in its database; adding to it needs no lock of the study.

    Attributes:
        url: URL of the database.
        name: name of the study there.
    """

    url: str
    name: str

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, int]]:
        with as_user_errors(add_driver(self.url)):
            storage = open_storage(self.url, "join")
            try:
                yield storage, storage.get_study_id_from_name(self.name)
            finally:
                close_storage(storage)

    def write_note(self, key: str, value: Any) -> None:
        """Store a note (any JSON)."""
        with self._open() as (storage, study):
            storage.set_study_user_attr(study, key, value)

    def enqueue(self, phase: str, values: Mapping[str, Value]) -> None:
        """Store a point that the next search of a phase evaluates first."""
        # The names sort by time; the ending keeps the points of two processes apart.
        key = f"{_QUEUE_PREFIX}{phase}:{time.time_ns():020d}-{secrets.token_hex(3)}"
        with self._open() as (storage, study):
            storage.set_study_user_attr(study, key, dict(values))

    def import_trials(
        self, space: Space, trials: Sequence[ImportedTrial], known: Iterable[Trial]
    ) -> ImportCounts:
        """Store finished trials in one transaction.

        Args:
            space: space of the search that is to learn them.
            trials: the trials. Those outside the space, and those that the study has, are left out.
            known: trials of the study.
        """
        inside = [
            trial
            for trial in trials
            if all(_fits(dimension, trial.values[dimension.name]) for dimension in space.dimensions)
        ]
        seen = {_make_identity(trial.values, trial.objective, trial.estimate) for trial in known}
        rows = []
        for trial in inside:
            row = _make_trial(space, trial, len(rows))
            identity = _make_identity(row.values, row.objective, row.estimate)
            if identity not in seen:
                seen.add(identity)
                rows.append(row)
        if rows:
            with self._open() as (storage, study):
                create_finished_trials(storage, study, space=space, trials=rows)
        return ImportCounts(len(rows), len(inside) - len(rows), len(trials) - len(inside))


def _make_identity(values: Mapping[str, Value], *results: float | None) -> str:
    return repr((sorted((name, repr(value)) for name, value in values.items()), results))


def _make_trial(space: Space, trial: ImportedTrial, index: int) -> Trial:
    unit = space.to_unit(trial.values)
    facts: dict[str, Any] = {schema.PHASE: schema.IMPORTED, schema.SOURCE: trial.source}
    if trial.number is not None:
        facts[schema.SOURCE_NUMBER] = trial.number
    values = space.to_values(unit)
    made = Trial(-1, index, unit, values, trial.state, facts=facts)
    if trial.state == "pruned":
        return replace(made, estimate=trial.objective)
    if trial.state == "complete":
        return replace(made, objective=trial.objective)
    return replace(made, facts=facts | {schema.REASON: "failed in its source"})


class PendingAdditions:
    """The additions of a program, which wait until it opens its study."""

    def __init__(self) -> None:
        self._points: list[tuple[Mapping[str, Any], bool]] = []
        self._trials: list[ImportedTrial] = []
        self._target: tuple[PhaseLedger, StudyAddress] | None = None

    def add_point(self, params: Mapping[str, Any], *, skip_if_exists: bool) -> None:
        """Enqueue a point, now or when the study is open."""
        self._points.append((params, skip_if_exists))
        self._store()

    def add_trial(self, trial: ImportedTrial) -> None:
        """Import a trial, now or when the study is open."""
        self._trials.append(trial)
        self._store()

    def check(self, space: Space) -> None:
        """Raise UserError for a point or trial that is not in the space."""
        for params in (
            *(params for params, _ in self._points),
            *(trial.values for trial in self._trials),
        ):
            complete_point(space, params)

    @contextlib.contextmanager
    def open(self, ledger: PhaseLedger) -> Iterator[None]:
        """Store the additions in an open study, and later ones at once inside the block."""
        location = ledger.study.location
        self._target = ledger, StudyAddress(location.url, location.name)
        try:
            self._store()
            yield
        finally:
            self._target = None

    def _store(self) -> None:
        if self._target is None or not (self._points or self._trials):
            return
        ledger, address = self._target
        points, self._points = self._points, []
        trials, self._trials = self._trials, []
        for params, skip_if_exists in points:
            values = complete_point(ledger.space, params)
            notes = ledger.study.read_notes()
            exists = find_duplicate(values, ledger.read_trials(), notes, ledger.phase)
            if not (skip_if_exists and exists):
                address.enqueue(ledger.phase, values)
        if trials:
            full = [
                trial._replace(values=complete_point(ledger.space, trial.values))
                for trial in trials
            ]
            known = ledger.study.read_trials(schema.IMPORTED)
            address.import_trials(ledger.space, full, known)


def observe_imported(space: Space, trials: Iterable[Trial], *, maximize: bool) -> list[Observation]:
    """Return what an optimizer learns of imported trials: those over its own parameters."""
    return [
        Observation(space.to_unit(trial.values), get_loss(trial, maximize), is_asked=False)
        for trial in trials
        if trial.values.keys() == set(space.names)
    ]


class StudyInbox(Inbox):
    """The additions to one search of a study."""

    def __init__(self, ledger: PhaseLedger, on_message: Callable[[str], None], *, maximize: bool):
        self._ledger, self._on_message, self._maximize = ledger, on_message, maximize
        self._refused: set[str] = set()
        self._count, self._imported = 0, []

    def find_point(self, trials: Sequence[Trial]) -> EnqueuedPoint | None:
        """Return the oldest point that none of the trials of the search has, or None."""
        ledger = self._ledger
        for key, values in _list_open(ledger.study.read_notes(_QUEUE_PREFIX), ledger.phase, trials):
            if key in self._refused:
                continue
            try:
                point = complete_point(ledger.space, values)
            except UserError as error:  # the command has another space than the study had
                self._refused.add(key)
                self._on_message(f"an enqueued point is left out: {error}")
                continue
            return EnqueuedPoint(key, ledger.space.to_unit(point))
        return None

    def read_imported(self, first: int = 0) -> Sequence[Observation]:
        """Return the imported trials over the parameters of the search, from a position on."""
        study, space = self._ledger.study, self._ledger.space
        count = study.read_notes(schema.IMPORTED).get(schema.IMPORTED, 0)
        if count != self._count:
            self._count = count
            trials = study.read_trials(schema.IMPORTED)
            self._imported = observe_imported(space, trials, maximize=self._maximize)
        return self._imported[first:]
