"""The phase-2 protocol: each group of parameters alone, then all together, from the phase-1 optimum (`make sweep-phase2`).

    python -m synaptune.protocols.phase2 [--from STUDY] [--group-budget N] [--budget N] [--seeds N] [--study NAME] [--go-on] [overrides]

    gate 1     the phase-1 study says `stop`: nothing is searched
    baseline   the phase-1 optimum once more, where every group begins
    groups     cma over each group's parameters from the phase-1 optimum, the others held there: all groups side by side
    gates      each group's winner against that optimum, on fresh seeds: it is kept when it is better on average
    joint      cma over all parameters, from the winners that were kept
    verdict    phase-1 optimum against the joint best on fresh seeds and the test split, and the rule of analysis/decision.py

The groups share the workers: while the last trials of one group's generation run, those of others take the free ones. Gates write their
decision and its evidence to gates.json and the study.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from synaptune.analysis.compare import paired_improvement
from synaptune.analysis.cost import Stage
from synaptune.config.compose import Composed, composed
from synaptune.core.errors import mistake
from synaptune.protocols.final_report import closed
from synaptune.protocols.options import add_common_options, add_report_option, guarded
from synaptune.protocols.portraits import SIDES
from synaptune.protocols.protocol import Protocol, say
from synaptune.protocols.session import OPTIMIZER, opened
from synaptune.protocols.stages import best_trial, confirmed, measured, objective_at_start, paired, searched, searched_together, validated
from synaptune.search.loop import Plan
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Dimension, Space, Unit
from synaptune.search.trial import Trial
from synaptune.study.reader import BASELINE, GATES, JOINT

# Subsystems of the registry by group; a group is searched alone.
GROUPS = {
    "calcium": ("calcium",),
    "vesicles": ("vesicles",),
    "postsynaptic": ("postsynaptic", "bdnf"),
    "structural": ("structural",),
    "energy": ("energy",),
    "attention": ("attention", "stochastic"),
}
GROUP_BUDGET = 20
BUDGET = 60
GATE_SEEDS = 3
_GATE_FRESH, FRESH = 2000, 3000  # distances of the gates' and the validation's seeds from the search's


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(_run, _options(sys.argv[1:] if arguments is None else arguments))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.phase2",
        description="Tune all parameters from the phase-1 optimum: each group alone, then together.",
    )
    parser.add_argument("--from", dest="start", default="phase1", help="the phase-1 study: a name below outputs/studies, or its folder")
    parser.add_argument("--group-budget", type=int, default=GROUP_BUDGET, help=f"evaluations of each group (default {GROUP_BUDGET})")
    parser.add_argument("--budget", type=int, default=BUDGET, help=f"evaluations of the joint search (default {BUDGET})")
    add_common_options(parser)
    add_report_option(parser)
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> None:
    Plan(options.budget).check()
    Plan(options.group_budget).check()
    start = Path(options.start) if Path(options.start).is_dir() else Path("outputs/studies") / options.start
    first_gate = _phase1_gate(start, go_on=options.go_on)
    begun = composed([f"tuned={start / 'best.yaml'}", *all_parameters(options.overrides)], options.study, "phase2")
    base, place, space = begun.base, begun.place, searched_space(begun)
    seeds = [int(base.seed) + FRESH + number for number in range(options.seeds)]
    settings = {"protocol": "phase2", "group_budget": options.group_budget}
    with opened(base, place, space, budget=options.budget, seeds=seeds, go_on=options.go_on, settings=settings) as protocol:
        points = _stages(protocol, options.group_budget, [first_gate])
        if options.report:
            closed(protocol, *points)


def _phase1_gate(folder: Path, *, go_on: bool) -> dict[str, Any]:
    """The decision of the phase-1 study with its evidence; raises UserError when it says stop and nobody said to go on."""
    import json

    try:
        summary = json.loads((folder / "summary.json").read_text())
        gate = {"gate": "phase 1", "decision": summary["decision"], "reason": summary["reason"], "improvement": summary["improvement"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise mistake(
            got=f"no verdict of phase 1 in {folder} ({type(error).__name__})",
            expected="a study that make sweep-phase1 has finished",
            do="run make sweep-phase1 first, or name its study with --from",
        ) from None
    if gate["decision"] == "stop" and not go_on:
        raise mistake(
            got=f"a phase-1 study that says stop: {gate['reason']}",
            expected="proceed or re-evaluate",
            do="look into phase 1 first, or go on with --go-on",
        )
    return gate


def all_parameters(overrides: Sequence[str]) -> list[str]:
    """The overrides of a phase-2 configuration; raises UserError for those of another search than over all parameters from phase 1."""
    other = [word for word in overrides if word.lstrip("+~").startswith(("search_space", "search.start"))]
    if other:
        raise mistake(
            got=" ".join(other),
            expected="overrides that leave the search to phase 2: all parameters, from the best of --from STUDY",
            do="leave it out; NAME=VALUE takes a parameter out of the search",
        )
    return [*overrides, "search_space=all"]


def searched_space(begun: Composed) -> Space:
    """All parameters that the configured model uses, but those fixed on the command line, from their configured values."""
    from synaptune.config.search_space import declared_space
    from synaptune.config.settings import check
    from synaptune.model.config import ModelConfig, unused_parameters

    check(begun.base)
    model = OmegaConf.to_object(begun.base.model)
    assert isinstance(model, ModelConfig)
    left_out = {*unused_parameters(model), *begun.given}
    return Space(tuple(dimension for dimension in declared_space(begun.base) if dimension.name not in left_out))


def _stages(protocol: Protocol, group_budget: int, gates: list[dict[str, Any]]) -> tuple[Unit, Unit]:
    """Everything to the verdict; returns the points that were validated."""
    from rich.console import Console

    from synaptune.config.search_space import fixed_values
    from synaptune.report.summary import show_verdict, summarise
    from synaptune.study.artifacts import write_best, write_json

    folder, name = protocol.study.place.folder, protocol.study.place.name
    groups, start = _groups(protocol.space), protocol.space.start()
    say(f"study {name} ({folder}): {len(groups)} groups of {group_budget} evaluations, then {protocol.plan.budget} of all")
    values = protocol.space.values(start)
    (baseline,) = measured(protocol, protocol.ledger(BASELINE), [(start, protocol.seed)], label="baseline run")
    say(f"baseline: objective {objective_at_start(baseline):.4f} at the phase-1 optimum")
    seeds = int(protocol.base.search.seeds)
    ledgers = {f"group {group}": protocol.ledger(group, space, seeds=seeds) for group, space in groups.items()}
    found = searched_together(protocol, ledgers, replace(protocol.plan, budget=group_budget))
    best = {group: best_trial(protocol, found[f"group {group}"]) for group in groups}
    winners = {group: trial for group, trial in best.items() if trial is not None and trial.unit != groups[group].start()}
    accounts = _gates(protocol, winners)
    gates += [accounts.get(group) or _no_better(group) for group in groups]
    kept = values | {name: value for gate in gates if gate["decision"] == "winner" for name, value in gate["values"].items()}
    protocol.study.put_note(GATES, gates)
    write_json(folder / "gates.json", {"gates": gates})
    joint = Space(tuple(replace(dimension, start=kept[dimension.name]) for dimension in protocol.space.dimensions))
    trials = searched(protocol, protocol.ledger(JOINT, joint, seeds=seeds), protocol.plan, label="joint")
    winner = confirmed(protocol, trials)
    if winner is None:
        raise mistake(got="a joint search without a complete trial", expected="at least one", do="see the failures in the study")
    write_best(folder / "best.yaml", name, winner, fixed_values(protocol.base))
    pairs = validated(protocol, start, winner.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.trials())
    summary = summarise(name, trials, winner, pairs=pairs, defaults=values, seconds=seconds) | {"gates": gates}
    gates.append({"gate": "phase 2", "decision": summary["decision"], "reason": summary["reason"], "improvement": summary["improvement"]})
    write_json(folder / "gates.json", {"gates": gates})
    write_json(folder / "summary.json", summary)
    show_verdict(summary, Console())
    print(f"written to {folder}/summary.json and gates.json; use: python train.py tuned={folder}/best.yaml", flush=True)
    return start, winner.unit


def _groups(space: Space) -> dict[str, Space]:
    """The spaces of the groups; a group that the model does not use is left out, and said."""
    found = {}
    for group, subsystems in GROUPS.items():
        dimensions = tuple(dimension for dimension in space.dimensions if _subsystem(dimension) in subsystems)
        if dimensions:
            found[group] = Space(dimensions)
        else:
            say(f"group {group}: nothing of it is searched with this model and command line")
    return found


def _subsystem(dimension: Dimension) -> str:
    return dimension.name.split(".")[1]


def _gates(protocol: Protocol, winners: Mapping[str, Trial]) -> dict[str, dict[str, Any]]:
    """For each group whether its winner is kept, by validation perplexity on fresh seeds: the gates' accounts."""
    start = protocol.space.start()
    values = protocol.space.values(start)
    units = {group: protocol.space.unit(values | winner.values) for group, winner in winners.items()}
    seeds = [protocol.seed + _GATE_FRESH + number for number in range(GATE_SEEDS)]
    points = [(unit, seed) for unit in (start, *units.values()) for seed in seeds] if winners else []
    runs = measured(protocol, protocol.ledger(GATES), points, label="gate run")
    before, accounts = runs[:GATE_SEEDS], {}
    for place, (group, winner) in enumerate(winners.items(), 1):
        after = runs[place * GATE_SEEDS : (place + 1) * GATE_SEEDS]
        accounts[group] = _gate(group, before, after) | {"trial": winner.number, "values": winner.values}
        say(f"gate {group}: {accounts[group]['decision']} kept, {accounts[group]['reason']}")
    return accounts


def _gate(group: str, before: Sequence[Trial], after: Sequence[Trial]) -> dict[str, Any]:
    """The account of a gate, from the start's and the winner's runs on the same seeds; raises UserError when those of the start failed."""
    if failed := [run for run in after if run.state != "complete"]:
        reason = f"{len(failed)} of {len(after)} runs on fresh seeds failed ({(failed[0].reason or 'unknown').splitlines()[0]})"
        return {"gate": group, "decision": "start", "reason": reason}
    pairs = paired([run for pair in zip(before, after, strict=True) for run in pair])
    starts, tuned = ([pair[side].facts["val_perplexity"] for pair in pairs] for side in (0, 1))
    gain = paired_improvement(starts, tuned)
    reason = f"validation perplexity {gain.mean:+.2f} % ({gain.low:+.2f} to {gain.high:+.2f}) on {len(pairs)} fresh seeds"
    return {"gate": group, "decision": "winner" if gain.mean > 0.0 else "start", "reason": reason, "improvement": gain._asdict()}


def _no_better(group: str) -> dict[str, Any]:
    reason = "no point better than the start was found"
    say(f"gate {group}: {reason}")
    return {"gate": group, "decision": "start", "reason": reason}


def stages(group_budget: int, budget: int, seeds: int, space: Space, *, workers: int = 1) -> list[Stage]:
    """The training runs of a protocol over a space, the two portraits of its end included.

    The first evaluation of each group is a copy of the baseline.
    """

    def population(searched: Space) -> int:
        return make_optimizer(Engine(OPTIMIZER, 0, workers, budget), searched).generation_size

    groups = _groups(space)
    return [
        Stage("baseline", 1),
        Stage("groups", len(groups) * (group_budget - 1), at_once=sum(map(population, groups.values()))),
        Stage("gates", (1 + len(groups)) * GATE_SEEDS),
        Stage("joint", budget, at_once=population(space)),
        Stage("validation", 2 * seeds, tested=True),
        Stage("portraits", len(SIDES), at_once=1),
    ]


if __name__ == "__main__":
    sys.exit(main())
