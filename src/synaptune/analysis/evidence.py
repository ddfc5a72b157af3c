"""All that is known of a study, put together once; what every report, dashboard and W&B page shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synaptune.analysis.ablation import ablated
from synaptune.analysis.convergence import chance, course, generations
from synaptune.analysis.correlation import blind, hypotheses, pairs, reach
from synaptune.analysis.effects import effects
from synaptune.analysis.importance import importances
from synaptune.analysis.profiles import profiles
from synaptune.analysis.ranking import ranked
from synaptune.analysis.replay import Replay, replay
from synaptune.analysis.results import Claim, Effect, Evidence, Importance
from synaptune.analysis.validation import claim, luck, noise, validation_pairs
from synaptune.search.space.space import Space, Value
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import shown
from synaptune.study.reader import BASELINE, GATES, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

PORTRAITS = "portraits"


def evidence(record: Record, *, against: Record | None = None, deep: bool = True) -> Evidence:
    """What a study shows.

    against: a study of random points to compare with; deep: also what takes seconds (effects, importances, what noise alone does
    to correlations).
    """
    replayed = _replayed(record)
    against = None if against is None else ranked(against, by=record)
    record = ranked(record)
    phase = record.searches[-1] if record.searches else None
    drawn = None if phase is None else record.spaces[phase]  # in the optimizer's order
    space = None if drawn is None else by_subsystem(drawn)
    names = () if space is None else space.names
    trials, said = record.searched, claim(record)
    units = [] if drawn is None else [_in_order(drawn, names, trial) for trial in trials]
    losses = [record.achieved(trial) for trial in trials]
    best, start = _best(record, trials, said), _start(record, trials, space)
    measured = effects(replayed, drawn.names) if deep and drawn is not None else []
    measured.sort(key=lambda effect: names.index(effect.name))
    course_of = [] if drawn is None else generations(record, replayed.diagnostics, drawn, trials)
    correlation = _correlation(replayed, names)
    null = _blind(record, space, len(course_of), deep)
    together = pairs(space, correlation, null) if space is not None and correlation else []
    return Evidence(
        name=record.name,
        phase=phase,
        maximize=record.maximize,
        names=names,
        trials=trials,
        units=units,
        losses=losses,
        start=start,
        best=best,
        claim=said,
        course=course(record),
        chance=chance(record, against),
        generations=course_of,
        correlation=correlation,
        effects=measured,
        effects_note=_note(replayed, measured, deep),
        importances=importances(record, space, trials) if deep and space is not None else [Importance(name, None, None) for name in names],
        hypotheses=[]
        if best is None
        else hypotheses(best.values, start, record.configuration, generations=course_of, effects=measured, together=together),
        profiles=[] if space is None else profiles(space, units, losses),
        noise=noise(record),
        luck=luck(record, best),
        ablation=ablated(record),
        failures=_failures(record),
        curves=_curves(record, said),
        seconds_by_phase=_by_phase(record, lambda trial: trial.facts.get(schema.SECONDS, 0.0)),
        runs_by_phase={phase: int(count) for phase, count in _by_phase(record, lambda trial: 1.0).items()},
        began=min(record.began.values(), default=None),
        ended=_end(record),
        provenance=_provenance(record),
        portraits=record.notes.get(PORTRAITS) or {},
        space=space,
        gates=record.notes.get(GATES) or (),
        fixed={key.removeprefix(schema.FIXED): value for key, value in record.configuration.items() if key.startswith(schema.FIXED)},
        correlation_noise=None if null is None else reach(null),
    )


def _replayed(told: Record) -> Replay:
    """The draws of the search, with losses that can be compared; the optimizer itself is told those of its time."""
    found, record = replay(told), ranked(told)
    if record is told:
        return found
    losses = {trial.number: record.achieved(trial) for trial in record.trials}
    batches = [replace(batch, losses=[losses[trial.number] for trial in batch.members]) for batch in found.batches]
    return replace(found, batches=batches)


def by_subsystem(space: Space) -> Space:
    """A space with the parameters of a subsystem side by side, in the order of their first."""
    groups = list(dict.fromkeys(_subsystem(name) for name in space.names))
    return Space(tuple(sorted(space.dimensions, key=lambda dimension: groups.index(_subsystem(dimension.name)))))


def _subsystem(name: str) -> str:
    return name.rsplit(".", 1)[0] if "." in name else ""


def _in_order(space: Space, names: Sequence[str], trial: Trial) -> tuple[float, ...]:
    coordinates = dict(zip(space.names, trial.unit, strict=True))
    return tuple(coordinates[name] for name in names)


def _best(record: Record, trials: Sequence[Trial], said: Claim | None) -> Trial | None:
    """The trial whose values are recommended: the one that was validated, else the best of the search."""
    complete = [trial for trial in trials if trial.objective is not None]
    if said is not None:
        chosen = [trial for trial in complete if trial.values == said.after[0].values]
        complete = chosen or complete
    return min(complete, key=lambda trial: record.achieved(trial) or 0.0, default=None)


def _start(record: Record, trials: Sequence[Trial], space: Space | None) -> dict[str, Value]:
    """The values of the baseline: as it was run, else those the search began at."""
    pairs_run, baseline = validation_pairs(record), record.phase(BASELINE)
    if pairs_run:
        return dict(pairs_run[0][0].values)
    if baseline:
        return dict(baseline[0].values)
    stored = {name: record.configuration.get(f"{schema.START}{name}") for name in (() if space is None else space.names)}
    if stored and all(value is not None for value in stored.values()):
        return stored  # type: ignore[return-value]
    adaptive = record.engine is not None and record.engine.name == "cma"
    return dict(trials[0].values) if trials and adaptive else {}


def _note(replayed: Replay, measured: Sequence[Effect], deep: bool) -> str:
    if measured or not deep:
        return ""
    return replayed.note or "too few complete generations to compare"


def _correlation(replayed: Replay, names: Sequence[str]) -> list[list[float]]:
    if not replayed.diagnostics:
        return []
    last = replayed.diagnostics[-1]
    order = [list(last.mean).index(name) for name in names]
    return [[last.correlation[i][j] for j in order] for i in order]


def _blind(record: Record, space: Space | None, count: int, deep: bool) -> NDArray[Any] | None:
    """Correlations of blind searches as long as this one; null where they are not wanted or cannot be."""
    if not deep or space is None or record.engine is None:
        return None
    return blind(record.engine, space, count)


def _failures(record: Record) -> dict[str, list[Trial]]:
    """Failed trials of all phases by kind, the commonest kind first."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in record.trials:
        if trial.state == "failed":
            kinds[trial.facts.get(schema.FAILURE, "error")].append(trial)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _curves(record: Record, said: Claim | None) -> dict[str, Mapping[int, float]]:
    """Reported losses by step of the validation's runs."""
    if said is None:
        return {}
    runs = [(side, trial) for side, trials in (("baseline", said.before), ("best", said.after)) for trial in trials]
    return {
        f"{side} seed {trial.facts[schema.SEED]}": record.curves[trial.number] for side, trial in runs if record.curves.get(trial.number)
    }


def _by_phase(record: Record, amount) -> dict[str, float]:
    """Sums over the ended runs that were made (copies of others cost nothing), by phase in the order of the protocol."""
    sums: dict[str, float] = {}
    for trial in record.trials:
        if trial.state != "running" and "copied_from" not in trial.facts:
            phase = trial.facts.get(schema.PHASE, "search")
            sums[phase] = sums.get(phase, 0.0) + amount(trial)
    return sums


def _end(record: Record) -> datetime | None:
    """The last end; null while a trial is running or before the first."""
    if any(trial.state == "running" for trial in record.trials):
        return None
    return max(record.ended.values(), default=None)


def _provenance(record: Record) -> dict[str, Any]:
    """Everything a reader needs to make the study again: where it is, with what, on what."""

    def all_of(fact: str) -> list[Any]:
        return sorted({trial.facts[fact] for trial in record.trials if trial.facts.get(fact) is not None}, key=str)

    seeds: dict[str, list[int]] = {}
    for trial in record.trials:
        if (seed := trial.facts.get(schema.SEED)) is not None:
            seeds.setdefault(trial.facts.get(schema.PHASE, "search"), []).append(seed)
    engine = record.engine
    return {
        "study": record.name,
        "database": shown(record.url),
        "optimizer": None if engine is None else engine.__dict__,
        "code versions": all_of("code_version"),
        "devices": all_of("device"),
        "data fingerprints": all_of("data_fingerprint"),
        "configuration fingerprints": all_of("config_fingerprint"),
        "seeds": {phase: sorted(set(values)) for phase, values in seeds.items()},
        "schema version": record.notes.get(schema.VERSION),
        "reproduced to the last bit": {
            side: portrait.get("reproduced") for side, portrait in (record.notes.get(PORTRAITS) or {}).items() if "failed" not in portrait
        },
        "configuration": dict(record.configuration),
    }
