"""What the analyses of a study find, as plain values; report/ draws and words them.

Losses are what the search minimised (of a maximised objective its negative), of complete trials alone: what a pruned one would have
reached is no result. An entry that cannot be known is null or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from synaptune.search.space.space import Space, UnitPoint, Value
from synaptune.search.trial import Trial


class Comparison(NamedTuple):
    """Two configurations on the same seeds; a positive difference is better.

    count: pairs; mean, low, high: of the differences, with the t-interval; boot_low, boot_high: bootstrap interval; p: two-sided
    paired t-test; wilcoxon: two-sided signed-rank test, null when all pairs are equal; effect: mean over standard deviation of
    the differences, corrected for few pairs (Hedges), null when they do not vary.
    """

    count: int
    mean: float
    low: float
    high: float
    boot_low: float
    boot_high: float
    p: float
    wilcoxon: float | None
    effect: float | None


@dataclass(frozen=True)
class ValidationResult:
    """What the validation says of a study; gains are relative improvements of test perplexity [%].

    before, after: validation runs on the same seeds; decision, reason: of the gate.
    """

    before: Sequence[Trial]
    after: Sequence[Trial]
    gain: Comparison
    decision: str
    reason: str


class Convergence(NamedTuple):
    """The best loss so far, one entry for each ended trial of a search in the order of their ends.

    evaluation: 1, 2, ...; best: null before the first complete trial; hours: by the clock since the search began, pauses left
    out; device_hours: spent on runs so far.
    """

    evaluation: Sequence[int]
    best: Sequence[float | None]
    hours: Sequence[float]
    device_hours: Sequence[float]


class RandomCurve(NamedTuple):
    """What random points would have found: expected best loss of the first k of them, with the 10th and 90th percentile.

    source: where the points are from; count: of them; k, best, low, high: equally long, k up to count.
    """

    source: str
    count: int
    k: Sequence[int]
    best: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Generation(NamedTuple):
    """A generation of a search: value at the distribution's mean and one deviation to each side, and of its best trial, by name."""

    number: int
    mean: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    best: Mapping[str, Value]
    best_loss: float | None
    condition: float
    step: float


class Importance(NamedTuple):
    """A parameter's share in the spread of the loss by fANOVA, and in being among the best by PED-ANOVA; null where not computed."""

    name: str
    fanova: float | None
    ped_anova: float | None


class Effect(NamedTuple):
    """Whether the loss depends on a parameter, from the search's own trials (analysis/effects.py).

    z: test statistic, standard normal without an effect; p: one-sided; adjusted: for the number of parameters (Holm);
    found: adjusted below 5 %.
    """

    name: str
    z: float
    p: float
    adjusted_p: float
    significant: bool


class Hypothesis(NamedTuple):
    """A claim made before the search; found: what the study has, with numbers; holds: null when the study cannot tell."""

    statement: str
    finding: str
    holds: bool | None


class Profile(NamedTuple):
    """The loss along one parameter, the others as the search had them: value and loss of each complete trial, and a smooth line.

    values, losses: of the trials; line_values, line, low, high: equally long, by a local regression over recent trials.
    """

    name: str
    log: bool
    values: Sequence[float]
    losses: Sequence[float]
    line_values: Sequence[float]
    line: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Noise(NamedTuple):
    """Standard deviation over seeds of the validation loss [nats/token] at the defaults and at the best, and of their paired
    difference; candidates: over the search's complete trials, all on one seed. Null with fewer than two runs."""

    before: float | None
    after: float | None
    difference: float | None
    candidates: float | None


class SelectionBias(NamedTuple):
    """How much of the search's gain survives [nats/token]: on the search's own seed, on fresh seeds, and on the test split."""

    search: float
    fresh: float
    test: float


class AblationRow(NamedTuple):
    """One parameter of the optimum; comparisons are relative improvements of test perplexity [%] on paired seeds.

    reverted: what it is worth at the optimum: tuned against the same with this one at its default (positive: the tuned value
    is better); alone: what it brings by itself: this one tuned, all others at their defaults, against the defaults; adjusted:
    p of `reverted` and `alone` corrected for all comparisons of the ablation (Holm).
    """

    name: str
    default: Value
    tuned: Value
    reverted: Comparison | None
    alone: Comparison | None
    adjusted_reverted: float | None
    adjusted_alone: float | None


@dataclass(frozen=True)
class Evidence:
    """All that is known of a study, computed once from its record (analysis/evidence.py).

    phase: of the search it is about; names: searched parameters by subsystem; best: the trial whose values are recommended;
    start: values of the baseline; effects_note: why effects are empty; correlation: rows of the search distribution's matrix in
    the order of names, at the end; portraits: what portrait.py stored of the baseline and the best ("baseline", "best");
    space: the ranges of that search, null when none has begun; fixed: values that its space file held; gates: accounts of
    phase2.py; correlation_noise: what the strongest pair reaches in 5 % of searches that know no loss, null when not measured.
    """

    name: str
    phase: str | None
    maximize: bool
    names: tuple[str, ...]
    trials: Sequence[Trial]
    units: Sequence[UnitPoint]
    losses: Sequence[float | None]
    start: Mapping[str, Value]
    best: Trial | None
    validation: ValidationResult | None
    convergence: Convergence | None
    random_curve: RandomCurve | None
    generations: Sequence[Generation]
    correlation: Sequence[Sequence[float]]
    effects: Sequence[Effect]
    effects_note: str
    importances: Sequence[Importance]
    hypotheses: Sequence[Hypothesis]
    profiles: Sequence[Profile]
    noise: Noise | None
    selection_bias: SelectionBias | None
    ablation: Sequence[AblationRow]
    failures: Mapping[str, Sequence[Trial]]
    curves: Mapping[str, Mapping[int, float]]
    seconds_by_phase: Mapping[str, float]
    runs_by_phase: Mapping[str, int]
    started_at: datetime | None
    ended_at: datetime | None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    inspections: Mapping[str, Any] = field(default_factory=dict)
    space: Space | None = None
    fixed: Mapping[str, Value] = field(default_factory=dict)
    gates: Sequence[Mapping[str, Any]] = ()
    correlation_noise: float | None = None
