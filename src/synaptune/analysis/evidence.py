"""Gather all analyses of a study for the report, the dashboard and the W&B page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from synaptune.analysis import repeats
from synaptune.analysis.ablation import compute_ablation, read_stored_start
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
from synaptune.analysis.regimes import read_regimes
from synaptune.analysis.replay import Replay, replay_rescored
from synaptune.analysis.results import Evidence, Importance, ValidationResult
from synaptune.analysis.screening import from_note
from synaptune.analysis.validation import (
    compute_validation,
    find_validated_trial,
    is_stale,
    measure_noise,
    measure_selection_bias,
    pair_validation_runs,
)
from synaptune.search.objective.score import get_objective_label, get_objective_noun
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial, find_best
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import redact_url
from synaptune.study.reader import (
    BASELINE,
    GATES,
    REGIMES,
    REPEATS,
    SCREENING,
    TEST,
    StudySnapshot,
)

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
    replayed = replay_rescored(snapshot)
    against = None if against is None else rescore_study(against, by=snapshot)
    snapshot = rescore_study(snapshot)
    phase = snapshot.searches[-1] if snapshot.searches else None
    search_space = Space(()) if phase is None else snapshot.spaces[phase]  # the optimizer's order
    space = sort_space_by_subsystem(search_space)
    names, trials = space.names, snapshot.search_trials
    units = [_reorder_unit(search_space, names, trial) for trial in trials]
    losses = [snapshot.get_complete_loss(trial) for trial in trials]
    validation = compute_validation(snapshot)
    validated = find_validated_trial(snapshot, validation)
    best = validated
    if validated is None or is_stale(snapshot, validated):
        best = find_best(trials, snapshot.maximize)
    start = _find_start_values(snapshot, trials, space)
    effects = find_effects(replayed, search_space.names) if deep else []
    effects.sort(key=lambda effect: names.index(effect.name))
    generations = summarise_generations(snapshot, replayed.diagnostics, search_space, trials)
    correlation = _reorder_correlation(replayed, names)
    engine = snapshot.engine
    null = simulate_null(engine, space, len(generations)) if deep and engine is not None else None
    pairs = rank_pairs(space, correlation, null) if correlation else []
    runs = [
        trial
        for trial in snapshot.trials
        if trial.state != "running"
        and "copied_from" not in trial.facts
        and trial.facts.get(schema.PHASE) != schema.IMPORTED
    ]
    importances = (
        compute_importances(snapshot, space, trials)
        if deep
        else [Importance(name, None, None) for name in names]
    )
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
        effects_note=""
        if effects or not deep
        else replayed.note or "too few complete generations to compare",
        importances=importances,
        hypotheses=[]
        if best is None
        else check_hypotheses(
            best.values,
            start,
            snapshot.configuration,
            generations=generations,
            effects=effects,
            pairs=pairs,
            importances=importances,
        ),
        profiles=fit_profiles(space, units, losses),
        noise=measure_noise(snapshot),
        selection_bias=measure_selection_bias(snapshot, validated or best),
        ablation=compute_ablation(snapshot),
        failures=_group_failures(snapshot),
        curves=_collect_curves(snapshot, validation),
        seconds_by_phase={
            name: sum(trial.facts.get(schema.SECONDS, 0.0) for trial in members)
            for name, members in _group_by_phase(runs).items()
        },
        runs_by_phase={name: len(members) for name, members in _group_by_phase(runs).items()},
        started_at=min(snapshot.start_times.values(), default=None),
        ended_at=None
        if any(trial.state == "running" for trial in snapshot.trials)
        else max(snapshot.end_times.values(), default=None),
        provenance=_collect_provenance(snapshot),
        inspections=snapshot.notes.get(INSPECTIONS) or {},
        space=None if phase is None else space,
        gates=snapshot.notes.get(GATES) or (),
        fixed={
            key.removeprefix(schema.FIXED_PREFIX): value
            for key, value in snapshot.configuration.items()
            if key.startswith(schema.FIXED_PREFIX)
        },
        correlation_noise=None if null is None else null_limit(null),
        objective=get_objective_noun(snapshot.configuration),
        label=get_objective_label(snapshot.configuration),
        state=snapshot.state,
        plan=snapshot.plan,
        validated=validated,
        test_accuracies=_collect_test_accuracies(snapshot, best),
        repeats=repeats.from_note(note) if (note := snapshot.notes.get(REPEATS)) else None,
        screening=from_note(note) if (note := snapshot.notes.get(SCREENING)) else None,
        regimes=read_regimes(snapshot.notes.get(REGIMES) or {}),
        spans=_measure_spans(snapshot),
        imported=Counter(
            str(trial.facts.get(schema.SOURCE))
            for trial in snapshot.get_phase_trials(schema.IMPORTED)
        ),
    )


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


def _measure_spans(snapshot: StudySnapshot) -> dict[int, tuple[float, float]]:
    """Measure start and end of each ended trial [s since the first start]."""
    origin = min(snapshot.start_times.values(), default=None)
    if origin is None:
        return {}
    return {
        number: (
            (snapshot.start_times[number] - origin).total_seconds(),
            (ended_at - origin).total_seconds(),
        )
        for number, ended_at in snapshot.end_times.items()
        if number in snapshot.start_times
    }


def _find_start_values(
    snapshot: StudySnapshot, trials: Sequence[Trial], space: Space
) -> dict[str, Value]:
    """Find the values of the baseline: those of its run, else the start of the search."""
    pairs, baseline = pair_validation_runs(snapshot), snapshot.get_phase_trials(BASELINE)
    if pairs or baseline:
        return dict((pairs[0][0] if pairs else baseline[0]).values)
    stored = read_stored_start(snapshot, space.names)
    if stored is not None:
        return stored
    adaptive = snapshot.engine is not None and snapshot.engine.name == "cma"
    return dict(trials[0].values) if trials and adaptive else {}


def _reorder_correlation(replayed: Replay, names: Sequence[str]) -> list[list[float]]:
    if not replayed.diagnostics:
        return []
    last = replayed.diagnostics[-1]
    order = [list(last.mean).index(name) for name in names]
    return [[last.correlation[i][j] for j in order] for i in order]


def _group_failures(snapshot: StudySnapshot) -> dict[str, list[Trial]]:
    """Group the failed trials of all phases by kind, the most frequent kind first."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in snapshot.trials:
        if trial.state == "failed" and schema.SOURCE not in trial.facts:
            kinds[trial.facts.get(schema.FAILURE, "error")].append(trial)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _collect_curves(
    snapshot: StudySnapshot, validation: ValidationResult | None
) -> dict[str, Mapping[int, float]]:
    """Collect the reported losses by step of the validation runs."""
    if validation is None:
        return {}
    sides = (("baseline", validation.before), ("best", validation.after))
    return {
        f"{side} seed {trial.facts[schema.SEED]}": snapshot.curves[trial.number]
        for side, trials in sides
        for trial in trials
        if snapshot.curves.get(trial.number)
    }


def _group_by_phase(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Group trials by phase, in the order of the protocol."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.facts.get(schema.PHASE, "search")].append(trial)
    return groups


def _collect_test_accuracies(snapshot: StudySnapshot, best: Trial | None) -> tuple[float, ...]:
    return tuple(
        trial.facts["test_accuracy"]
        for trial in snapshot.get_phase_trials(TEST)
        if best is not None and trial.values == best.values and "test_accuracy" in trial.facts
    )


def _collect_provenance(snapshot: StudySnapshot) -> dict[str, Any]:
    """Collect what is needed to reproduce the study: versions, devices, seeds, settings."""

    def list_values(fact: str) -> list[Any]:
        return sorted(
            {trial.facts[fact] for trial in snapshot.trials if trial.facts.get(fact) is not None},
            key=str,
        )

    seeded = [trial for trial in snapshot.trials if trial.facts.get(schema.SEED) is not None]
    engine = snapshot.engine
    return {
        "study": snapshot.name,
        "database": redact_url(snapshot.url),
        "optimizer": None if engine is None else engine.__dict__,
        "code versions": list_values("code_version"),
        "devices": list_values("device"),
        "data fingerprints": list_values("data_fingerprint"),
        "configuration fingerprints": list_values("config_fingerprint"),
        "seeds": {
            phase: sorted({trial.facts[schema.SEED] for trial in members})
            for phase, members in _group_by_phase(seeded).items()
        },
        "schema version": snapshot.notes.get(schema.VERSION_KEY),
        "reproduced to the last bit": {
            side: inspection.get("reproduced")
            for side, inspection in (snapshot.notes.get(INSPECTIONS) or {}).items()
            if "failed" not in inspection
        },
        "configuration": dict(snapshot.configuration),
    }
