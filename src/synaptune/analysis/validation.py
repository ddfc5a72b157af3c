"""What a validation says: gain, decision, and how much of the search's own gain was luck."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.compare import Improvement, compare
from synaptune.analysis.results import Noise, SelectionBias, ValidationResult
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, VALIDATION, StudySnapshot

PERPLEXITY, LOSS, TEST_LOSS = "test_perplexity", "val_loss", "test_loss"


def find_validated_pair(snapshot: StudySnapshot) -> tuple[Trial, Trial] | None:
    """A run of each point that the validation compared, the baseline and the best; null before a run of the second one.

    Only missing runs are made when a validation is made again for a later best: the baseline is the point of the first run, and the
    best that of the last run elsewhere, whatever lies between.
    """
    trials = snapshot.get_phase_trials(VALIDATION)
    elsewhere = [trial for trial in trials if trial.values != trials[0].values]
    return (trials[0], elsewhere[-1]) if elsewhere else None


def pair_validation_runs(snapshot: StudySnapshot) -> list[tuple[Trial, Trial]]:
    """The validation's complete runs of the baseline and of the best, paired by seed."""
    points = find_validated_pair(snapshot)
    if points is None:
        return []
    complete = [
        trial for trial in snapshot.get_phase_trials(VALIDATION) if trial.state == "complete"
    ]
    before, after = (
        {trial.facts.get(schema.SEED): trial for trial in complete if trial.values == point.values}
        for point in points
    )
    return [(trial, after[seed]) for seed, trial in before.items() if seed in after]


def compute_validation(snapshot: StudySnapshot) -> ValidationResult | None:
    """The validation's result; null when it has fewer than two whole pairs, or ran without a test split."""
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(PERPLEXITY in trial.facts for trial in pair)
    ]
    if len(pairs) < 2:
        return None
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    gain = compare(_read_facts(before, PERPLEXITY), _read_facts(after, PERPLEXITY))
    decision = decide(Improvement(gain.mean, gain.low, gain.high), measure_gini_gain(before, after))
    return ValidationResult(before, after, gain, decision.action, decision.reason)


def measure_gini_gain(before: Sequence[Trial], after: Sequence[Trial]) -> float | None:
    """Relative rise of the experts' mean Gini [%]; null for dense models, or when there was nothing before."""
    sides = [
        [trial.facts["expert_gini"] for trial in runs if "expert_gini" in trial.facts]
        for runs in (before, after)
    ]
    if not all(sides) or statistics.fmean(sides[0]) <= 0.0:
        return None
    return 100.0 * (statistics.fmean(sides[1]) / statistics.fmean(sides[0]) - 1.0)


def measure_noise(snapshot: StudySnapshot) -> Noise:
    """The spread over seeds, and over candidates on one seed; of runs whose validation loss is known."""
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(LOSS in trial.facts for trial in pair)
    ]
    before, after = (_read_facts([pair[side] for pair in pairs], LOSS) for side in (0, 1))
    candidates = [
        trial.objective for trial in snapshot.search_trials if trial.objective is not None
    ]
    differences = [new - old for old, new in zip(before, after, strict=True)]
    return Noise(*map(_standard_deviation, (before, after, differences, candidates)))


def measure_selection_bias(snapshot: StudySnapshot, best: Trial | None) -> SelectionBias | None:
    """The gain on the search's seed, on fresh seeds and on the test split; null unless the search went by the validation loss."""
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(LOSS in trial.facts and TEST_LOSS in trial.facts for trial in pair)
    ]
    if snapshot.configuration.get("objective.name") != LOSS or best is None or not pairs:
        return None
    start = _find_start_trial(snapshot, pairs[0][0])
    if start is None or start.objective is None or best.objective is None:
        return None
    fresh, test = (
        statistics.fmean(old.facts[name] - new.facts[name] for old, new in pairs)
        for name in (LOSS, TEST_LOSS)
    )
    return SelectionBias(start.objective - best.objective, fresh, test)


def _find_start_trial(snapshot: StudySnapshot, baseline: Trial) -> Trial | None:
    """The search's own evaluation of the baseline's point; else the baseline's run, which is like it only with one seed each."""
    own = [
        trial
        for trial in snapshot.search_trials
        if all(baseline.values.get(name) == value for name, value in trial.values.items())
    ]
    alone = (
        []
        if snapshot.configuration.get("search.seeds", 1) != 1
        else snapshot.get_phase_trials(BASELINE)
    )
    return next((trial for trial in (*own, *alone) if trial.objective is not None), None)


def _read_facts(runs: Sequence[Trial], name: str) -> list[float]:
    return [run.facts[name] for run in runs]


def _standard_deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


PROCEED = 10.0  # improvement that is enough alone [%]; chosen: the plan's gate


CONSIDER = 5.0  # improvement worth a second look [%]; chosen: the plan's gate


GINI_GAIN = 10.0  # rise of the experts' Gini that makes up for less [%]; chosen: the plan's gate


class Decision(NamedTuple):
    """What to do next, and why."""

    action: Literal["proceed", "re-evaluate", "stop"]
    reason: str


def decide(improvement: Improvement, gini_gain: float | None) -> Decision:
    """The decision on an improvement of test perplexity [%]; gini_gain: relative rise of the expert Gini [%], null when dense.

    An improvement whose interval reaches zero never proceeds: it may be none.
    """
    mean = improvement.mean
    if mean < CONSIDER:
        why = (
            f"worsened by {-mean:.1f} %"
            if mean < 0.0
            else f"improved by {mean:.1f} %, below {CONSIDER:g} %"
        )
        return Decision("stop", f"perplexity {why}")
    if improvement.low <= 0.0:
        return Decision(
            "re-evaluate", f"perplexity improved by {mean:.1f} %, but its interval reaches zero"
        )
    if mean > PROCEED:
        return Decision("proceed", f"perplexity improved by {mean:.1f} %, above {PROCEED:g} %")
    if gini_gain is not None and gini_gain >= GINI_GAIN:
        return Decision(
            "proceed",
            f"perplexity improved by {mean:.1f} % and the expert Gini by {gini_gain:.0f} %",
        )
    gini = "" if gini_gain is None else f", with the expert Gini changed by {gini_gain:+.0f} %"
    return Decision(
        "re-evaluate",
        f"perplexity improved by {mean:.1f} %, between {CONSIDER:g} and {PROCEED:g} %{gini}",
    )
