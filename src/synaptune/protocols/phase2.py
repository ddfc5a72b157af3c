"""The phase-2 protocol: each group of parameters alone, then all together (`synaptune phase2`).

    gate 1     the phase-1 study says `stop`: nothing is searched
    baseline   the phase-1 optimum once more, where every group begins
    groups     a search over each group's parameters from the phase-1 optimum, the others fixed at
               it; all groups at the same time
    gates      each group's best against that optimum on fresh seeds: it is kept when it is better
               on average
    joint      a search over all parameters, from the winners that were kept
    verdict    phase-1 optimum against the joint best on fresh seeds and the test split, and the
               rule of analysis/validation.py

The groups share the workers: while the last trials of one group's generation run, trials of other
groups take the free workers. The decisions of the gates with their evidence are written to
gates.json and to the study. conf/protocol/phase2.yaml explains the settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.cost import PlannedRuns
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line, get_override_key
from synaptune.protocols.config import SEED_OFFSETS, Phase2Config, read_protocol_config
from synaptune.protocols.estimate import compute_final_length, estimate_protocol
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.inspection import SIDES
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import (
    choose_trial,
    find_best_trial,
    keep_best_file,
    pair_runs,
    read_evidence,
    require_objective,
    run_points,
    run_search,
    run_searches_together,
    run_validation,
)
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space, UnitPoint, make_space
from synaptune.search.trial import Trial
from synaptune.study.optimize import resume_space
from synaptune.study.reader import BASELINE, GATES, JOINT, get_study_folder

Gate = dict[str, Any]  # a decision with its evidence, as gates.json holds it


def run_phase2(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the protocol from wherever its study has it.

    Args:
        overrides: of conf/train.yaml, and `protocol.*` of conf/protocol/phase2.yaml.

    Returns:
        The content of summary.json; of a dry run the estimate.

    Raises:
        UserError: a mistake in the input, or too many failed runs.
    """
    config = read_config(compose_phase2(overrides))
    start = get_study_folder(config.start)
    first_gate = _read_phase1_gate(start, go_on=config.go_on)
    composed = compose_phase2([f"tuned={start / 'best.yaml'}", *overrides])
    base, space = composed.base, build_space(composed)
    if config.dry_run:
        return estimate_protocol(
            base, composed.location, lambda workers: plan_runs(config, base, space, workers=workers)
        )
    first_seed = int(base.seed) + SEED_OFFSETS["phase2"]
    with open_protocol(
        base,
        composed.location,
        space,
        optimizer=config.optimizer,
        budget=config.budget,
        seeds=range(first_seed, first_seed + config.seeds),
        settings={"protocol": "phase2", "group_budget": config.group_budget},
        final_steps=config.final_steps,
    ) as protocol:
        summary, *points = _run_stages(protocol, config, [first_gate])
        if config.report:
            write_final_report(protocol, *points)
    return summary


def compose_phase2(overrides: Sequence[str]) -> ComposedConfig:
    """Compose the configuration of a phase-2 study.

    Raises:
        UserError: an override of another search than over all parameters from phase 1.
    """
    of_search = [
        word
        for word in overrides
        if (key := get_override_key(word)).startswith("search_space") or key == "search.start"
    ]
    if of_search:
        raise user_error(
            got=" ".join(of_search),
            expected="overrides that leave the search to phase 2:"
            " all parameters, from the best of the study protocol.start",
            do="leave it out; NAME=VALUE takes a parameter out of the search",
        )
    return compose_config([*overrides, "search_space=all"], protocol="phase2", study="phase2")


def read_config(composed: ComposedConfig) -> Phase2Config:
    """Return the settings of the protocol; raise UserError for values that cannot run."""
    assert composed.protocol is not None
    return read_protocol_config(Phase2Config, composed.protocol)


def _read_phase1_gate(folder: Path, *, go_on: bool) -> Gate:
    """Return the decision of the phase-1 study; raise UserError when it says stop."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        gate = _make_gate("phase 1", summary)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise user_error(
            got=f"no verdict of phase 1 in {folder} ({type(error).__name__})",
            expected="a study that make sweep-phase1 has finished",
            do="run make sweep-phase1 first, or name its study with protocol.start=STUDY",
        ) from None
    if gate["decision"] == "stop" and not go_on:
        raise user_error(
            got=f"a phase-1 study that says stop: {gate['reason']}",
            expected="proceed or re-evaluate",
            do="look into phase 1 first, or continue with protocol.go_on=true",
        )
    return gate


def _make_gate(name: str, summary: Mapping[str, Any]) -> Gate:
    """Return the decision of a summary with its evidence."""
    return {"gate": name} | {key: summary[key] for key in ("decision", "reason", "improvement")}


def build_space(composed: ComposedConfig) -> Space:
    """Return all parameters that the configured model uses and the command line does not fix."""
    from synaptune.config.search_space import read_dimensions
    from synaptune.config.settings import check_config
    from synaptune.model.config import ModelConfig, find_unused_parameters

    check_config(composed.base)
    model = OmegaConf.to_object(composed.base.model)
    assert isinstance(model, ModelConfig)
    left_out = {*find_unused_parameters(model), *composed.fixed_names}
    dimensions = read_dimensions(composed.base)
    return make_space(entry for entry in dimensions if entry.name not in left_out)


def _run_stages(
    protocol: Protocol, config: Phase2Config, gates: list[Gate]
) -> tuple[dict[str, Any], UnitPoint, UnitPoint]:
    """Run everything up to the verdict; return its summary and the two validated points."""
    from synaptune.config.search_space import read_fixed_values
    from synaptune.core.console import make_console
    from synaptune.report.findings import explain_context
    from synaptune.report.summary import describe_summary, print_verdict, summarise_study
    from synaptune.study.artifacts import write_best, write_json

    folder, name = protocol.study.location.folder, protocol.study.location.name
    shown = protocol.study.location.shown_folder
    groups, start = split_groups(protocol.space, config), protocol.space.get_start()
    print_message(
        f"study {name} ({shown}): {len(groups)} groups of {config.group_budget} evaluations,"
        f" then {protocol.plan.budget} of all"
    )
    values = protocol.space.to_values(start)
    (baseline,) = run_points(
        protocol, protocol.make_ledger(BASELINE), [(start, protocol.seed)], label="baseline run"
    )
    print_message(f"start: objective {require_objective(baseline):.4f} at the phase-1 optimum")
    gates += _run_groups(protocol, config, groups)
    protocol.study.write_note(GATES, gates)
    write_json(folder / "gates.json", {"gates": gates})
    winner, trials = _run_joint_search(protocol, values, gates)
    fixed = read_fixed_values(protocol.base)
    write_best(folder / "best.yaml", name, winner, fixed)
    pairs = run_validation(protocol, start, winner.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.read_trials())
    summary = summarise_study(
        name,
        trials,
        winner,
        pairs=pairs,
        defaults=values,
        seconds=seconds,
        findings=explain_context(read_evidence(protocol)),
        protocol="phase2",
    )
    gates.append(_make_gate("phase 2", summary))
    summary["gates"] = gates
    write_json(folder / "gates.json", {"gates": gates})
    write_json(folder / "summary.json", summary)
    write_best(folder / "best.yaml", name, winner, fixed, describe_summary(summary))
    print_verdict(summary, make_console())
    print_message(
        f"written to {shown}/summary.json and gates.json;"
        f" use: python train.py tuned={shown}/best.yaml"
    )
    return summary, start, winner.unit


def _run_groups(
    protocol: Protocol, config: Phase2Config, groups: Mapping[str, Space]
) -> list[Gate]:
    """Search all groups side by side and decide on their winners."""
    seeds = protocol.search.seeds
    earlier = protocol.study.read_trials()
    groups = {name: resume_space(space, earlier) for name, space in groups.items()}
    ledgers = {
        f"group {group}": protocol.make_ledger(group, space, seeds=seeds)
        for group, space in groups.items()
    }
    plan = replace(protocol.plan, budget=config.group_budget)
    trials = run_searches_together(protocol, ledgers, plan)
    best = {group: find_best_trial(protocol, trials[f"group {group}"]) for group in groups}
    winners = {
        group: trial
        for group, trial in best.items()
        if trial is not None and trial.unit != groups[group].get_start()
    }
    decided = _run_gates(protocol, winners, config.gate_seeds)
    return [decided.get(group) or _keep_start(group) for group in groups]


def _run_joint_search(
    protocol: Protocol, values: Mapping[str, Any], gates: Sequence[Gate]
) -> tuple[Trial, list[Trial]]:
    """Search all parameters from the winners of the gates; return the best and all trials."""
    start = dict(values)
    for gate in gates:
        if gate["decision"] == "winner":
            start |= gate["values"]
    dimensions = protocol.space.dimensions
    joint = Space(tuple(replace(entry, start=start[entry.name]) for entry in dimensions))
    ledger = protocol.make_ledger(JOINT, joint, seeds=protocol.search.seeds)
    with keep_best_file(protocol):
        trials = run_search(protocol, ledger, protocol.plan, label="joint")
    winner = choose_trial(protocol, trials)
    if winner is None:
        raise user_error(
            got="a joint search without a complete trial",
            expected="at least one",
            do="see the failures in the study",
        )
    return winner, trials


def split_groups(space: Space, config: Phase2Config) -> dict[str, Space]:
    """Return the space of each group; print and leave out a group that the model does not use."""
    groups = {}
    for group, subsystems in config.groups.items():
        dimensions = tuple(
            entry for entry in space.dimensions if entry.name.split(".")[1] in subsystems
        )
        if dimensions:
            groups[group] = Space(dimensions)
        else:
            print_message(
                f"group {group}: none of its parameters is searched with this configuration"
            )
    return groups


def _run_gates(
    protocol: Protocol, winners: Mapping[str, Trial], seed_count: int
) -> dict[str, Gate]:
    """Decide for each group whether its winner is kept, by validation perplexity on fresh seeds."""
    if not winners:
        return {}
    start = protocol.space.get_start()
    values = protocol.space.to_values(start)
    units = [protocol.space.to_unit(values | winner.values) for winner in winners.values()]
    first_seed = protocol.seed + SEED_OFFSETS["gates"]
    seeds = range(first_seed, first_seed + seed_count)
    points = [(unit, seed) for unit in (start, *units) for seed in seeds]
    runs = run_points(protocol, protocol.make_ledger(GATES), points, label="gate run")
    before, gates = runs[:seed_count], {}
    for index, (group, winner) in enumerate(winners.items(), 1):
        after = runs[index * seed_count : (index + 1) * seed_count]
        decision = _decide_gate(group, before, after)
        gates[group] = decision | {"trial": winner.number, "values": winner.values}
        print_message(f"gate {group}: {decision['decision']} kept, {decision['reason']}")
    return gates


def _decide_gate(group: str, before: Sequence[Trial], after: Sequence[Trial]) -> Gate:
    """Decide from the runs of the start and of the winner on the same seeds.

    Raises:
        UserError: fewer than two seeds have both runs.
    """
    if failed := [run for run in after if run.state != "complete"]:
        cause = get_first_line(failed[0].reason)
        reason = f"{len(failed)} of {len(after)} runs on fresh seeds failed ({cause})"
        return {"gate": group, "decision": "start", "reason": reason}
    pairs = pair_runs([run for pair in zip(before, after, strict=True) for run in pair])
    starts, tuned = ([pair[side].facts["val_perplexity"] for pair in pairs] for side in (0, 1))
    gain = compute_improvement(starts, tuned)
    reason = (
        f"validation perplexity {gain.mean:+.2f} % ({gain.low:+.2f} to {gain.high:+.2f})"
        f" on {len(pairs)} fresh seeds"
    )
    decision = "winner" if gain.mean > 0.0 else "start"
    return {
        "gate": group,
        "decision": decision,
        "reason": reason,
        "improvement": gain._asdict(),
    }


def _keep_start(group: str) -> Gate:
    reason = "no point better than the start was found"
    print_message(f"gate {group}: {reason}")
    return {"gate": group, "decision": "start", "reason": reason}


def plan_runs(
    config: Phase2Config, base: DictConfig, space: Space, *, workers: int = 1
) -> list[PlannedRuns]:
    """Return the training runs of the protocol over a space, its two inspection runs included.

    The first evaluation of each group is a copy of the baseline.
    """

    def get_generation_size(part: Space) -> int:
        engine = Engine(config.optimizer, 0, workers, config.budget)
        return make_optimizer(engine, part).generation_size

    longer = compute_final_length(config.final_steps, base)
    groups = split_groups(space, config)
    at_once = sum(map(get_generation_size, groups.values()))
    plan = [
        PlannedRuns("baseline", 1),
        PlannedRuns("groups", len(groups) * (config.group_budget - 1), at_once=at_once),
        PlannedRuns("gates", (1 + len(groups)) * config.gate_seeds),
        PlannedRuns("joint", config.budget, at_once=get_generation_size(space)),
        PlannedRuns("validation", 2 * config.seeds, with_test=True, length=longer),
    ]
    if config.report:
        plan.append(PlannedRuns("inspection", len(SIDES), at_once=1, length=longer))
    return plan
