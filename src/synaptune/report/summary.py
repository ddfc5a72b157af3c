"""summary.json: a protocol's result as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synaptune.analysis.compare import paired_improvement
from synaptune.analysis.decision import decide
from synaptune.analysis.validation import gini_gain
from synaptune.search.trial import Trial


def summarise(
    study: str, trials: Sequence[Trial], best: Trial, *, pairs: Sequence[tuple[Trial, Trial]], defaults: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The summary of a study: `trials` of its search, `pairs` of validation runs (start, best) on the same seeds.

    Perplexities [tokens] are those of the test split, losses [nats/token] of the validation split, improvement in percent.
    """
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    improvement = paired_improvement(_facts(before, "test_perplexity"), _facts(after, "test_perplexity"))
    decision = decide(improvement, gini_gain(before, after))
    return {
        "study": study,
        "evaluations": sum(trial.state != "running" for trial in trials),
        "failed": sum(trial.state == "failed" for trial in trials),
        "baseline": _side(before),
        "best": _side(after) | {"trial": best.number, "search_objective": best.objective},
        "improvement": improvement._asdict(),
        "decision": decision.word,
        "reason": decision.why,
        "parameters": {name: {"start": defaults[name], "best": value} for name, value in best.values.items()},
        "data_fingerprint": before[0].facts.get("data_fingerprint"),
        "seconds": seconds,
    }


def _side(runs: Sequence[Trial]) -> dict[str, list[Any]]:
    side = {"seeds": _facts(runs, "seed"), "validation_loss": _facts(runs, "val_loss"), "test_perplexity": _facts(runs, "test_perplexity")}
    gini = _known(runs, "expert_gini")
    return side | ({"expert_gini": gini} if gini else {})


def _facts(runs: Sequence[Trial], name: str) -> list[Any]:
    return [run.facts[name] for run in runs]


def _known(runs: Sequence[Trial], name: str) -> list[float]:
    return [run.facts[name] for run in runs if name in run.facts]
