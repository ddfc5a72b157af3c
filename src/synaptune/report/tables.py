"""The tables of a report, made from a study's evidence."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synaptune.analysis.results import AblationRow, Comparison, Evidence
from synaptune.core.text import format_duration, get_first_line
from synaptune.report import next_commands
from synaptune.report.table_model import Column, Table, format_cell
from synaptune.search.trial import Trial
from synaptune.study import artifacts
from synaptune.study.database import keys
from synaptune.study.reader import JOINT

_MAX_LISTED = 12  # trial numbers listed one by one
_MAX_REASONS = 40  # rows of the table of failures
_LONGEST_REASON = 160  # [characters] a longer reason is cut
# Explanations of the columns of the table of parameters.
_COLUMN_NOTES = {
    "position": "Position: 0 is the lower end of the range on its own scale, 1 the upper.",
    "effect z": "Effect: whether the loss depends on the parameter, from the search's own trials.",
    "worth at the optimum": (
        "Worth at the optimum: gain in test perplexity that is lost when this parameter alone is "
        "set back to its start value."
    ),
}


def make_all_tables(evidence: Evidence) -> Iterator[Table]:
    """Make every table that has rows."""
    for make in (
        tabulate_parameters,
        tabulate_validation,
        tabulate_gates,
        tabulate_noise,
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
    """Make the table of the searched parameters, without the columns that have no data."""
    best = evidence.best.values if evidence.best is not None else {}
    ranges = (
        {dimension.name: dimension for dimension in evidence.space.dimensions}
        if evidence.space is not None
        else {}
    )
    positions = find_positions(evidence)
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
        Column("position", "position"): [positions.get(name) for name in evidence.names],
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
    """Find the positions of the best values in their ranges, in [0, 1]; without categoricals."""
    best = evidence.best
    if best is None or len(best.unit) != len(best.values):
        return {}
    positions = dict(zip(best.values, best.unit, strict=True))
    scales = (
        {dimension.name: dimension.scale for dimension in evidence.space.dimensions}
        if evidence.space is not None
        else {}
    )
    return {name: unit for name, unit in positions.items() if scales.get(name) != "categorical"}


def tabulate_validation(evidence: Evidence) -> Table:
    """Make the table of the runs on fresh seeds, with a row for each seed."""
    columns = (
        Column("seed", "count"),
        Column("validation loss, start", "loss", "nats/token"),
        Column("validation loss, tuned", "loss", "nats/token"),
        Column("test perplexity, start", "value", "tokens"),
        Column("test perplexity, tuned", "value", "tokens"),
        Column("improvement of test perplexity", "value", "%"),
    )
    validation = evidence.validation
    pairs = [] if validation is None else zip(validation.before, validation.after, strict=True)
    rows = [_make_seed_row(old, new) for old, new in pairs]
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
    """Make the table of the ablation, ranked by the worth of each parameter at the optimum."""
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
    note = (
        "Gains in test perplexity on paired seeds with 95 % intervals. They need not add up, since "
        "parameters interact."
    )
    return Table("ablation", "Ablation of the optimum", columns, rows, note)


def _sort_key(gain: Comparison | None) -> float:
    return float("inf") if gain is None else -gain.mean


def tabulate_gates(evidence: Evidence) -> Table:
    """Make the table of the gates before the last search.

    Their gains are relative changes of perplexity on fresh seeds [%].
    """
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
    """Make the table of the hypotheses and their verdicts."""
    verdicts = {True: "holds", False: "does not hold", None: "undecided"}
    rows = [
        [entry.statement, entry.finding, verdicts[entry.holds]] for entry in evidence.hypotheses
    ]
    return Table(
        "hypotheses", "Hypotheses", (Column("claim"), Column("found"), Column("verdict")), rows
    )


def tabulate_failures(evidence: Evidence) -> Table:
    """Make the table of the reasons of failures, the most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for kind, trials in evidence.failures.items():
        for trial in trials:
            groups.setdefault((kind, shorten_reason(trial.reason)), []).append(trial.number)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        [kind, reason, len(numbers), join_numbers(numbers)]
        for (kind, reason), numbers in ranked[:_MAX_REASONS]
    ]
    omitted = len(ranked) - _MAX_REASONS
    columns = (Column("kind"), Column("reason"), Column("trials", "count"), Column("numbers"))
    note = f"{omitted} less frequent reasons are left out." if omitted > 0 else ""
    return Table("failures", "Failures", columns, rows, note)


def shorten_reason(reason: str | None) -> str:
    """Return the first line of a reason, cut to a readable length."""
    line = get_first_line(reason)
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."


def join_numbers(numbers: Sequence[int]) -> str:
    """Join trial numbers; a long list is cut."""
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    return ", ".join(str(number) for number in numbers[:_MAX_LISTED]) + more


def tabulate_cost(evidence: Evidence) -> Table:
    """Make the table of the device time by phase."""
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
    """Make the table of the search distribution by generation."""
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
    """Make the table of the trials; chosen selects some of them, None means all."""
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
    """Convert a loss, which the search minimises, to the user's objective."""
    return -loss if evidence.maximize else loss


def read_budget(evidence: Evidence) -> int | None:
    """Return the number of evaluations planned for the search.

    The result is None when the number is unknown, or when more evaluations have ended: a study
    stores the budget of its first command only.
    """
    configuration = next_commands.get_configuration(evidence)
    planned = (evidence.provenance.get("optimizer") or {}).get("budget")
    # In phase 2 the stored budget of the optimizer is that of the joint search.
    if next_commands.get_protocol(evidence) == "phase2" and evidence.phase != JOINT:
        planned = configuration.get("search.group_budget")
    ended = sum(trial.state != "running" for trial in evidence.trials)
    return None if planned is None or planned < ended else planned


def count_search_seeds(evidence: Evidence) -> int | None:
    """Return the number of seeds of the best trial; None for a search without seeds."""
    facts = {} if evidence.best is None else evidence.best.facts
    return None if facts.get(keys.SEED) is None else int(facts.get("seeds", 1))


def list_key_numbers(evidence: Evidence) -> list[tuple[str, str]]:
    """List the key numbers of a study as (name, text)."""
    numbers: list[tuple[str, str]] = []
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
                numbers.append((name, f"{statistics.fmean(known):.4g}"))
        numbers.append(("fresh seeds", str(evidence.validation.gain.count)))
    states = Counter(trial.state for trial in evidence.trials)
    if evidence.best is not None and evidence.best.objective is not None:
        numbers.append(
            (
                f"best objective, trial {evidence.best.number}",
                format_cell(evidence.best.objective, "loss"),
            )
        )
    planned = read_budget(evidence)
    numbers.append(
        (
            "evaluations" if planned is None else f"evaluations of {planned}",
            str(len(evidence.trials) - states["running"]),
        )
    )
    numbers += [
        (state, str(states[state])) for state in ("failed", "pruned", "running") if states[state]
    ]
    if evidence.names:
        numbers.append(("parameters", str(len(evidence.names))))
    if evidence.seconds_by_phase:
        numbers.append(
            ("device time, all phases", format_duration(sum(evidence.seconds_by_phase.values())))
        )
    if evidence.convergence is not None and evidence.convergence.hours:
        numbers.append(
            (
                "wall-clock time of the search",
                format_duration(3600.0 * evidence.convergence.hours[-1]),
            )
        )
    return numbers


def tabulate_noise(evidence: Evidence) -> Table:
    """Make the table of the known measures of noise and selection bias, and of the tests."""
    noise, bias, validation = evidence.noise, evidence.selection_bias, evidence.validation
    measures: list[tuple[str, Any]] = []
    if noise is not None:
        spread = "standard deviation over seeds"
        measures += [
            (f"{spread}, start [nats/token]", noise.before),
            (f"{spread}, tuned [nats/token]", noise.after),
            (f"{spread}, paired difference [nats/token]", noise.difference),
            (
                "standard deviation of the objective over the search's candidates",
                noise.candidates,
            ),
        ]
    if bias is not None:
        own = "seed" if count_search_seeds(evidence) in (None, 1) else "seeds"
        measures += [
            (f"gain on the search's own {own} [nats/token]", bias.search),
            ("gain on fresh seeds, validation split [nats/token]", bias.fresh),
            ("gain on fresh seeds, test split [nats/token]", bias.test),
        ]
    rows = [[name, format_cell(number, "value")] for name, number in measures if number is not None]
    if validation is not None:
        gain = validation.gain
        bootstrap = f"{gain.boot_low:.1f} to {gain.boot_high:.1f}"
        wilcoxon = f"Wilcoxon's signed-rank test, two-sided p ({gain.count} pairs)"
        rows += [
            ["gain, t-interval 95 % [%]", format_cell(gain, "gain")],
            ["gain, bootstrap interval 95 % [%]", bootstrap],
            ["paired t-test, two-sided p", format_cell(gain.p, "p")],
            [wilcoxon, format_cell(gain.wilcoxon, "p")],
            ["effect size, Hedges", format_cell(gain.effect, "share")],
        ]
    return Table("noise", "Noise and tests", (Column("measure"), Column("value", "value")), rows)


def render_best_yaml(evidence: Evidence) -> str | None:
    """Render the recommended values as YAML for `python train.py tuned=FILE`; None without any."""
    best = evidence.best
    if best is None or not best.values:
        return None
    return artifacts.format_best_yaml(evidence.name, best, evidence.fixed)
