"""Gather all analyses of a study for the report, the dashboard and the W&B page."""

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
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import redact_url
from synaptune.study.reader import BASELINE, GATES, StudySnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSPECTIONS = "portraits"  # key of the study's note


def gather_evidence(
    snapshot: StudySnapshot, *, against: StudySnapshot | None = None, deep: bool = True
) -> Evidence:
    """Run the analyses of a study.

    Args:
        snapshot: the study.
        against: a study of random points to compare with.
        deep: also run the analyses that take seconds: effects, importances and the null
            distribution of the correlations.
    """
    replayed = _replay_rescored(snapshot)
    against = None if against is None else rescore_study(against, by=snapshot)
    snapshot = rescore_study(snapshot)
    phase = snapshot.searches[-1] if snapshot.searches else None
    search_space = None if phase is None else snapshot.spaces[phase]  # in the optimizer's order
    space = None if search_space is None else sort_space_by_subsystem(search_space)
    names = () if space is None else space.names
    trials, validation = snapshot.search_trials, compute_validation(snapshot)
    units = (
        []
        if search_space is None
        else [_reorder_unit(search_space, names, trial) for trial in trials]
    )
    losses = [snapshot.get_complete_loss(trial) for trial in trials]
    best, start = (
        _choose_best(snapshot, trials, validation),
        _find_start_values(snapshot, trials, space),
    )
    effects = (
        find_effects(replayed, search_space.names) if deep and search_space is not None else []
    )
    effects.sort(key=lambda effect: names.index(effect.name))
    generations = (
        []
        if search_space is None
        else summarise_generations(snapshot, replayed.diagnostics, search_space, trials)
    )
    correlation = _reorder_correlation(replayed, names)
    null = _simulate_null(snapshot, space, len(generations), deep)
    pairs = rank_pairs(space, correlation, null) if space is not None and correlation else []
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
        validation=validation,
        convergence=compute_convergence(snapshot),
        random_curve=compute_random_curve(snapshot, against),
        generations=generations,
        correlation=correlation,
        effects=effects,
        effects_note=_explain_no_effects(replayed, effects, deep),
        importances=compute_importances(snapshot, space, trials)
        if deep and space is not None
        else [Importance(name, None, None) for name in names],
        hypotheses=[]
        if best is None
        else check_hypotheses(
            best.values,
            start,
            snapshot.configuration,
            generations=generations,
            effects=effects,
            pairs=pairs,
        ),
        profiles=[] if space is None else fit_profiles(space, units, losses),
        noise=measure_noise(snapshot),
        selection_bias=measure_selection_bias(snapshot, best),
        ablation=compute_ablation(snapshot),
        failures=_group_failures(snapshot),
        curves=_collect_curves(snapshot, validation),
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


def _replay_rescored(snapshot: StudySnapshot) -> Replay:
    """Replay the search with the losses that its optimizer received; return comparable losses."""
    replayed, rescored = replay(snapshot), rescore_study(snapshot)
    if rescored is snapshot:
        return replayed
    losses = {trial.number: rescored.get_complete_loss(trial) for trial in rescored.trials}
    batches = [
        replace(batch, losses=[losses[trial.number] for trial in batch.trials])
        for batch in replayed.batches
    ]
    return replace(replayed, batches=batches)


def sort_space_by_subsystem(space: Space) -> Space:
    """Group the parameters of a space by subsystem, in the order of the first parameter of each."""
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
    """Choose the recommended trial: the validated one, else the best of the search."""
    complete = [trial for trial in trials if trial.objective is not None]
    if validation is not None:
        validated = [trial for trial in complete if trial.values == validation.after[0].values]
        complete = validated or complete
    return min(complete, key=lambda trial: snapshot.get_complete_loss(trial) or 0.0, default=None)


def _find_start_values(
    snapshot: StudySnapshot, trials: Sequence[Trial], space: Space | None
) -> dict[str, Value]:
    """Find the values of the baseline: those of its run, else the start of the search."""
    pairs, baseline = pair_validation_runs(snapshot), snapshot.get_phase_trials(BASELINE)
    if pairs:
        return dict(pairs[0][0].values)
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


def _explain_no_effects(replayed: Replay, effects: Sequence[Effect], deep: bool) -> str:
    if effects or not deep:
        return ""
    return replayed.note or "too few complete generations to compare"


def _reorder_correlation(replayed: Replay, names: Sequence[str]) -> list[list[float]]:
    if not replayed.diagnostics:
        return []
    last = replayed.diagnostics[-1]
    order = [list(last.mean).index(name) for name in names]
    return [[last.correlation[i][j] for j in order] for i in order]


def _simulate_null(
    snapshot: StudySnapshot, space: Space | None, generation_count: int, deep: bool
) -> NDArray[Any] | None:
    """Simulate the correlations of null searches of the same length; None if not available."""
    if not deep or space is None or snapshot.engine is None:
        return None
    return simulate_null(snapshot.engine, space, generation_count)


def _group_failures(snapshot: StudySnapshot) -> dict[str, list[Trial]]:
    """Group the failed trials of all phases by kind, the most frequent kind first."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in snapshot.trials:
        if trial.state == "failed":
            kinds[trial.facts.get(schema.FAILURE, "error")].append(trial)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _collect_curves(
    snapshot: StudySnapshot, validation: ValidationResult | None
) -> dict[str, Mapping[int, float]]:
    """Collect the reported losses by step of the validation runs."""
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
    """Sum over the ended runs, without copies, by phase in the order of the protocol."""
    sums: dict[str, float] = {}
    for trial in snapshot.trials:
        if trial.state != "running" and "copied_from" not in trial.facts:
            phase = trial.facts.get(schema.PHASE, "search")
            sums[phase] = sums.get(phase, 0.0) + amount(trial)
    return sums


def _find_end(snapshot: StudySnapshot) -> datetime | None:
    """Return the end of the last trial; None while a trial is running or before the first end."""
    if any(trial.state == "running" for trial in snapshot.trials):
        return None
    return max(snapshot.end_times.values(), default=None)


def _collect_provenance(snapshot: StudySnapshot) -> dict[str, Any]:
    """Collect what is needed to reproduce the study: versions, devices, seeds, settings."""

    def list_values(fact: str) -> list[Any]:
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
        "code versions": list_values("code_version"),
        "devices": list_values("device"),
        "data fingerprints": list_values("data_fingerprint"),
        "configuration fingerprints": list_values("config_fingerprint"),
        "seeds": {phase: sorted(set(values)) for phase, values in seeds.items()},
        "schema version": snapshot.notes.get(schema.VERSION_KEY),
        "reproduced to the last bit": {
            side: inspection.get("reproduced")
            for side, inspection in (snapshot.notes.get(INSPECTIONS) or {}).items()
            if "failed" not in inspection
        },
        "configuration": dict(snapshot.configuration),
    }
