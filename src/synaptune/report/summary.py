"""The result of a protocol as plain values (summary.json), and its printing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.goals import GoalResult
from synaptune.analysis.validation import judge
from synaptune.report.console import print_table
from synaptune.report.findings import Finding
from synaptune.report.table_model import Column, Table, show_value
from synaptune.report.tables import tabulate_goals
from synaptune.search.trial import Trial
from synaptune.study.artifacts import describe_validation


def summarise_study(
    study: str,
    trials: Sequence[Trial],
    best: Trial,
    *,
    pairs: Sequence[tuple[Trial, Trial]],
    defaults: Mapping[str, Any],
    seconds: float,
    findings: Sequence[Finding] = (),
    ablation: Sequence[Mapping[str, Any]] = (),
    protocol: str = "phase1",
) -> dict[str, Any]:
    """Summarise a study.

    Args:
        study: name of the study.
        trials: trials of the search.
        best: trial whose values are recommended.
        pairs: validation runs of the start values and of the best on the same seeds.
        defaults: start values of the parameters.
        seconds: sum of the durations of the runs [s].
        findings: findings of the report that are printed with the verdict.
        ablation: rows of the ablation of the best, as plain values.
        protocol: name of the protocol, whose rule decides.

    Returns:
        The content of summary.json. Perplexities [tokens] are of the test split, losses
        [nats/token] of the validation split, and the improvement is in per cent.
    """
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    improvement = compute_improvement(
        _read_facts(before, "test_perplexity"), _read_facts(after, "test_perplexity")
    )
    decision, goals, overfit = judge(before, after, improvement, protocol)
    return {
        "study": study,
        "evaluations": sum(trial.state != "running" for trial in trials),
        "failed": sum(trial.state == "failed" for trial in trials),
        "baseline": _summarise_side(before),
        "best": _summarise_side(after) | {"trial": best.number, "search_objective": best.objective},
        "improvement": improvement._asdict(),
        "decision": decision.action,
        "reason": decision.reason,
        "goals": [goal._asdict() for goal in goals],
        "overfit": overfit,
        "parameters": {
            name: {"start": defaults[name], "best": value} for name, value in best.values.items()
        },
        "ablation": list(ablation),
        "data_fingerprint": before[0].facts.get("data_fingerprint"),
        "seconds": seconds,
        "findings": {finding.title: finding.text for finding in findings},
    }


def _summarise_side(runs: Sequence[Trial]) -> dict[str, list[Any]]:
    side = {
        "seeds": _read_facts(runs, "seed"),
        "validation_loss": _read_facts(runs, "val_loss"),
        "test_perplexity": _read_facts(runs, "test_perplexity"),
    }
    gini = [run.facts["expert_gini"] for run in runs if "expert_gini" in run.facts]
    return side | ({"expert_gini": gini} if gini else {})


def _read_facts(runs: Sequence[Trial], name: str) -> list[Any]:
    return [run.facts[name] for run in runs]


def describe_summary(summary: Mapping[str, Any]) -> str:
    """Describe the validation of a summary in the note of a best.yaml."""
    gain, count = summary["improvement"], len(summary["baseline"]["seeds"])
    return describe_validation(count, gain["mean"], low=gain["low"], high=gain["high"])


_COLOURS = {"proceed": "green", "re-evaluate": "yellow", "stop": "red"}


def print_verdict(summary: Mapping[str, Any], console: Console) -> None:
    """Print a summary (the content of summary.json)."""
    before, after, gain = summary["baseline"], summary["best"], summary["improvement"]
    perplexities = [statistics.fmean(side["test_perplexity"]) for side in (before, after)]
    losses = [f"{statistics.fmean(side['validation_loss']):z.4f}" for side in (before, after)]
    interval = f"{gain['mean']:z.2f} %  ({gain['low']:z.2f} to {gain['high']:z.2f})"
    values = (Column("start", "value"), Column("best", "value"))
    columns = (Column("on fresh seeds"), *values, Column("improvement, 95 % interval", "value"))
    rows = [
        ("test perplexity", *perplexities, interval),
        ("validation loss [nats/token]", *losses, None),
    ]
    print_table(Table("verdict", f"Verdict of study {summary['study']}", columns, rows), console)
    goals = [GoalResult(**goal) for goal in summary.get("goals", ())]
    if goals:
        print_table(tabulate_goals(goals), console)
    pairs = summary["parameters"].items()
    rows = [(name, show_value(pair["start"]), show_value(pair["best"])) for name, pair in pairs]
    print_table(Table("parameters", "Parameters", (Column("name"), *values), rows), console)
    evaluated = (
        f"{summary['evaluations']} evaluations, {summary['failed']} failed, {len(before['seeds'])}"
        " paired seeds"
    )
    console.print(f"{evaluated}, {summary['seconds'] / 60:z.1f} minutes of runs", highlight=False)
    for title, text in summary["findings"].items():
        line = f"{title}: {text}"  # one line in a pipe
        is_pipe = not console.is_terminal
        console.print(line, highlight=False, markup=False, soft_wrap=is_pipe)
    if summary.get("overfit"):
        console.print(f"[bold yellow]overfit[/]: {summary['overfit']}", highlight=False)
    colour = _COLOURS[summary["decision"]]
    console.print(f"[bold {colour}]{summary['decision']}[/]: {summary['reason']}", highlight=False)
