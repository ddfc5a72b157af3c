"""The phase-2 protocol: each group of parameters alone, then all together, from the phase-1 optimum (`make sweep-phase2`).

    python -m synaptune.phase2 [--from STUDY] [--group-budget N] [--budget N] [--seeds N] [--study NAME] [--go-on] [overrides]

    gate 1   the phase-1 study says `stop`: nothing is searched
    group    cma over a group's parameters from the phase-1 optimum, the others held there
    gate 2   a group's winner against the optimum it began at, on fresh seeds: it is kept when it is better on average
    joint    cma over all parameters, from the winners that were kept
    verdict  phase-1 optimum against the joint best on fresh seeds and the test split, and the rule of analysis/decision.py

The groups are independent, and so searched one after another with every worker on each: with k workers that takes as long as k
groups at a time, and none waits for the slowest. Gates write their decision and its evidence to gates.json and the study.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.compare import paired_improvement
from synaptune.closing import closed
from synaptune.errors import mistake
from synaptune.opening import add_common_options, add_report_option, composed, guarded, opened
from synaptune.protocol import Protocol, best_trial, confirmed, measured, paired, say, searched, validated
from synaptune.search.loop import Plan
from synaptune.search.space import Dimension, Space, Unit, Value
from synaptune.search.trial import Trial

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
        prog="python -m synaptune.phase2", description="Tune all parameters from the phase-1 optimum: each group alone, then together."
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
    overrides = [f"tuned={start / 'best.yaml'}", *options.overrides, "search_space=all"]
    base, place, given = composed(overrides, options.study or "phase2")
    space = _space(base, given)
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


def _space(base: DictConfig, given: Iterable[str]) -> Space:
    """All parameters that the configured model uses, but those fixed on the command line, from their configured values."""
    from synaptune.build import check
    from synaptune.model.config import ModelConfig, unused_parameters
    from synaptune.spaces import declared_space

    check(base)
    model = OmegaConf.to_object(base.model)
    assert isinstance(model, ModelConfig)
    idle, fixed = unused_parameters(model), set(given)
    return Space(tuple(dimension for dimension in declared_space(base) if dimension.name not in idle and dimension.name not in fixed))


def _stages(protocol: Protocol, group_budget: int, gates: list[dict[str, Any]]) -> tuple[Unit, Unit]:
    """Everything to the verdict; returns the points that were validated."""
    from rich.console import Console

    from synaptune.report.summary import summarise
    from synaptune.report.verdict import show_verdict
    from synaptune.storage.export import write_best, write_json

    folder, name = protocol.study.place.folder, protocol.study.place.name
    groups = _groups(protocol.space)
    say(f"study {name} ({folder}): {len(groups)} groups of {group_budget} evaluations, then {protocol.plan.budget} of all")
    values = protocol.space.values(protocol.space.start())
    kept = dict(values)
    for group, space in groups.items():
        found = searched(protocol, protocol.ledger(group, space), replace(protocol.plan, budget=group_budget), label=f"group {group}")
        gate, winner = _gate(protocol, group, space, best_trial(protocol, found))
        gates.append(gate)
        kept |= winner
        protocol.study.put_note("gates", gates)
        write_json(folder / "gates.json", {"gates": gates})
    joint = Space(tuple(replace(dimension, start=kept[dimension.name]) for dimension in protocol.space.dimensions))
    trials = searched(protocol, protocol.ledger("joint", joint), protocol.plan, label="joint")
    best = confirmed(protocol, trials)
    if best is None:
        raise mistake(got="a joint search without a complete trial", expected="at least one", do="see the failures in the study")
    write_best(folder / "best.yaml", name, best)
    pairs = validated(protocol, protocol.space.unit(values), best.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.trials())
    summary = summarise(name, trials, best, pairs=pairs, defaults=values, seconds=seconds) | {"gates": gates}
    gates.append({"gate": "phase 2", "decision": summary["decision"], "reason": summary["reason"], "improvement": summary["improvement"]})
    write_json(folder / "gates.json", {"gates": gates})
    write_json(folder / "summary.json", summary)
    show_verdict(summary, Console())
    print(f"written to {folder}/summary.json and gates.json; use: python train.py tuned={folder}/best.yaml", flush=True)
    return protocol.space.unit(values), best.unit


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


def _gate(protocol: Protocol, group: str, space: Space, best: Trial | None) -> tuple[dict[str, Any], dict[str, Value]]:
    """Whether a group's winner is kept, by validation perplexity on fresh seeds; the gate's account and the values kept."""
    start = space.start()
    if best is None or best.unit == start:
        reason = "no point better than the start was found"
        say(f"gate {group}: {reason}")
        return {"gate": group, "decision": "start", "reason": reason}, {}
    points: list[tuple[Unit, int]] = []
    for number in range(GATE_SEEDS):
        points += [(start, protocol.seed + _GATE_FRESH + number), (best.unit, protocol.seed + _GATE_FRESH + number)]
    runs = measured(protocol, protocol.ledger(f"gate {group}", space), points, label=f"gate {group} run")
    pairs = paired(runs)
    before, after = ([pair[side].facts["val_perplexity"] for pair in pairs] for side in (0, 1))
    gain = paired_improvement(before, after)
    keep = gain.mean > 0.0
    reason = f"validation perplexity {gain.mean:+.2f} % ({gain.low:+.2f} to {gain.high:+.2f}) on {len(pairs)} fresh seeds"
    say(f"gate {group}: {'winner kept' if keep else 'start kept'}, {reason}")
    account = {"gate": group, "decision": "winner" if keep else "start", "reason": reason, "improvement": gain._asdict()}
    return account | {"trial": best.number, "values": best.values}, best.values if keep else {}


if __name__ == "__main__":
    sys.exit(main())
