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

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.cost import PlannedRuns
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line, get_override_key
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.inspection import SIDES
from synaptune.protocols.options import add_common_options, add_report_option, run_command
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import OPTIMIZER, open_protocol
from synaptune.protocols.stages import (
    find_best_trial,
    pair_runs,
    require_objective,
    rerun_incumbents,
    run_points,
    run_search,
    run_searches_together,
    run_validation,
)
from synaptune.search.loop import Plan
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Dimension, Space, UnitPoint
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
_GATE_SEED_OFFSET, SEED_OFFSET = (
    2000,
    3000,
)  # distances of the gates' and the validation's seeds from the search's


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_run, _parse_options(sys.argv[1:] if arguments is None else arguments))


def _parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.phase2",
        description="Tune all parameters from the phase-1 optimum: each group alone, then together.",
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="phase1",
        help="the phase-1 study: a name below outputs/studies, or its folder",
    )
    parser.add_argument(
        "--group-budget",
        type=int,
        default=GROUP_BUDGET,
        help=f"evaluations of each group (default {GROUP_BUDGET})",
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=BUDGET,
        help=f"evaluations of the joint search (default {BUDGET})",
    )
    add_common_options(parser)
    add_report_option(parser)
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> None:
    Plan(options.budget).check()
    Plan(options.group_budget).check()
    start = (
        Path(options.start)
        if Path(options.start).is_dir()
        else Path("outputs/studies") / options.start
    )
    first_gate = _read_phase1_gate(start, go_on=options.go_on)
    begun = compose_config(
        [f"tuned={start / 'best.yaml'}", *add_search_space(options.overrides)],
        options.study,
        "phase2",
    )
    base, place, space = begun.base, begun.location, build_space(begun)
    seeds = [int(base.seed) + SEED_OFFSET + number for number in range(options.seeds)]
    settings = {"protocol": "phase2", "group_budget": options.group_budget}
    with open_protocol(
        base,
        place,
        space,
        budget=options.budget,
        seeds=seeds,
        go_on=options.go_on,
        settings=settings,
    ) as protocol:
        points = _run_stages(protocol, options.group_budget, [first_gate])
        if options.report:
            write_final_report(protocol, *points)


def _read_phase1_gate(folder: Path, *, go_on: bool) -> dict[str, Any]:
    """The decision of the phase-1 study with its evidence; raises UserError when it says stop and nobody said to go on."""
    import json

    try:
        summary = json.loads((folder / "summary.json").read_text())
        gate = {
            "gate": "phase 1",
            "decision": summary["decision"],
            "reason": summary["reason"],
            "improvement": summary["improvement"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise user_error(
            got=f"no verdict of phase 1 in {folder} ({type(error).__name__})",
            expected="a study that make sweep-phase1 has finished",
            do="run make sweep-phase1 first, or name its study with --from",
        ) from None
    if gate["decision"] == "stop" and not go_on:
        raise user_error(
            got=f"a phase-1 study that says stop: {gate['reason']}",
            expected="proceed or re-evaluate",
            do="look into phase 1 first, or go on with --go-on",
        )
    return gate


def add_search_space(overrides: Sequence[str]) -> list[str]:
    """The overrides of a phase-2 configuration; raises UserError for those of another search than over all parameters from phase 1."""
    other = [
        word
        for word in overrides
        if get_override_key(word).startswith(("search_space", "search.start"))
    ]
    if other:
        raise user_error(
            got=" ".join(other),
            expected="overrides that leave the search to phase 2: all parameters, from the best of --from STUDY",
            do="leave it out; NAME=VALUE takes a parameter out of the search",
        )
    return [*overrides, "search_space=all"]


def build_space(config: ComposedConfig) -> Space:
    """All parameters that the configured model uses, but those fixed on the command line, from their configured values."""
    from synaptune.config.search_space import read_dimensions
    from synaptune.config.settings import check_config
    from synaptune.model.config import ModelConfig, find_unused_parameters

    check_config(config.base)
    model = OmegaConf.to_object(config.base.model)
    assert isinstance(model, ModelConfig)
    left_out = {*find_unused_parameters(model), *config.fixed_names}
    return Space(
        tuple(
            dimension
            for dimension in read_dimensions(config.base)
            if dimension.name not in left_out
        )
    )


def _run_stages(
    protocol: Protocol, group_budget: int, gates: list[dict[str, Any]]
) -> tuple[UnitPoint, UnitPoint]:
    """Everything to the verdict; returns the points that were validated."""
    from rich.console import Console

    from synaptune.config.search_space import read_fixed_values
    from synaptune.report.summary import print_verdict, summarise_study
    from synaptune.study.artifacts import write_best, write_json

    folder, name = protocol.study.location.folder, protocol.study.location.name
    groups, start = _split_groups(protocol.space), protocol.space.get_start()
    print_message(
        f"study {name} ({folder}): {len(groups)} groups of {group_budget} evaluations, then {protocol.plan.budget} of all"
    )
    values = protocol.space.to_values(start)
    (baseline,) = run_points(
        protocol, protocol.make_ledger(BASELINE), [(start, protocol.seed)], label="baseline run"
    )
    print_message(f"baseline: objective {require_objective(baseline):.4f} at the phase-1 optimum")
    seeds = int(protocol.base.search.seeds)
    ledgers = {
        f"group {group}": protocol.make_ledger(group, space, seeds=seeds)
        for group, space in groups.items()
    }
    found = run_searches_together(protocol, ledgers, replace(protocol.plan, budget=group_budget))
    best = {group: find_best_trial(protocol, found[f"group {group}"]) for group in groups}
    winners = {
        group: trial
        for group, trial in best.items()
        if trial is not None and trial.unit != groups[group].get_start()
    }
    accounts = _run_gates(protocol, winners)
    gates += [accounts.get(group) or _keep_start(group) for group in groups]
    kept = values | {
        name: value
        for gate in gates
        if gate["decision"] == "winner"
        for name, value in gate["values"].items()
    }
    protocol.study.write_note(GATES, gates)
    write_json(folder / "gates.json", {"gates": gates})
    joint = Space(
        tuple(
            replace(dimension, start=kept[dimension.name])
            for dimension in protocol.space.dimensions
        )
    )
    trials = run_search(
        protocol, protocol.make_ledger(JOINT, joint, seeds=seeds), protocol.plan, label="joint"
    )
    winner = rerun_incumbents(protocol, trials)
    if winner is None:
        raise user_error(
            got="a joint search without a complete trial",
            expected="at least one",
            do="see the failures in the study",
        )
    write_best(folder / "best.yaml", name, winner, read_fixed_values(protocol.base))
    pairs = run_validation(protocol, start, winner.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.read_trials())
    summary = summarise_study(
        name, trials, winner, pairs=pairs, defaults=values, seconds=seconds
    ) | {"gates": gates}
    gates.append(
        {
            "gate": "phase 2",
            "decision": summary["decision"],
            "reason": summary["reason"],
            "improvement": summary["improvement"],
        }
    )
    write_json(folder / "gates.json", {"gates": gates})
    write_json(folder / "summary.json", summary)
    print_verdict(summary, Console())
    print(
        f"written to {folder}/summary.json and gates.json; use: python train.py tuned={folder}/best.yaml",
        flush=True,
    )
    return start, winner.unit


def _split_groups(space: Space) -> dict[str, Space]:
    """The spaces of the groups; a group that the model does not use is left out, and said."""
    found = {}
    for group, subsystems in GROUPS.items():
        dimensions = tuple(
            dimension for dimension in space.dimensions if _subsystem(dimension) in subsystems
        )
        if dimensions:
            found[group] = Space(dimensions)
        else:
            print_message(
                f"group {group}: nothing of it is searched with this model and command line"
            )
    return found


def _subsystem(dimension: Dimension) -> str:
    return dimension.name.split(".")[1]


def _run_gates(protocol: Protocol, winners: Mapping[str, Trial]) -> dict[str, dict[str, Any]]:
    """For each group whether its winner is kept, by validation perplexity on fresh seeds: the gates' accounts."""
    start = protocol.space.get_start()
    values = protocol.space.to_values(start)
    units = {
        group: protocol.space.to_unit(values | winner.values) for group, winner in winners.items()
    }
    seeds = [protocol.seed + _GATE_SEED_OFFSET + number for number in range(GATE_SEEDS)]
    points = (
        [(unit, seed) for unit in (start, *units.values()) for seed in seeds] if winners else []
    )
    runs = run_points(protocol, protocol.make_ledger(GATES), points, label="gate run")
    before, accounts = runs[:GATE_SEEDS], {}
    for place, (group, winner) in enumerate(winners.items(), 1):
        after = runs[place * GATE_SEEDS : (place + 1) * GATE_SEEDS]
        accounts[group] = _decide_gate(group, before, after) | {
            "trial": winner.number,
            "values": winner.values,
        }
        print_message(
            f"gate {group}: {accounts[group]['decision']} kept, {accounts[group]['reason']}"
        )
    return accounts


def _decide_gate(group: str, before: Sequence[Trial], after: Sequence[Trial]) -> dict[str, Any]:
    """The account of a gate, from the start's and the winner's runs on the same seeds; raises UserError when those of the start failed."""
    if failed := [run for run in after if run.state != "complete"]:
        reason = f"{len(failed)} of {len(after)} runs on fresh seeds failed ({get_first_line(failed[0].reason)})"
        return {"gate": group, "decision": "start", "reason": reason}
    pairs = pair_runs([run for pair in zip(before, after, strict=True) for run in pair])
    starts, tuned = ([pair[side].facts["val_perplexity"] for pair in pairs] for side in (0, 1))
    gain = compute_improvement(starts, tuned)
    reason = f"validation perplexity {gain.mean:+.2f} % ({gain.low:+.2f} to {gain.high:+.2f}) on {len(pairs)} fresh seeds"
    return {
        "gate": group,
        "decision": "winner" if gain.mean > 0.0 else "start",
        "reason": reason,
        "improvement": gain._asdict(),
    }


def _keep_start(group: str) -> dict[str, Any]:
    reason = "no point better than the start was found"
    print_message(f"gate {group}: {reason}")
    return {"gate": group, "decision": "start", "reason": reason}


def plan_runs(
    group_budget: int, budget: int, seeds: int, space: Space, *, workers: int = 1
) -> list[PlannedRuns]:
    """The training runs of a protocol over a space, the two portraits of its end included.

    The first evaluation of each group is a copy of the baseline.
    """

    def generation_size(searched: Space) -> int:
        return make_optimizer(Engine(OPTIMIZER, 0, workers, budget), searched).generation_size

    groups = _split_groups(space)
    return [
        PlannedRuns("baseline", 1),
        PlannedRuns(
            "groups",
            len(groups) * (group_budget - 1),
            at_once=sum(map(generation_size, groups.values())),
        ),
        PlannedRuns("gates", (1 + len(groups)) * GATE_SEEDS),
        PlannedRuns("joint", budget, at_once=generation_size(space)),
        PlannedRuns("validation", 2 * seeds, with_test=True),
        PlannedRuns("portraits", len(SIDES), at_once=1),
    ]


if __name__ == "__main__":
    sys.exit(main())
