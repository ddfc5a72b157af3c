"""A study in its database, stored through Optuna.

A trial is stored as running in one transaction before it starts, and its result in another one. One
Optuna study contains all phases (`search`, and in a protocol `sanity`, `baseline`, `validation`); a
user attribute of the trial names its phase. All calls are repeated during a restart of the database
server, and are applied once, however often they are repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.files import make_folder
from synaptune.search.objective.score import get_objective_label
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.space.values import Value, is_same
from synaptune.search.trial import Result, Trial
from synaptune.study.database import keys as schema
from synaptune.study.database import rows as records
from synaptune.study.database.connection import (
    add_driver,
    close_storage,
    get_sqlite_path,
    open_storage,
    redact_url,
)
from synaptune.study.database.errors import (
    as_user_errors,
    check_kept,
    check_readable,
    make_configuration_error,
)
from synaptune.study.database.lease import StudyLease
from synaptune.study.database.locks import STUDY_HEARTBEAT_INTERVAL, Holder
from synaptune.study.database.retry import OPENING_RETRY_TIMEOUT, RETRY_TIMEOUT, Retry
from synaptune.study.location import StudyLocation
from synaptune.study.mirror import make_mirror
from synaptune.study.provenance import get_code_version
from synaptune.study.state import State


class Study:
    """One study, which this process holds until `close`, exclusively or shared with others.

    It is a context manager and can be used by several threads.
    """

    def __init__(
        self,
        location: StudyLocation,
        configuration: Mapping[str, Any],
        *,
        maximize: bool = False,
        defaults: Mapping[str, Any] | None = None,
        references: Mapping[str, Mapping[str, Any]] | None = None,
        retry_timeout: float = RETRY_TIMEOUT,
        shared: bool = False,
    ) -> None:
        """Open or create a study.

        Args:
            location: location of the study.
            configuration: flat, plain values that all comparable results share.
            maximize: whether larger objectives are better.
            defaults: values of new keys that give the behavior of versions without these keys.
            references: for keys whose value refers to another one, what an earlier version stored
                in its place: the values by key.
            retry_timeout: time that a call waits for a database that does not answer [s].
            shared: whether other processes that say the same may run trials meanwhile.

        Raises:
            UserError: the database cannot be read, the disk is full, another process holds the
                study, the configuration differs, or `resume` or the mirror is not possible.
        """
        self.location = location
        self.configuration = json.loads(
            json.dumps(dict(configuration), sort_keys=True, default=str)
        )
        self._defaults = json.loads(json.dumps(dict(defaults or {}), default=str))
        self._references = json.loads(json.dumps(dict(references or {}), default=str))
        self._maximize = maximize
        self._url = add_driver(location.url)
        self._storage: Any = None
        self._creating = False
        self._trial_ids: dict[int, int] = {}
        self._last_heartbeat: float | None = None
        self.mirror = make_mirror(location)
        with as_user_errors(self._url):
            make_folder(location.folder)
            if (path := get_sqlite_path(self._url)) is not None:
                check_readable(path)
                make_folder(path.parent)
        self._lease = StudyLease(location.folder, self._url, location.name, shared=shared)
        self._retry = Retry(self._url, retry_timeout, self._lease.renew)
        try:
            Retry(self._url, min(retry_timeout, OPENING_RETRY_TIMEOUT))(lambda _: self._open())
            self.send_heartbeat()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with self._lease.lock_opening():
            self._lease.acquire()
            if self._storage is None:
                self._storage = open_storage(self._url)
            self._open_rows()

    def _open_rows(self) -> None:
        try:
            self._id = self._storage.get_study_id_from_name(self.location.name)
        except KeyError:
            if self.location.resume == "must":
                raise user_error(
                    got=f"study.resume=must, but no study {self._where}",
                    expected="a study to continue",
                    do="check study.name, or leave study.resume at auto",
                ) from None
            self._create()
            return
        if self.location.resume == "never" and not self._creating:
            raise user_error(
                got=f"study.resume=never, but there is study {self._where}",
                expected="a new name",
                do="set study.name, or leave study.resume at auto to continue it",
            )
        notes = self._storage.get_study_user_attrs(self._id)
        stored = notes.get(schema.CONFIGURATION)
        if stored is not None or self._storage.get_n_trials(self._id) > 0:
            schema.check_schema(notes, self._where)
        if stored is not None and is_same(self._complete(stored), self.configuration):
            self.configuration = stored  # keeps the fingerprint of the earlier trials
            return
        if stored is not None and (
            not self._lease.is_alone
            or any(
                trial.state != "running" and trial.facts.get(schema.FAILURE) != "mistake"
                for trial in records.read_trials(self._storage, self._id, self._where)
            )
        ):
            raise make_configuration_error(
                self.location.name,
                stored=self._complete(stored),
                current=self.configuration,
                writer=notes.get(schema.WRITER, "(unknown)"),
            )
        # No trial has ended except by a mistake: a first attempt with a wrong configuration.
        self._storage.delete_study(self._id)
        self._create()

    def _create(self) -> None:
        from optuna.study import StudyDirection

        self._creating = True
        self._id = self._storage.create_new_study(
            [StudyDirection.MAXIMIZE if self._maximize else StudyDirection.MINIMIZE],
            self.location.name,
        )
        self._storage.set_study_user_attr(self._id, schema.VERSION_KEY, schema.SCHEMA_VERSION)
        self._storage.set_study_user_attr(self._id, schema.WRITER, get_code_version())
        self._name_objective()
        # Last: a study without configuration and without trials was not created completely.
        self._storage.set_study_user_attr(self._id, schema.CONFIGURATION, self.configuration)

    def _name_objective(self) -> None:
        """Store the name of the objective, which optuna-dashboard shows on its axes."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.Study(self.location.name, self._storage).set_metric_names(
                [get_objective_label(self.configuration)]
            )

    def _complete(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored configuration as this version would have stored it.

        It gets the defaults of keys that only this command has. Values that an earlier version
        stored in place of a reference become that reference.
        """
        completed = dict(stored)
        for key, value in self.configuration.items():
            values = self._references.get(key, {})
            if values and all(is_same(stored.get(name), values[name]) for name in values):
                completed = {name: completed[name] for name in completed if name not in values}
                completed[key] = value
            elif key not in stored and key in self._defaults:
                completed[key] = self._defaults[key]
        return completed

    @property
    def _where(self) -> str:
        return f"{self.location.name} in {redact_url(self._url)}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()

    def read_notes(self, prefix: str = "") -> dict[str, Any]:
        """Return the notes of the study (any JSON) whose keys have a prefix."""
        return self._retry(lambda _: records.read_notes(self._storage, self._id, prefix))

    def read_note(self, key: str) -> Any:
        """Return a note of the study (any JSON), or None if it does not exist."""
        return self.read_notes().get(key)

    def write_note(self, key: str, value: Any) -> None:
        """Store a note of the study (any JSON) in one transaction."""
        self._retry(lambda _: self._storage.set_study_user_attr(self._id, key, value))

    def write_note_once(self, key: str, value: Any) -> Any:
        """Store a note of the study unless it exists; return what the study has stored."""

        def attempt(_: bool) -> Any:
            with self._lease.lock_opening():
                notes = self._storage.get_study_user_attrs(self._id)
                if key not in notes:
                    self._storage.set_study_user_attr(self._id, key, value)
                return notes.get(key, value)

        return self._retry(attempt)

    def read_trials(self, phase: str | None = None, first: int = 0) -> list[Trial]:
        """Read the trials of a phase by index, or without a phase all trials by number (slow).

        In a shared study this process takes over the running trials of ended processes (`owns`).

        Args:
            phase: name of the phase; None means all phases.
            first: smallest number of a trial to read.
        """

        def attempt(_: bool) -> list[Trial]:
            trials = records.read_trials(self._storage, self._id, self._where, first)
            if self._lease.is_shared:
                self._lease.renew()
                slots = {schema.get_slot(trial) for trial in trials if trial.state == "running"}
                if self._lease.take_over(slots):  # their last process may have ended trials since
                    trials = records.read_trials(self._storage, self._id, self._where, first)
            return trials

        trials = self._retry(attempt)
        return trials if phase is None else records.filter_phase(trials, phase)

    def owns(self, trial: Trial) -> bool:
        """Return whether a running trial is one of this process, and of no other."""
        return self._lease.holds(schema.get_slot(trial))

    def start(self, space: Space, trial: Trial) -> Trial:
        """Store a new trial as running in one transaction.

        Returns:
            The trial with its number.

        Raises:
            TrialExistsError: another process that shares the study has stored a trial of this
                phase and index.
            UserError: another process acquired the study while the database was not available.
        """
        trial = replace(trial, facts=dict(trial.facts))

        def attempt(is_retry: bool) -> tuple[int, int]:
            self._lease.renew()
            if self._lease.is_shared:
                trial.facts.setdefault(schema.PROCESS, self._lease.slot)
            return records.create_trial(
                self._storage, self._id, space=space, trial=trial, is_retry=is_retry
            )

        key, number = self._retry(attempt)
        self._trial_ids[number] = key
        return replace(trial, number=number)

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Store an intermediate value of a running trial; it replaces one of the same step."""
        self._update(
            lambda: self._storage.set_trial_intermediate_value(
                self._get_trial_id(trial), step, value
            )
        )

    def _update(self, write: Callable[[], None]) -> None:
        """Write to a running trial.

        A process that lost its slot with its connection may share a trial with the process that
        took it over. The first result counts, and later writes are ignored.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        ignored = (UpdateFinishedTrialError,) if self._lease.is_shared else ()

        def attempt(_: bool) -> None:
            with contextlib.suppress(*ignored):
                write()

        self._retry(attempt)

    def read_intermediate_values(self, trial: Trial) -> dict[int, float]:
        """Return the reported values by step, in the order of the steps."""
        stored = self._retry(lambda _: self._storage.get_trial(self._get_trial_id(trial)))
        return dict(sorted(stored.intermediate_values.items()))

    def record_retry(self, trial: Trial, reason: str) -> Trial:
        """Add the reason of a lost attempt to `facts["attempts"]`. The trial stays running."""
        attempts = [*trial.facts.get(schema.ATTEMPTS, []), reason]
        self._update(
            lambda: self._storage.set_trial_user_attr(
                self._get_trial_id(trial), schema.ATTEMPTS, attempts
            )
        )
        return replace(trial, facts={**trial.facts, schema.ATTEMPTS: attempts})

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Store the result of a trial in one transaction: complete, failed or pruned."""
        facts, state = schema.collect_facts(result), schema.get_end_state(result)
        self._retry(
            lambda is_retry: records.finish_trial(
                self._storage,
                self._get_trial_id(trial),
                result=result,
                facts=facts,
                is_retry=is_retry or self._lease.is_shared,
            )
        )
        check_kept(self._url)
        self._trial_ids.pop(trial.number, None)
        estimate = facts.pop(schema.ESTIMATE, None)
        return replace(
            trial,
            state=state,
            objective=result.objective if state == "complete" else None,
            estimate=None if estimate is None else float(estimate),
            reason=facts.get(schema.REASON),
            facts={**trial.facts, **facts},
        )

    def send_heartbeat(self) -> None:
        """Store that this process is alive and holds the study.

        The call writes at most once in STUDY_HEARTBEAT_INTERVAL and can be made at any rate.
        """
        now, last = time.monotonic(), self._last_heartbeat
        if last is None or now - last >= STUDY_HEARTBEAT_INTERVAL:
            self._retry(lambda _: self._lease.renew())
            self.write_note(schema.HOLDER, Holder.current().to_note())
            self._last_heartbeat = now

    def mark_ended(self) -> None:
        """Store that the command has done its work; the study stays open for its report."""
        self.write_note(schema.HOLDER, Holder.current("ended").to_note())
        self._last_heartbeat = time.monotonic()

    def _get_trial_id(self, trial: Trial) -> int:
        if (key := self._trial_ids.get(trial.number)) is not None:
            return key
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)

    def close(self, state: State = "ended") -> None:
        """Close the database and release the study.

        Args:
            state: state of the study, which is stored for its readers.
        """
        if self._last_heartbeat is not None:  # this process held the study
            with contextlib.suppress(Exception):  # a more important error may be on its way
                note = Holder.current(state).to_note()
                self._storage.set_study_user_attr(self._id, schema.HOLDER, note)
            self._last_heartbeat = None
        if self._storage is not None:
            close_storage(self._storage)
        self._lease.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close("ended" if error is None else "interrupted")
        self.mirror.close(0)


@dataclass(frozen=True)
class PhaseLedger:
    """The trials of one phase of a study, as the ledger of a search.

    Attributes:
        study: the study.
        space: search space of the phase.
        phase: name of the phase.
        facts: facts that every trial of the phase gets.
    """

    study: Study
    space: Space
    phase: str
    facts: Mapping[str, Any]

    def read_trials(self, first: int = 0) -> list[Trial]:
        """Read the trials of the phase from number `first` on, ordered by index."""
        return self.study.read_trials(self.phase, first)

    def owns(self, trial: Trial) -> bool:
        """Return whether a running trial is one of this process, and of no other."""
        return self.study.owns(trial)

    def start(
        self,
        index: int,
        unit: UnitPoint,
        values: dict[str, Value],
        generation: int = 0,
        **facts: Any,
    ) -> Trial:
        """Store a new trial as running; raises like Study.start."""
        phase_facts = {
            schema.PHASE: self.phase,
            schema.GENERATION: generation,
            "config_fingerprint": self.study.fingerprint,
        }
        return self.study.start(
            self.space, Trial(-1, index, unit, values, facts={**phase_facts, **self.facts, **facts})
        )

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Store an intermediate value; it replaces an earlier one of this step."""
        self.study.report(trial, value, step)

    def read_intermediate_values(self, trial: Trial) -> dict[int, float]:
        """Return the reported values by step."""
        return self.study.read_intermediate_values(trial)

    def record_retry(self, trial: Trial, reason: str) -> Trial:
        """Store that an attempt at a trial was lost. The trial stays running."""
        return self.study.record_retry(trial, reason)

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Store the result of a trial."""
        return self.study.finish(trial, result)

    def send_heartbeat(self) -> None:
        """Store that this process is alive."""
        self.study.send_heartbeat()
