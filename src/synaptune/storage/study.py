"""A study in its database, through Optuna's storage: the truth about a search.

A trial is written as running, whole, in one transaction before it starts, and its end is written once. One Optuna study
holds every phase (`search`, and in a protocol `sanity`, `baseline`, `validation`); a trial's user attributes say which.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synaptune.errors import UserError, mistake
from synaptune.search.config import Home
from synaptune.search.space import Dimension, Space, Unit, Value
from synaptune.search.trial import Result, Trial
from synaptune.storage.faults import check_readable, sqlite_path, worded

_SHOWN_DIFFERENCES = 20
_WAIT_FOR_LOCK = 30  # seconds that SQLite waits for a reader such as a dashboard


class Study:
    """One study, held by this process alone until `close`; use it as a context manager."""

    def __init__(self, place: Home, configuration: Mapping[str, Any], *, maximize: bool = False) -> None:
        """Open or create. `configuration` (flat, plain values) is everything that makes results comparable.

        Raises UserError: unreadable database, no space, held by another process, other configuration, `resume` not to be had.
        """
        self.place = place
        self.configuration = json.loads(json.dumps(dict(configuration), sort_keys=True, default=str))
        self._maximize = maximize
        with worded(place.url):
            place.folder.mkdir(parents=True, exist_ok=True)
            path = sqlite_path(place.url)
            if path is not None:
                check_readable(path)
                path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _hold(place.folder / ".lock")
        try:
            with worded(place.url):
                self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _storage(self.place.url)
        try:
            self._id = self._storage.get_study_id_from_name(self.place.name)
        except KeyError:
            if self.place.resume == "must":
                raise mistake(
                    got=f"study.resume=must, but no study {self.place.name} in {self.place.url}",
                    expected="a study to continue",
                    do="check study.name, or leave study.resume at auto",
                ) from None
            self._create()
            return
        if self.place.resume == "never":
            raise mistake(
                got=f"study.resume=never, but study {self.place.name} is in {self.place.url}",
                expected="a new name",
                do="set study.name, or leave study.resume at auto to continue it",
            )
        stored = self.note("configuration")
        if stored == self.configuration:
            return
        if stored is not None and any(trial.state != "running" for trial in self.trials()):
            self._refuse(stored)
        self._storage.delete_study(self._id)  # nothing ever finished in it: a first attempt with a mistake leaves no claim
        self._create()

    def _create(self) -> None:
        from optuna.study import StudyDirection

        self._id = self._storage.create_new_study([StudyDirection.MAXIMIZE if self._maximize else StudyDirection.MINIMIZE], self.place.name)
        self.put_note("configuration", self.configuration)

    def _refuse(self, stored: Mapping[str, Any]) -> None:
        here, absent = self.configuration, "(absent)"
        keys = [key for key in sorted({*stored, *here}) if stored.get(key, absent) != here.get(key, absent)]
        shown = keys[:_SHOWN_DIFFERENCES]
        lines = [f"{key}: the study has {stored.get(key, absent)}, this command {here.get(key, absent)}" for key in shown]
        if len(keys) > _SHOWN_DIFFERENCES:
            lines.append(f"and {len(keys) - _SHOWN_DIFFERENCES} more")
        raise UserError(
            f"got study {self.place.name} of another configuration; {len(keys)} differ\n  "
            + "\n  ".join(lines)
            + "\n  expected: the configuration it began with\n  to do: restore these values, or give the search another study.name"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its configuration."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()

    def note(self, key: str) -> Any:
        """A finished piece of work stored with the study; null when it is not there."""
        with worded(self.place.url):
            return self._storage.get_study_user_attrs(self._id).get(key)

    def put_note(self, key: str, value: Any) -> None:
        """Store a finished piece of work (any JSON) in one transaction."""
        with worded(self.place.url):
            self._storage.set_study_user_attr(self._id, key, value)

    def trials(self, phase: str | None = None) -> list[Trial]:
        """The trials of a phase by index; without one, all trials by number."""
        with worded(self.place.url):
            frozen = self._storage.get_all_trials(self._id, deepcopy=False)
        if phase is None:
            return [_trial(entry) for entry in frozen]
        return sorted((_trial(entry) for entry in frozen if entry.user_attrs["phase"] == phase), key=lambda trial: trial.index)

    def start(self, space: Space, trial: Trial) -> Trial:
        """Write a trial as running, whole, in one transaction; returns it with its number."""
        import optuna

        with worded(self.place.url):
            template = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=dict(trial.values),
                distributions={dimension.name: _distribution(dimension) for dimension in space.dimensions},
                user_attrs={**trial.facts, "index": trial.index, "unit": list(trial.unit)},
            )
            key = self._storage.create_new_trial(self._id, template)
            return replace(trial, number=self._storage.get_trial_number_from_id(key))

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Write how a trial ended: what is known about it first, its state last."""
        from optuna.trial import TrialState

        cause = result.cause
        facts = {**result.facts, **result.metrics, "seconds": result.seconds}
        if cause is not None:
            facts |= {"failure": cause.kind, "reason": cause.reason, "traceback": cause.trace}
        ended = "failed" if cause is not None else "pruned" if result.pruned else "complete"
        if ended == "pruned":
            facts["estimate"] = result.estimate
        with worded(self.place.url):
            key = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            for name, value in facts.items():
                self._storage.set_trial_user_attr(key, name, value if not isinstance(value, float) or math.isfinite(value) else str(value))
            if ended == "complete":
                assert result.objective is not None
                self._storage.set_trial_state_values(key, TrialState.COMPLETE, [result.objective])
            else:
                self._storage.set_trial_state_values(key, TrialState.PRUNED if ended == "pruned" else TrialState.FAIL)
        objective = result.objective if ended == "complete" else None
        reason, known = cause and cause.reason, {**trial.facts, **facts}
        return replace(trial, state=ended, objective=objective, estimate=result.estimate, reason=reason, facts=known)

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Write an intermediate value of a running trial."""
        with worded(self.place.url):
            key = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            self._storage.set_trial_intermediate_value(key, step, value)

    def again(self, trial: Trial, reason: str) -> Trial:
        """Write that an attempt at a trial was lost."""
        attempts = [*trial.facts.get("attempts", []), reason]
        with worded(self.place.url):
            key = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            self._storage.set_trial_user_attr(key, "attempts", attempts)
        return replace(trial, facts=trial.facts | {"attempts": attempts})

    def close(self) -> None:
        """Let another process have it."""
        self._storage.remove_session()
        self._storage.engine.dispose()
        self._lock.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class PhaseLedger:
    """The trials of one phase, as the search loop wants them; facts go to every trial."""

    study: Study
    space: Space
    phase: str
    facts: Mapping[str, Any]

    def trials(self) -> list[Trial]:
        """All trials of the phase, by index."""
        return self.study.trials(self.phase)

    def start(self, index: int, unit: Unit, values: dict[str, Value], generation: int = 0, **facts: Any) -> Trial:
        """Write a trial as running."""
        about = {"phase": self.phase, "generation": generation, "config_fingerprint": self.study.fingerprint, **self.facts, **facts}
        return self.study.start(self.space, Trial(-1, index, unit, values, facts=about))

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Write an intermediate value."""
        self.study.report(trial, value, step)

    def again(self, trial: Trial, reason: str) -> Trial:
        """Write that an attempt was lost."""
        return self.study.again(trial, reason)

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Write how a trial ended."""
        return self.study.finish(trial, result)


def read_trials(place: Home, phase: str) -> list[Trial]:
    """The trials of a study's phase by index, whoever holds the study; empty when there is no such study. Raises UserError."""
    path = sqlite_path(place.url)
    if path is not None:
        check_readable(path)
        if not path.exists():
            return []
    with worded(place.url):
        storage = _storage(place.url)
        try:
            frozen = storage.get_all_trials(storage.get_study_id_from_name(place.name), deepcopy=False)
        except KeyError:
            return []
        finally:
            storage.remove_session()
            storage.engine.dispose()
    return sorted((_trial(entry) for entry in frozen if entry.user_attrs["phase"] == phase), key=lambda trial: trial.index)


def _hold(path: Path):
    """Lock the study's folder for this process; the system lets go of it even when the process is killed."""
    handle = path.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise mistake(
            got=f"a study that another process is running ({path.parent})",
            expected="one process for each study",
            do="wait for it, or stop it, or set another study.name",
        ) from None
    return handle


def _storage(url: str):
    """Optuna's storage; SQLite writes ahead, so that readers never block a search and a kill never tears a write."""
    import optuna
    import sqlalchemy.event

    path = sqlite_path(url)
    arguments = {"connect_args": {"timeout": _WAIT_FOR_LOCK}} if path is not None else {}
    if path is not None and not path.exists() and not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "cannot be written", str(path.parent))
    storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
    if path is not None:

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.remove_session()
        storage.engine.dispose()  # the connections that made the tables know nothing of the above
    return storage


def _distribution(dimension: Dimension):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.scale == "categorical":
        return CategoricalDistribution(dimension.choices)
    kind, number = (IntDistribution, int) if dimension.integer else (FloatDistribution, float)
    return kind(number(dimension.low), number(dimension.high), log=dimension.scale == "log")  # type: ignore[arg-type]


def _trial(frozen: Any) -> Trial:
    state = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}.get(frozen.state.name, "running")
    facts = dict(frozen.user_attrs)
    return Trial(
        number=frozen.number,
        index=facts.pop("index"),
        unit=tuple(facts.pop("unit")),
        values=dict(frozen.params),
        state=state,  # type: ignore[arg-type]
        objective=frozen.value if state == "complete" else None,
        estimate=facts.get("estimate"),
        reason=facts.get("reason"),
        facts=facts,
    )
