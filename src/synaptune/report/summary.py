"""The content of summary.json: the result of a protocol as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.validation import decide, measure_gini_gain
from synaptune.search.trial import Trial


def summarise_study(
    study: str,
    trials: Sequence[Trial],
    best: Trial,
    *,
    pairs: Sequence[tuple[Trial, Trial]],
    defaults: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Summarise a study.

    Perplexities [tokens] are those of the test split, losses [nats/token] those of the validation
    split. The improvement is in percent.

    Args:
        study: name of the study.
        trials: trials of its search.
        best: the trial whose values are recommended.
        pairs: validation runs (start, best) on the same seeds.
        defaults: start values of the parameters.
        seconds: duration of all runs [s].
    """
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    improvement = compute_improvement(
        _read_facts(before, "test_perplexity"), _read_facts(after, "test_perplexity")
    )
    decision = decide(improvement, measure_gini_gain(before, after))
    return {
        "study": study,
        "evaluations": sum(trial.state != "running" for trial in trials),
        "failed": sum(trial.state == "failed" for trial in trials),
        "baseline": _summarise_side(before),
        "best": _summarise_side(after) | {"trial": best.number, "search_objective": best.objective},
        "improvement": improvement._asdict(),
        "decision": decision.action,
        "reason": decision.reason,
        "parameters": {
            name: {"start": defaults[name], "best": value} for name, value in best.values.items()
        },
        "data_fingerprint": before[0].facts.get("data_fingerprint"),
        "seconds": seconds,
    }


def _summarise_side(runs: Sequence[Trial]) -> dict[str, list[Any]]:
    side = {
        "seeds": _read_facts(runs, "seed"),
        "validation_loss": _read_facts(runs, "val_loss"),
        "test_perplexity": _read_facts(runs, "test_perplexity"),
    }
    gini = _read_known_facts(runs, "expert_gini")
    return side | ({"expert_gini": gini} if gini else {})


def _read_facts(runs: Sequence[Trial], name: str) -> list[Any]:
    return [run.facts[name] for run in runs]


def _read_known_facts(runs: Sequence[Trial], name: str) -> list[float]:
    return [run.facts[name] for run in runs if name in run.facts]


_COLOURS = {"proceed": "green", "re-evaluate": "yellow", "stop": "red"}


def print_verdict(summary: Mapping[str, Any], console: Console) -> None:
    """Print a summary (the content of summary.json)."""
    before, after, gain = summary["baseline"], summary["best"], summary["improvement"]
    results = Table(title=f"Verdict of study {summary['study']}", title_justify="left")
    results.add_column("on fresh seeds")
    for heading in ("start", "tuned"):
        results.add_column(heading, justify="right")
    results.add_column("improvement, 95 % interval", justify="right")
    results.add_row(
        "test perplexity",
        f"{statistics.fmean(before['test_perplexity']):.4g}",
        f"{statistics.fmean(after['test_perplexity']):.4g}",
        f"{gain['mean']:.2f} %  ({gain['low']:.2f} to {gain['high']:.2f})",
    )
    losses = [f"{statistics.fmean(side['validation_loss']):.4f}" for side in (before, after)]
    results.add_row("validation loss [nats/token]", *losses, "")
    console.print(results)
    values = Table(title="Parameters", title_justify="left")
    values.add_column("name")
    for heading in ("start", "tuned"):
        values.add_column(heading, justify="right")
    for name, pair in summary["parameters"].items():
        values.add_row(name, _format_value(pair["start"]), _format_value(pair["best"]))
    console.print(values)
    evaluated = (
        f"{summary['evaluations']} evaluations, {summary['failed']} failed, "
        f"{len(before['seeds'])} paired seeds"
    )
    console.print(f"{evaluated}, {summary['seconds'] / 60:.1f} minutes of runs", highlight=False)
    colour = _COLOURS[summary["decision"]]
    console.print(f"[bold {colour}]{summary['decision']}[/]: {summary['reason']}", highlight=False)


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
