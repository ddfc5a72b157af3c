"""Evidence of constructed studies, with everything that a report can show.

`make_full_evidence` has known effects, failures, an ablation and inspections,
`make_empty_evidence` only a name, `make_single_evidence` one trial, and `make_unfinished_evidence`
no complete trial. Everything is a function of the seed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from helpers.inspection_maker import make_inspection
from helpers.paths import ROOT
from helpers.search_maker import (
    AWKWARD,
    LOSS_DROPS,
    NOISE,
    SECONDS,
    SPACE,
    compute_loss,
    make_awkward_space,
    make_search,
)
from synaptune.analysis import results
from synaptune.analysis.regimes import read_regimes
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

__all__ = [
    "AWKWARD",
    "SEEDS",
    "SPACE",
    "STARTED_AT",
    "make_comparison",
    "make_empty_evidence",
    "make_full_evidence",
    "make_single_evidence",
    "make_unfinished_evidence",
]

STARTED_AT = datetime(2026, 3, 14, 9, 0, tzinfo=UTC)
SEEDS = (1000, 1001, 1002, 1003, 1004)
_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile of Student's t, by pairs


def make_full_evidence(
    *, count: int = 300, seed: int = 0, awkward: bool = False, maximize: bool = False
) -> results.Evidence:
    """Make the evidence of a full study.

    Args:
        count: number of trials of the search.
        seed: seed of all draws.
        awkward: give a parameter and the study names that need escaping.
        maximize: maximize the objective.
    """
    draw = np.random.default_rng(seed)
    space = make_awkward_space(SPACE) if awkward else SPACE
    trials, generations = make_search(space, count, draw, maximize)
    losses = [
        None if trial.objective is None else (-trial.objective if maximize else trial.objective)
        for trial in trials
    ]
    best = trials[min((loss, index) for index, loss in enumerate(losses) if loss is not None)[1]]
    failures: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.state == "failed":
            failures.setdefault(trial.facts["failure"], []).append(trial)
    return results.Evidence(
        name='shake<speare> & "co" $x$' if awkward else "shakespeare",
        phase="search",
        maximize=maximize,
        names=space.names,
        trials=trials,
        units=[trial.unit for trial in trials],
        losses=losses,
        start=space.to_values(space.get_start()),
        best=best,
        validation=_make_validation(space, best, draw),
        convergence=_make_convergence(losses),
        random_curve=_make_random_curve(losses),
        generations=generations,
        correlation=_make_correlation(len(space.names), draw),
        effects=_make_effects(space),
        effects_note="",
        importances=_make_importances(space),
        hypotheses=[
            results.Hypothesis(
                "tau_rrp / tau_c is between 30 and 100 at the optimum",
                "tau_rrp / tau_c = 74.6",
                True,
            ),
            results.Hypothesis("lambda_loge grows", "from 1.0 to 3.7", True),
            results.Hypothesis("energy_cost_rel shrinks", "0.015 to 0.016: within the noise", None),
            results.Hypothesis(
                "tau_rrp and camkii_up move together", "correlation -0.08 (|r| < 0.3)", False
            ),
        ],
        profiles=_make_profiles(space, trials, losses),
        noise=results.Noise(before=0.0042, after=0.0038, difference=0.0021, candidates=0.048),
        selection_bias=results.SelectionBias(search=0.231, fresh=0.219, test=0.213),
        ablation=_make_ablation(space, best, draw),
        failures=failures,
        curves={
            f"{side} seed {seed}": _make_curve(gain, draw)
            for seed in SEEDS
            for side, gain in (("baseline", 0.0), ("best", 0.22))
        },
        seconds_by_phase={
            "sanity": 13 * SECONDS,
            "baseline": SECONDS,
            "search": count * SECONDS,
            "validation": 10 * SECONDS,
            "ablation": 60 * SECONDS,
        },
        runs_by_phase={
            "sanity": 13,
            "baseline": 1,
            "search": count,
            "validation": 10,
            "ablation": 60,
        },
        started_at=STARTED_AT,
        ended_at=STARTED_AT + timedelta(seconds=(count + 84) * SECONDS),
        provenance={
            "configuration": {
                "scale.name": "laptop",
                "search.optimizer": "cma",
                "data.path": "tinyshakespeare.txt",
            },
            "versions": {"synaptune": "0.1.0", "torch": "2.13.0"},
            "data_fingerprint": "d82c10f35666cf98",
            "code_version": "0.1.0+a0c13f3257dd",
            "seeds": list(SEEDS),
        },
        inspections={"baseline": make_inspection(draw, 0.55), "best": make_inspection(draw, 1.0)},
        space=space,
        objective="objective" if maximize else "loss",
        validated=best,
        spans={trials[0].number: (0.0, 5.0), trials[1].number: (1.0, 6.0)},
        regimes=read_regimes(
            {
                path.stem: json.loads(path.read_text())
                for path in sorted((ROOT / "docs" / "reports" / "regimes").glob("*.json"))
            }
        ),
    )


def make_empty_evidence() -> results.Evidence:
    """Make the evidence of a study without trials."""
    return results.Evidence(
        name="bare",
        phase=None,
        maximize=False,
        names=(),
        trials=[],
        units=[],
        losses=[],
        start={},
        best=None,
        validation=None,
        convergence=None,
        random_curve=None,
        generations=[],
        correlation=[],
        effects=[],
        effects_note="no trials",
        importances=[],
        hypotheses=[],
        profiles=[],
        noise=None,
        selection_bias=None,
        ablation=[],
        failures={},
        curves={},
        seconds_by_phase={},
        runs_by_phase={},
        started_at=None,
        ended_at=None,
    )


def make_single_evidence() -> results.Evidence:
    """Make the evidence of a study with one complete trial."""
    return _make_evidence(
        [
            Trial(
                0,
                0,
                SPACE.get_start(),
                SPACE.to_values(SPACE.get_start()),
                "complete",
                2.31,
                facts={"generation": 0},
            )
        ]
    )


def make_snapshot(count: int) -> StudySnapshot:
    """Make the snapshot of a study that is stored nowhere, with the trials of a short search."""
    trials, _ = make_search(SPACE, count, np.random.default_rng(0), False)
    times = {trial.number: STARTED_AT for trial in trials}
    return StudySnapshot(
        name="short",
        url="",
        maximize=False,
        configuration={},
        notes={},
        trials=trials,
        start_times=times,
        end_times=times,
        curves={},
        spaces={"search": SPACE},
    )


def make_unfinished_evidence() -> results.Evidence:
    """Make the evidence of a study whose trials failed or are running."""
    start, values = SPACE.get_start(), SPACE.to_values(SPACE.get_start())
    failed = Trial(
        0,
        0,
        start,
        values,
        "failed",
        reason="the loss is nan",
        facts={"generation": 0, "failure": "number"},
    )
    running = Trial(1, 1, start, values, "running", facts={"generation": 0})
    return dataclasses.replace(_make_evidence([failed, running]), state="running")


def _make_evidence(trials: list[Trial]) -> results.Evidence:
    """Make the evidence of a study that has only these trials."""
    facts = {
        "names": SPACE.names,
        "start": SPACE.to_values(SPACE.get_start()),
        "space": SPACE,
        "phase": "search",
        "started_at": STARTED_AT,
        "trials": trials,
    }
    failed = [trial for trial in trials if trial.state == "failed"]
    losses = [trial.objective for trial in trials]
    return results.Evidence(
        **{
            **vars(make_empty_evidence()),
            **facts,
            "name": "young",
            "units": [trial.unit for trial in trials],
            "losses": losses,
            "best": next((trial for trial in trials if trial.objective is not None), None),
            "convergence": _make_convergence(
                [
                    loss
                    for trial, loss in zip(trials, losses, strict=True)
                    if trial.state != "running"
                ]
            ),
            "failures": {"number": failed} if failed else {},
            "seconds_by_phase": {"search": SECONDS * len(trials)},
            "runs_by_phase": {"search": len(trials)},
        }
    )


def make_comparison(gains: Sequence[float]) -> results.Comparison:
    """Make the comparison of at least two pairs from their gains [%]."""
    count, mean, spread = len(gains), float(np.mean(gains)), float(np.std(gains, ddof=1))
    half = _T.get(count, 2.0) * spread / math.sqrt(count)
    p = min(1.0, math.exp(-0.7 * abs(mean) * math.sqrt(count) / spread))
    return results.Comparison(
        count,
        mean,
        mean - half,
        mean + half,
        mean - 0.7 * half,
        mean + 0.7 * half,
        p,
        0.0625,
        mean / spread,
    )


def _make_validation(
    space: Space, best: Trial, draw: np.random.Generator
) -> results.ValidationResult:
    def make_runs(first: int, phase_unit: Sequence[float]) -> list[Trial]:
        runs = []
        for index, seed in enumerate(SEEDS):
            loss = compute_loss(phase_unit, draw)
            facts = {
                "seed": seed,
                "val_loss": loss,
                "test_perplexity": math.exp(loss + 0.02),
                "phase": "validation",
            }
            values = space.to_values(phase_unit)
            runs.append(
                Trial(
                    first + 2 * index,
                    first + 2 * index,
                    tuple(phase_unit),
                    values,
                    "complete",
                    loss,
                    facts=facts,
                )
            )
        return runs

    before, after = make_runs(9000, SPACE.get_start()), make_runs(9001, best.unit)
    pairs = zip(before, after, strict=True)
    gains = [
        100.0 * (1.0 - new.facts["test_perplexity"] / old.facts["test_perplexity"])
        for old, new in pairs
    ]
    gain = make_comparison(gains)
    reason = f"test perplexity improves by {gain.mean:.1f} % ({gain.low:.1f} to {gain.high:.1f})"
    return results.ValidationResult(before, after, gain, decision="GO", reason=reason)


def _make_convergence(losses: Sequence[float | None]) -> results.Convergence:
    best: list[float | None] = []
    for loss in losses:
        known = [value for value in (*best[-1:], loss) if value is not None]
        best.append(min(known, default=None))
    hours = [SECONDS * (index + 1) / 3600.0 / 2.0 for index in range(len(losses))]
    return results.Convergence(
        range(1, len(losses) + 1), best, hours, [2.0 * hour for hour in hours]
    )


def _make_random_curve(losses: Sequence[float | None]) -> results.RandomCurve:
    count = min(200, len(losses))
    k = [*range(1, count + 1)]
    best = [2.27 - 0.045 * math.log(evaluations) for evaluations in k]
    low, high = (
        [value - 0.025 - 0.02 / evaluations for evaluations, value in zip(k, best, strict=True)],
        [2.27 + 0.04 - 0.047 * math.log(evaluations) for evaluations in k],
    )
    return results.RandomCurve("first generation and random trials", count, k, best, low, high)


def _make_correlation(size: int, draw: np.random.Generator) -> list[list[float]]:
    mixing = np.eye(size) + 0.25 * draw.normal(size=(size, size))
    covariance = mixing @ mixing.T
    spread = np.sqrt(np.diag(covariance))
    return (covariance / np.outer(spread, spread)).tolist()


def _make_effects(space: Space) -> list[results.Effect]:
    effects = []
    for name, worth in zip(space.names, LOSS_DROPS, strict=True):
        z = 60.0 * worth + 0.4
        p = 0.5 * math.erfc(z / math.sqrt(2.0))
        effects.append(results.Effect(name, z, p, min(1.0, 10 * p), 10 * p < 0.05))
    return effects


def _make_importances(space: Space) -> list[results.Importance]:
    total = sum(LOSS_DROPS) + 0.03
    shares = [(worth + 0.003) / total for worth in LOSS_DROPS]
    roots = [math.sqrt(share) for share in shares]
    return [
        results.Importance(name, share, None if index == 3 else root / sum(roots))
        for index, (name, share, root) in enumerate(zip(space.names, shares, roots, strict=True))
    ]


def _make_profiles(
    space: Space, trials: Sequence[Trial], losses: Sequence[float | None]
) -> list[results.Profile]:
    profiles = []
    complete = [
        (trial, loss) for trial, loss in zip(trials, losses, strict=True) if loss is not None
    ]
    for index, dimension in enumerate(space.dimensions):
        units = np.array([trial.unit[index] for trial, _ in complete])
        observed = np.array([loss for _, loss in complete])
        grid = np.linspace(units.min(), units.max(), 25)
        weights = np.exp(-0.5 * ((grid[:, None] - units[None, :]) / 0.08) ** 2)
        line = (weights @ observed) / weights.sum(1)
        band = 0.06 / np.sqrt(weights.sum(1))
        profiles.append(
            results.Profile(
                dimension.name,
                log=dimension.scale == "log",
                values=[float(trial.values[dimension.name]) for trial, _ in complete],
                losses=observed.tolist(),
                line_values=[float(dimension.to_value(u)) for u in grid],
                line=line.tolist(),
                low=(line - band).tolist(),
                high=(line + band).tolist(),
            )
        )
    return profiles


def _make_ablation(
    space: Space, best: Trial, draw: np.random.Generator
) -> list[results.AblationRow]:
    rows = []
    for index, (dimension, worth) in enumerate(zip(space.dimensions, LOSS_DROPS, strict=True)):
        reverted = make_comparison((100.0 * worth * 0.9 + draw.normal(0.0, 0.35, 3)).tolist())
        alone = (
            make_comparison((100.0 * worth * 0.6 + draw.normal(0.0, 0.45, 3)).tolist())
            if index != 3
            else None
        )
        adjusted = [None if c is None else min(1.0, 4.0 * c.p) for c in (reverted, alone)]
        rows.append(
            results.AblationRow(
                dimension.name,
                dimension.start,
                best.values[dimension.name],
                reverted,
                alone,
                *adjusted,
            )
        )
    return sorted(rows, key=lambda entry: -entry.reverted.mean)


def _make_curve(gain: float, draw: np.random.Generator) -> dict[int, float]:
    end = 2.27 - gain + draw.normal(0.0, NOISE)
    return {
        step: end
        + 3.4 * math.exp(-step / 28.0) * (1.0 - 0.3 * gain)
        + 0.25 * math.exp(-step / 120.0)
        for step in range(10, 201, 10)
    }
