"""The tables of a report, from a study's evidence."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synaptune.analysis.results import AblationRow, Comparison, Evidence
from synaptune.core.text import format_duration, get_first_line
from synaptune.report import next_commands as orders
from synaptune.report.table_model import Column, Table, format_cell
from synaptune.search.trial import Trial
from synaptune.study import artifacts as export
from synaptune.study.database import keys as schema
from synaptune.study.reader import JOINT

_MAX_LISTED = 12  # trial numbers listed one by one
_MAX_REASONS = 40  # rows of the table of failures
_LONGEST_REASON = 160  # characters of a reason
# What the columns of the table of parameters say.
_COLUMN_NOTES = {
    "position": "Position: 0 is the lower end of the range on its own scale, 1 the upper.",
    "effect z": "Effect: whether the loss depends on the parameter, from the search's own trials.",
    "worth at the optimum": "Worth at the optimum: gain in test perplexity lost when this one goes back to its start value.",
}


def make_all_tables(evidence: Evidence) -> Iterator[Table]:
    """Every table that has rows."""
    for make in (
        tabulate_parameters,
        tabulate_validation,
        tabulate_gates,
        lambda evidence: tabulate_ablation(evidence.ablation),
        tabulate_hypotheses,
        tabulate_failures,
        tabulate_cost,
        tabulate_generations,
        tabulate_search_trials,
    ):
        table = make(evidence)
        if table.rows:
            yield table


def tabulate_parameters(evidence: Evidence) -> Table:
    """What is known of each searched parameter; columns that the study cannot fill are left out."""
    best = evidence.best.values if evidence.best is not None else {}
    ranges = (
        {dimension.name: dimension for dimension in evidence.space.dimensions}
        if evidence.space is not None
        else {}
    )
    place = find_positions(evidence)
    effects, shares = (
        {entry.name: entry for entry in evidence.effects},
        {entry.name: entry for entry in evidence.importances},
    )
    ablated = {entry.name: entry for entry in evidence.ablation}
    columns = {
        Column("parameter", "name"): list(evidence.names),
        Column("start", "value"): [evidence.start.get(name) for name in evidence.names],
        Column("tuned", "value"): [best.get(name) for name in evidence.names],
        Column("range", "range"): [ranges.get(name) for name in evidence.names],
        Column("position", "position"): [place.get(name) for name in evidence.names],
        Column("worth at the optimum", "gain", "%"): [
            ablated[name].reverted if name in ablated else None for name in evidence.names
        ],
        Column("effect z", "share"): [
            effects[name].z if name in effects else None for name in evidence.names
        ],
        Column("p (Holm)", "p"): [
            effects[name].adjusted_p if name in effects else None for name in evidence.names
        ],
        Column("fANOVA", "share"): [
            shares[name].fanova if name in shares else None for name in evidence.names
        ],
        Column("PED-ANOVA", "share"): [
            shares[name].ped_anova if name in shares else None for name in evidence.names
        ],
    }
    known = {
        column: cells
        for column, cells in columns.items()
        if any(cell is not None for cell in cells)
    }
    headings = [column.name for column in known]
    note = " ".join(text for heading, text in _COLUMN_NOTES.items() if heading in headings)
    return Table(
        "parameters", "Parameters", list(known), list(zip(*known.values(), strict=True)), note
    )


def find_positions(evidence: Evidence) -> Mapping[str, float]:
    """Where the best values lie in their ranges, 0 to 1; choices have no place."""
    best = evidence.best
    if best is None or len(best.unit) != len(best.values):
        return {}
    place = dict(zip(best.values, best.unit, strict=True))
    kinds = (
        {dimension.name: dimension.scale for dimension in evidence.space.dimensions}
        if evidence.space is not None
        else {}
    )
    return {name: unit for name, unit in place.items() if kinds.get(name) != "categorical"}


def tabulate_validation(evidence: Evidence) -> Table:
    """The runs on fresh seeds, a row for each seed."""
    columns = (
        Column("seed", "count"),
        Column("validation loss, start", "loss", "nats/token"),
        Column("validation loss, tuned", "loss", "nats/token"),
        Column("test perplexity, start", "value", "tokens"),
        Column("test perplexity, tuned", "value", "tokens"),
        Column("improvement of test perplexity", "value", "%"),
    )
    claim = evidence.validation
    rows = (
        []
        if claim is None
        else [_make_seed_row(old, new) for old, new in zip(claim.before, claim.after, strict=True)]
    )
    return Table("validation", "Validation on fresh seeds", columns, rows)


def _make_seed_row(before: Trial, after: Trial) -> list[Any]:
    old, new = before.facts.get("test_perplexity"), after.facts.get("test_perplexity")
    gain = 100.0 * (1.0 - new / old) if old and new else None
    return [
        before.facts.get("seed"),
        before.facts.get("val_loss"),
        after.facts.get("val_loss"),
        old,
        new,
        gain,
    ]


def tabulate_ablation(ablation: Sequence[AblationRow]) -> Table:
    """What each tuned parameter is worth, the most valuable one first."""
    columns = (
        Column("parameter", "name"),
        Column("start", "value"),
        Column("tuned", "value"),
        Column("worth at the optimum", "gain", "%"),
        Column("p (Holm)", "p"),
        Column("brings alone", "gain", "%"),
        Column("p alone (Holm)", "p"),
    )
    rows = [
        [
            entry.name,
            entry.default,
            entry.tuned,
            entry.reverted,
            entry.adjusted_reverted,
            entry.alone,
            entry.adjusted_alone,
        ]
        for entry in sorted(ablation, key=lambda entry: _sort_key(entry.reverted))
    ]
    note = "Gains in test perplexity on paired seeds with 95 % intervals; they need not add up, since parameters act together."
    return Table("ablation", "Ablation of the optimum", columns, rows, note)


def _sort_key(found: Comparison | None) -> float:
    return float("inf") if found is None else -found.mean


def tabulate_gates(evidence: Evidence) -> Table:
    """What the gates before the last search decided, with the relative change of perplexity on fresh seeds."""
    columns = (
        Column("gate"),
        Column("decision"),
        Column("gain", "value", "%"),
        Column("low", "value", "%"),
        Column("high", "value", "%"),
    )
    rows = []
    for gate in evidence.gates:
        gain = gate.get("improvement") or {}
        rows.append(
            [
                gate["gate"],
                gate["decision"],
                *(gain.get(key) for key in ("mean", "low", "high")),
                gate["reason"],
            ]
        )
    return Table(
        "gates",
        "Gates",
        (*columns, Column("reason")),
        rows,
        "Gain of validation perplexity (phase 1: test), 95 % interval.",
    )


def tabulate_hypotheses(evidence: Evidence) -> Table:
    """The claims made beforehand and what became of them."""
    words = {True: "holds", False: "does not hold", None: "cannot tell"}
    rows = [[entry.statement, entry.finding, words[entry.holds]] for entry in evidence.hypotheses]
    return Table(
        "hypotheses", "Hypotheses", (Column("claim"), Column("found"), Column("verdict")), rows
    )


def tabulate_failures(evidence: Evidence) -> Table:
    """Why trials failed, the commonest first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for kind, trials_ in evidence.failures.items():
        for trial in trials_:
            groups.setdefault((kind, shorten_reason(trial.reason)), []).append(trial.number)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        [kind, reason, len(numbers), join_numbers(numbers)]
        for (kind, reason), numbers in ranked[:_MAX_REASONS]
    ]
    left = len(ranked) - _MAX_REASONS
    columns = (Column("kind"), Column("reason"), Column("trials", "count"), Column("numbers"))
    return Table(
        "failures",
        "Failures",
        columns,
        rows,
        f"{left} rarer reasons are left out." if left > 0 else "",
    )


def shorten_reason(reason: str | None) -> str:
    """A reason in one line."""
    line = get_first_line(reason)
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."


def join_numbers(numbers: Sequence[int]) -> str:
    """Trial numbers, the first ones of many."""
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    return ", ".join(str(number) for number in numbers[:_MAX_LISTED]) + more


def tabulate_cost(evidence: Evidence) -> Table:
    """Device time by phase."""
    columns = (
        Column("phase"),
        Column("runs", "count"),
        Column("device time", "seconds", "s"),
        Column("one run", "seconds", "s"),
    )
    rows = []
    for phase, seconds in evidence.seconds_by_phase.items():
        runs = evidence.runs_by_phase.get(phase, 0)
        rows.append([phase, runs, seconds, seconds / runs if runs else None])
    return Table("cost", "Cost", columns, rows)


def tabulate_generations(evidence: Evidence) -> Table:
    """The search distribution, generation by generation."""
    columns = [
        Column("generation", "count"),
        Column("best objective", "loss"),
        Column("condition", "value"),
        Column("step", "value"),
    ]
    columns += [
        Column(f"{name} {part}", "value")
        for name in evidence.names
        for part in ("mean", "low", "high", "best")
    ]
    rows = []
    for entry in evidence.generations:
        best = None if entry.best_loss is None else to_objective(evidence, entry.best_loss)
        parts = (entry.mean, entry.low, entry.high, entry.best)
        rows.append(
            [
                entry.number,
                best,
                entry.condition,
                entry.step,
                *(part.get(name) for name in evidence.names for part in parts),
            ]
        )
    return Table("generations", "Generations", columns, rows)


def tabulate_search_trials(evidence: Evidence, chosen: Sequence[Trial] | None = None) -> Table:
    """The trials of the search, or those chosen among them."""
    chosen = evidence.trials if chosen is None else chosen
    columns = [
        Column("trial", "count"),
        Column("generation", "count"),
        Column("state"),
        Column("objective", "loss"),
    ]
    columns += [
        Column("run", "seconds", "s"),
        Column("seed", "count"),
        *(Column(name, "value") for name in evidence.names),
    ]
    columns.append(Column("reason"))
    rows = []
    for trial in chosen:
        facts = trial.facts
        head = [
            trial.number,
            facts.get("generation"),
            trial.state,
            trial.objective,
            facts.get("seconds"),
            facts.get("seed"),
        ]
        reason = shorten_reason(trial.reason) if trial.state == "failed" else None
        rows.append([*head, *(trial.values.get(name) for name in evidence.names), reason])
    return Table("trials", "Trials", columns, rows)


def to_objective(evidence: Evidence, loss: float) -> float:
    """What the user optimises, from what the search minimises."""
    return -loss if evidence.maximize else loss


def read_budget(evidence: Evidence) -> int | None:
    """Evaluations planned for the search; null when unknown, or when more were made: the study keeps its first plan."""
    settings = orders.get_configuration(evidence)
    planned = (evidence.provenance.get("optimizer") or {}).get("budget")
    if (
        orders.get_protocol(evidence) == "phase2" and evidence.phase != JOINT
    ):  # the optimizer's is that of the joint search
        planned = settings.get("search.group_budget")
    ended = sum(trial.state != "running" for trial in evidence.trials)
    return None if planned is None or planned < ended else planned


def count_search_seeds(evidence: Evidence) -> int | None:
    """Seeds on which the search ran its best; null for a search without."""
    facts = {} if evidence.best is None else evidence.best.facts
    return None if facts.get(schema.SEED) is None else int(facts.get("seeds", 1))


def list_key_numbers(evidence: Evidence) -> list[tuple[str, str]]:
    """The numbers one asks for first, each with its name."""
    found: list[tuple[str, str]] = []
    if evidence.validation is not None and evidence.validation.before and evidence.validation.after:
        for name, runs in (
            ("test perplexity, start", evidence.validation.before),
            ("test perplexity, tuned", evidence.validation.after),
        ):
            known = [
                run.facts["test_perplexity"]
                for run in runs
                if run.facts.get("test_perplexity") is not None
            ]
            if known:
                found.append((name, f"{statistics.fmean(known):.4g}"))
        found.append(("fresh seeds", str(evidence.validation.gain.count)))
    states = Counter(trial.state for trial in evidence.trials)
    if evidence.best is not None and evidence.best.objective is not None:
        found.append(
            (
                f"best objective, trial {evidence.best.number}",
                format_cell(evidence.best.objective, "loss"),
            )
        )
    planned = read_budget(evidence)
    found.append(
        (
            "evaluations" if planned is None else f"evaluations of {planned}",
            str(len(evidence.trials) - states["running"]),
        )
    )
    found += [
        (state, str(states[state])) for state in ("failed", "pruned", "running") if states[state]
    ]
    if evidence.names:
        found.append(("parameters", str(len(evidence.names))))
    if evidence.seconds_by_phase:
        found.append(
            ("device time, all phases", format_duration(sum(evidence.seconds_by_phase.values())))
        )
    if evidence.convergence is not None and evidence.convergence.hours:
        found.append(
            ("search by the clock", format_duration(3600.0 * evidence.convergence.hours[-1]))
        )
    return found


def list_noise(evidence: Evidence) -> list[tuple[str, str]]:
    """Noise and luck as far as they are known, each with its name."""
    found: list[tuple[str, float | None]] = []
    if evidence.noise is not None:
        spread = "standard deviation over seeds"
        found += [
            (f"{spread}, start [nats/token]", evidence.noise.before),
            (f"{spread}, tuned [nats/token]", evidence.noise.after),
            (f"{spread}, paired difference [nats/token]", evidence.noise.difference),
            (
                "standard deviation of the objective over the search's candidates",
                evidence.noise.candidates,
            ),
        ]
    if evidence.selection_bias is not None:
        found += [
            (
                f"gain on the search's own {'seed' if count_search_seeds(evidence) in (None, 1) else 'seeds'} [nats/token]",
                evidence.selection_bias.search,
            ),
            ("gain on fresh seeds, validation split [nats/token]", evidence.selection_bias.fresh),
            ("gain on fresh seeds, test split [nats/token]", evidence.selection_bias.test),
        ]
    return [(name, f"{number:.4g}") for name, number in found if number is not None]


def list_statistics(comparison: Comparison) -> list[tuple[str, str]]:
    """The statistics of a paired gain [%], each with its name."""
    return [
        ("gain, t-interval 95 % [%]", format_cell(comparison, "gain")),
        (
            "gain, bootstrap interval 95 % [%]",
            f"{comparison.boot_low:.1f} to {comparison.boot_high:.1f}",
        ),
        ("paired t-test, two-sided p", format_cell(comparison.p, "p")),
        (
            f"Wilcoxon's signed-rank test, two-sided p ({comparison.count} pairs)",
            format_cell(comparison.wilcoxon, "p"),
        ),
        ("effect size, Hedges", format_cell(comparison.effect, "share")),
    ]


def render_best_yaml(evidence: Evidence) -> str | None:
    """The recommended values as a file that `python train.py tuned=FILE` reads; null without any."""
    best = evidence.best
    return (
        None
        if best is None or not best.values
        else export.format_best_yaml(evidence.name, best, evidence.fixed)
    )
