"""Results of the analyses of a study as plain values, for report/ to draw and describe.

Losses are the values that the search minimised: the objective, or its negative if the objective is
maximised. Only complete trials have a loss here; the estimate of a pruned trial is not a result. An
entry that cannot be computed is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from synaptune.analysis.regimes import Regime
from synaptune.analysis.repeats import Repeats
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial
from synaptune.study.state import UNKNOWN_PLAN, SearchPlan, State

if TYPE_CHECKING:
    from synaptune.analysis.goals import GoalResult


class Comparison(NamedTuple):
    """Comparison of two configurations on the same seeds; a positive difference is better.

    Attributes:
        count: number of pairs.
        mean: mean of the differences.
        low: lower end of their t interval.
        high: upper end of their t interval.
        boot_low: lower end of their bootstrap interval.
        boot_high: upper end of their bootstrap interval.
        p: p-value of the two-sided paired t-test.
        wilcoxon: p-value of the two-sided signed-rank test; None if all pairs are equal.
        effect: mean divided by the standard deviation of the differences, corrected for few pairs
            (Hedges); None if they do not vary.
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
    """Result of the validation of a study.

    Attributes:
        before: validation runs of the baseline.
        after: validation runs of the best on the same seeds.
        gain: relative improvement of test perplexity [%].
        decision: action of the gate.
        reason: reason for the action.
        goals: the metrics of the plan.
        overfit: how far test perplexity is above that of the validation split; None if it is not.
    """

    before: Sequence[Trial]
    after: Sequence[Trial]
    gain: Comparison
    decision: str
    reason: str
    goals: Sequence[GoalResult] = ()
    overfit: str | None = None


class Convergence(NamedTuple):
    """Course of the best loss: one entry for each ended trial of a search, in the order of ends.

    Attributes:
        evaluation: 1, 2, ...
        best: best loss so far; None before the first complete trial.
        hours: wall time since the start of the search, without pauses [h].
        device_hours: sum of the durations of the runs so far [h].
    """

    evaluation: Sequence[int]
    best: Sequence[float | None]
    hours: Sequence[float]
    device_hours: Sequence[float]


class RandomCurve(NamedTuple):
    """Expected best loss of k random points.

    Attributes:
        source: origin of the points.
        count: number of points.
        k: numbers of points, up to count.
        best: expected best loss of k points.
        low: 10th percentile of the best loss.
        high: 90th percentile of the best loss.
    """

    source: str
    count: int
    k: Sequence[int]
    best: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Generation(NamedTuple):
    """One generation of a search; the values are by parameter name.

    Attributes:
        number: number of the generation.
        mean: values at the mean of the distribution; as low and high, without choices.
        low: values one standard deviation below the mean.
        high: values one standard deviation above the mean.
        best: values of the best trial.
        best_loss: loss of the best trial.
        condition: condition number of the distribution.
        step: step size of the distribution.
    """

    number: int
    mean: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    best: Mapping[str, Value]
    best_loss: float | None
    condition: float
    step: float


class Importance(NamedTuple):
    """Importance of a parameter; a share that was not computed is None.

    Attributes:
        name: name of the parameter.
        fanova: share of the variance of the loss (fANOVA).
        ped_anova: share in separating the best trials from the rest (PED-ANOVA); None for all
            parameters if shuffled losses give a share as large.
        fanova_spread: smallest and largest share over refits to resampled trials.
        ped_spread: the same for PED-ANOVA.
        floor: share of fANOVA that the largest one of shuffled losses reaches in 5 % of the cases.
    """

    name: str
    fanova: float | None
    ped_anova: float | None
    fanova_spread: tuple[float, float] | None = None
    ped_spread: tuple[float, float] | None = None
    floor: float | None = None


class Effect(NamedTuple):
    """Test of whether the loss depends on a parameter, from the trials of the search (effects.py).

    Attributes:
        name: name of the parameter.
        z: test statistic, standard normal without an effect.
        p: one-sided p-value.
        adjusted_p: p-value adjusted for the number of parameters (Holm).
        significant: whether the adjusted p-value is below 5 %.
    """

    name: str
    z: float
    p: float
    adjusted_p: float
    significant: bool


class ScreenEffect(NamedTuple):
    """Effect of a parameter on the loss.

    Attributes:
        name: name of the parameter.
        effect: mean loss at the high level less that at the low level.
        low: lower end of its 95 % interval.
        high: upper end.
        p: p-value, eq. (5).
        adjusted_p: p-value adjusted for all parameters (Holm).
        chosen: whether the search varies the parameter.
    """

    name: str
    effect: float
    low: float
    high: float
    p: float
    adjusted_p: float
    chosen: bool


class Interaction(NamedTuple):
    """Interaction of two parameters, eq. (6); p is adjusted for all tested pairs."""

    first: str
    second: str
    effect: float
    adjusted_p: float


class Screening(NamedTuple):
    """The result of a screening.

    Attributes:
        effects: of all parameters, the largest first.
        interactions: the pairs whose interaction is significant.
        runs: number of runs that count.
        failed: number of runs that failed.
        error: standard error of an effect, eq. (4).
        is_folded: whether the design is a fold-over.
    """

    effects: Sequence[ScreenEffect]
    interactions: Sequence[Interaction]
    runs: int
    failed: int
    error: float
    is_folded: bool


class Hypothesis(NamedTuple):
    """A hypothesis stated before the search.

    Attributes:
        statement: the hypothesis.
        finding: the result of the study, with numbers.
        holds: whether it holds; None if the study cannot decide it.
    """

    statement: str
    finding: str
    holds: bool | None


class Profile(NamedTuple):
    """Loss along one parameter, with the other parameters as the search set them.

    Attributes:
        name: name of the parameter.
        log: whether its axis is logarithmic.
        values: values of the complete trials.
        losses: losses of the complete trials.
        line_values: values of the parameter at which the line is computed.
        line: local regression of the loss over recent trials.
        low: lower edge of the band of the line.
        high: upper edge of the band of the line.
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
    """Standard deviations of the validation loss [nat/token]; None with fewer than two runs.

    Attributes:
        before: over seeds, at the defaults.
        after: over seeds, at the best.
        difference: over seeds, of the paired difference between the two.
        candidates: over the complete trials of the search, which share their seed.
    """

    before: float | None
    after: float | None
    difference: float | None
    candidates: float | None


class SelectionBias(NamedTuple):
    """Gain of the best over the baseline [nat/token].

    Attributes:
        search: on the search's own seed.
        fresh: on fresh seeds.
        test: on fresh seeds and the test split.
    """

    search: float
    fresh: float
    test: float


class AblationRow(NamedTuple):
    """Ablation of one parameter; comparisons are improvements of test perplexity [%].

    Attributes:
        name: name of the parameter.
        default: its default value.
        tuned: its value at the optimum.
        reverted: the optimum against the optimum with this parameter at its default; positive if
            the tuned value is better.
        alone: the defaults with this parameter at its tuned value against the defaults.
        adjusted_reverted: p of `reverted`, adjusted for all comparisons of the ablation (Holm).
        adjusted_alone: p of `alone`, adjusted in the same way.
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
    """All results of a study, computed from its snapshot (analysis/evidence.py).

    Attributes:
        name: name of the study.
        phase: phase of the analysed search, which is the last one; None before a search.
        maximize: whether the objective is maximised.
        names: names of the searched parameters, grouped by subsystem.
        trials: trials of the search.
        units: their unit coordinates, in the order of names.
        losses: their losses; None unless the trial is complete.
        start: values of the baseline.
        best: trial whose values are recommended.
        validation: result of the validation.
        convergence: course of the best loss.
        random_curve: expected best loss of random points.
        generations: the generations of the search.
        correlation: correlation matrix of the final search distribution, in the order of names.
        effects: tested effects of the parameters.
        effects_note: why effects is empty.
        importances: importances of the parameters.
        hypotheses: hypotheses about searched parameters.
        profiles: profiles of the numeric parameters.
        noise: spread of the validation loss.
        selection_bias: gains on the search's own seed and on fresh ones.
        ablation: ablation of the parameters.
        failures: failed trials by kind.
        curves: reported losses by step of the validation runs.
        seconds_by_phase: sum of the durations of the runs [s].
        runs_by_phase: number of runs.
        started_at: start of the first trial.
        ended_at: end of the last trial; None while a trial is running.
        state: whether the study is running, interrupted or has ended.
        plan: plan of the analysed search.
        validated: trial of the search that the validation ran; None without one. It is not `best`
            if the search has found a better trial since, and the validation is then stale.
        test_accuracies: test accuracy of the best on fresh seeds, of an image study.
        repeats: the same search with other search seeds; None without.
        screening: which of many parameters matter; None without a screening.
        regimes: gains of the mechanisms in the tasks of their roles.
        spans: start and end of the ended trials by number [s since the first start].
        imported: number of imported trials by their source.
        provenance: what is needed to reproduce the study.
        inspections: results of the inspections of the baseline and the best ("baseline", "best").
        space: ranges of the search; None before a search.
        fixed: values that the search space file fixes.
        gates: results of the gates of phase 2.
        correlation_noise: correlation that the strongest pair of a null search exceeds in 5 % of
            the searches; None if not measured.
        objective: what the search optimises, in a sentence (`loss`, `hybrid objective`, ...).
        label: the same with its unit, for titles and axes.
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
    objective: str = "objective"
    label: str = "objective"
    state: State = "ended"
    plan: SearchPlan = UNKNOWN_PLAN
    validated: Trial | None = None
    test_accuracies: tuple[float, ...] = ()
    repeats: Repeats | None = None
    screening: Screening | None = None
    regimes: Sequence[Regime] = ()
    spans: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    imported: Mapping[str, int] = field(default_factory=dict)

    @property
    def direction(self) -> str:
        """Which objectives are better."""
        return f"{'higher' if self.maximize else 'lower'} is better"

    @property
    def is_stale(self) -> bool:
        """Whether the validation is older than the best."""
        return (
            self.validated is not None
            and self.best is not None
            and self.validated.number != self.best.number
        )

    @property
    def ended_count(self) -> int:
        """Number of ended trials of the search."""
        return sum(trial.state != "running" for trial in self.trials)
