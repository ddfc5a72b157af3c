"""All that is known of a study, put together once; what every report, dashboard and W&B page shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synaptune.analysis.ablation import compute_ablation
from synaptune.analysis.convergence import (
    compute_convergence,
    compute_random_curve,
    summarise_generations,
)
from synaptune.analysis.correlation import check_hypotheses, null_limit, rank_pairs, simulate_null
from synaptune.analysis.effects import find_effects
from synaptune.analysis.importance import compute_importances
from synaptune.analysis.profiles import fit_profiles
from synaptune.analysis.ranking import rescore_study
from synaptune.analysis.replay import Replay, replay
from synaptune.analysis.results import Effect, Evidence, Importance, ValidationResult
from synaptune.analysis.validation import (
    compute_validation,
    measure_noise,
    measure_selection_bias,
    pair_validation_runs,
)
from synaptune.search.space.space import Space, Value
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import redact_url
from synaptune.study.reader import BASELINE, GATES, StudySnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSPECTIONS = "portraits"


def gather_evidence(
    snapshot: StudySnapshot, *, against: StudySnapshot | None = None, deep: bool = True
) -> Evidence:
    """What a study shows.

    against: a study of random points to compare with; deep: also what takes seconds (effects, importances, what noise alone does
    to correlations).
    """
    replayed = _replay_rescored(snapshot)
    against = None if against is None else rescore_study(against, by=snapshot)
    snapshot = rescore_study(snapshot)
    phase = snapshot.searches[-1] if snapshot.searches else None
    drawn = None if phase is None else snapshot.spaces[phase]  # in the optimizer's order
    space = None if drawn is None else sort_space_by_subsystem(drawn)
    names = () if space is None else space.names
    trials, said = snapshot.search_trials, compute_validation(snapshot)
    units = [] if drawn is None else [_reorder_unit(drawn, names, trial) for trial in trials]
    losses = [snapshot.get_complete_loss(trial) for trial in trials]
    best, start = _choose_best(snapshot, trials, said), _find_start_values(snapshot, trials, space)
    measured = find_effects(replayed, drawn.names) if deep and drawn is not None else []
    measured.sort(key=lambda effect: names.index(effect.name))
    course_of = (
        []
        if drawn is None
        else summarise_generations(snapshot, replayed.diagnostics, drawn, trials)
    )
    correlation = _reorder_correlation(replayed, names)
    null = _simulate_null(snapshot, space, len(course_of), deep)
    together = rank_pairs(space, correlation, null) if space is not None and correlation else []
    return Evidence(
        name=snapshot.name,
        phase=phase,
        maximize=snapshot.maximize,
        names=names,
        trials=trials,
        units=units,
        losses=losses,
        start=start,
        best=best,
        validation=said,
        convergence=compute_convergence(snapshot),
        random_curve=compute_random_curve(snapshot, against),
        generations=course_of,
        correlation=correlation,
        effects=measured,
        effects_note=_explain_no_effects(replayed, measured, deep),
        importances=compute_importances(snapshot, space, trials)
        if deep and space is not None
        else [Importance(name, None, None) for name in names],
        hypotheses=[]
        if best is None
        else check_hypotheses(
            best.values,
            start,
            snapshot.configuration,
            generations=course_of,
            effects=measured,
            together=together,
        ),
        profiles=[] if space is None else fit_profiles(space, units, losses),
        noise=measure_noise(snapshot),
        selection_bias=measure_selection_bias(snapshot, best),
        ablation=compute_ablation(snapshot),
        failures=_group_failures(snapshot),
        curves=_collect_curves(snapshot, said),
        seconds_by_phase=_sum_by_phase(
            snapshot, lambda trial: trial.facts.get(schema.SECONDS, 0.0)
        ),
        runs_by_phase={
            phase: int(count) for phase, count in _sum_by_phase(snapshot, lambda trial: 1.0).items()
        },
        started_at=min(snapshot.start_times.values(), default=None),
        ended_at=_find_end(snapshot),
        provenance=_collect_provenance(snapshot),
        inspections=snapshot.notes.get(INSPECTIONS) or {},
        space=space,
        gates=snapshot.notes.get(GATES) or (),
        fixed={
            key.removeprefix(schema.FIXED_PREFIX): value
            for key, value in snapshot.configuration.items()
            if key.startswith(schema.FIXED_PREFIX)
        },
        correlation_noise=None if null is None else null_limit(null),
    )


def _replay_rescored(told: StudySnapshot) -> Replay:
    """The draws of the search, with losses that can be compared; the optimizer itself is told those of its time."""
    found, record = replay(told), rescore_study(told)
    if record is told:
        return found
    losses = {trial.number: record.get_complete_loss(trial) for trial in record.trials}
    batches = [
        replace(batch, losses=[losses[trial.number] for trial in batch.trials])
        for batch in found.batches
    ]
    return replace(found, batches=batches)


def sort_space_by_subsystem(space: Space) -> Space:
    """A space with the parameters of a subsystem side by side, in the order of their first."""
    groups = list(dict.fromkeys(_subsystem(name) for name in space.names))
    return Space(
        tuple(
            sorted(space.dimensions, key=lambda dimension: groups.index(_subsystem(dimension.name)))
        )
    )


def _subsystem(name: str) -> str:
    return name.rsplit(".", 1)[0] if "." in name else ""


def _reorder_unit(space: Space, names: Sequence[str], trial: Trial) -> tuple[float, ...]:
    coordinates = dict(zip(space.names, trial.unit, strict=True))
    return tuple(coordinates[name] for name in names)


def _choose_best(
    snapshot: StudySnapshot, trials: Sequence[Trial], validation: ValidationResult | None
) -> Trial | None:
    """The trial whose values are recommended: the one that was validated, else the best of the search."""
    complete = [trial for trial in trials if trial.objective is not None]
    if validation is not None:
        chosen = [trial for trial in complete if trial.values == validation.after[0].values]
        complete = chosen or complete
    return min(complete, key=lambda trial: snapshot.get_complete_loss(trial) or 0.0, default=None)


def _find_start_values(
    snapshot: StudySnapshot, trials: Sequence[Trial], space: Space | None
) -> dict[str, Value]:
    """The values of the baseline: as it was run, else those the search began at."""
    pairs_run, baseline = pair_validation_runs(snapshot), snapshot.get_phase_trials(BASELINE)
    if pairs_run:
        return dict(pairs_run[0][0].values)
    if baseline:
        return dict(baseline[0].values)
    stored = {
        name: snapshot.configuration.get(f"{schema.START_PREFIX}{name}")
        for name in (() if space is None else space.names)
    }
    if stored and all(value is not None for value in stored.values()):
        return stored  # type: ignore[return-value]
    adaptive = snapshot.engine is not None and snapshot.engine.name == "cma"
    return dict(trials[0].values) if trials and adaptive else {}


def _explain_no_effects(replayed: Replay, measured: Sequence[Effect], deep: bool) -> str:
    if measured or not deep:
        return ""
    return replayed.note or "too few complete generations to compare"


def _reorder_correlation(replayed: Replay, names: Sequence[str]) -> list[list[float]]:
    if not replayed.diagnostics:
        return []
    last = replayed.diagnostics[-1]
    order = [list(last.mean).index(name) for name in names]
    return [[last.correlation[i][j] for j in order] for i in order]


def _simulate_null(
    snapshot: StudySnapshot, space: Space | None, count: int, deep: bool
) -> NDArray[Any] | None:
    """Correlations of blind searches as long as this one; null where they are not wanted or cannot be."""
    if not deep or space is None or snapshot.engine is None:
        return None
    return simulate_null(snapshot.engine, space, count)


def _group_failures(snapshot: StudySnapshot) -> dict[str, list[Trial]]:
    """Failed trials of all phases by kind, the commonest kind first."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in snapshot.trials:
        if trial.state == "failed":
            kinds[trial.facts.get(schema.FAILURE, "error")].append(trial)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _collect_curves(
    snapshot: StudySnapshot, validation: ValidationResult | None
) -> dict[str, Mapping[int, float]]:
    """Reported losses by step of the validation's runs."""
    if validation is None:
        return {}
    runs = [
        (side, trial)
        for side, trials in (("baseline", validation.before), ("best", validation.after))
        for trial in trials
    ]
    return {
        f"{side} seed {trial.facts[schema.SEED]}": snapshot.curves[trial.number]
        for side, trial in runs
        if snapshot.curves.get(trial.number)
    }


def _sum_by_phase(snapshot: StudySnapshot, amount) -> dict[str, float]:
    """Sums over the ended runs that were made (copies of others cost nothing), by phase in the order of the protocol."""
    sums: dict[str, float] = {}
    for trial in snapshot.trials:
        if trial.state != "running" and "copied_from" not in trial.facts:
            phase = trial.facts.get(schema.PHASE, "search")
            sums[phase] = sums.get(phase, 0.0) + amount(trial)
    return sums


def _find_end(snapshot: StudySnapshot) -> datetime | None:
    """The last end; null while a trial is running or before the first."""
    if any(trial.state == "running" for trial in snapshot.trials):
        return None
    return max(snapshot.end_times.values(), default=None)


def _collect_provenance(snapshot: StudySnapshot) -> dict[str, Any]:
    """Everything a reader needs to make the study again: where it is, with what, on what."""

    def all_of(fact: str) -> list[Any]:
        return sorted(
            {trial.facts[fact] for trial in snapshot.trials if trial.facts.get(fact) is not None},
            key=str,
        )

    seeds: dict[str, list[int]] = {}
    for trial in snapshot.trials:
        if (seed := trial.facts.get(schema.SEED)) is not None:
            seeds.setdefault(trial.facts.get(schema.PHASE, "search"), []).append(seed)
    engine = snapshot.engine
    return {
        "study": snapshot.name,
        "database": redact_url(snapshot.url),
        "optimizer": None if engine is None else engine.__dict__,
        "code versions": all_of("code_version"),
        "devices": all_of("device"),
        "data fingerprints": all_of("data_fingerprint"),
        "configuration fingerprints": all_of("config_fingerprint"),
        "seeds": {phase: sorted(set(values)) for phase, values in seeds.items()},
        "schema version": snapshot.notes.get(schema.VERSION_KEY),
        "reproduced to the last bit": {
            side: portrait.get("reproduced")
            for side, portrait in (snapshot.notes.get(INSPECTIONS) or {}).items()
            if "failed" not in portrait
        },
        "configuration": dict(snapshot.configuration),
    }
