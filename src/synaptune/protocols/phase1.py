"""The phase-1 protocol: sanity, baseline, search, validation, verdict (`make sweep-phase1`).

    python -m synaptune.protocols.phase1 [--budget N] [--seeds N] [--study NAME] [--go-on] [overrides of conf/train.yaml]

All candidates share initialisation and data order (common random numbers), so that ranks reflect parameters; the validation
seeds are fresh and its text, the test split, is untouched by the choice. Every finished piece is in the study at once: the
same command goes on after Ctrl-C or a kill, and shows the verdict again when all is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.cost import PlannedRuns
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import UserError
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.inspection import SIDES
from synaptune.protocols.options import add_common_options, add_report_option, run_command
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import OPTIMIZER, open_protocol
from synaptune.protocols.stages import (
    require_objective,
    rerun_incumbents,
    run_points,
    run_search,
    run_validation,
)
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space, UnitPoint
from synaptune.search.trial import Trial
from synaptune.study.optimize import start_from_study

BUDGET = 40
SANITY_SEEDS = 3
SANITY_CANDIDATES = 6
SANITY_REPEATS = 2  # of the candidates, those run on every sanity seed
SEED_OFFSET = 1000  # distance of the validation seeds from the search's


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_run, _parse_options(sys.argv[1:] if arguments is None else arguments))


def _parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.phase1",
        description="Tune the parameters of phase 1 and say what they are worth.",
    )
    parser.add_argument(
        "--budget", type=int, default=BUDGET, help=f"evaluations of the search (default {BUDGET})"
    )
    add_common_options(parser)
    add_report_option(parser)
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> None:
    Plan(options.budget).check()
    begun = compose_config(options.overrides, options.study)
    base, place = begun.base, begun.location
    space, prior = start_from_study(build_space(begun), base.search.start)
    seeds = [int(base.seed) + SEED_OFFSET + number for number in range(options.seeds)]
    settings = {"protocol": "phase1"}
    with open_protocol(
        base,
        place,
        space,
        budget=options.budget,
        seeds=seeds,
        go_on=options.go_on,
        settings=settings,
    ) as protocol:
        for dimension in space.dimensions:
            if not dimension.contains(configured := OmegaConf.select(base, dimension.name)):
                print_message(
                    f"{dimension.name}: {configured} lies outside {dimension.describe()}; baseline and search begin at its nearest end"
                )
        points = _run_stages(protocol, prior)
        if options.report:
            write_final_report(protocol, *points)


def plan_runs(budget: int, seeds: int, space: Space, *, workers: int = 1) -> list[PlannedRuns]:
    """The training runs of a protocol over a space, the two portraits of its end included.

    The baseline and the search's first evaluation are copies of a sanity run.
    """
    population = make_optimizer(Engine(OPTIMIZER, 0, workers, budget), space).generation_size
    sanity = SANITY_SEEDS + SANITY_CANDIDATES + SANITY_REPEATS * (SANITY_SEEDS - 1)
    return [
        PlannedRuns("sanity", sanity),
        PlannedRuns("search", budget - 1, at_once=population),
        PlannedRuns("validation", 2 * seeds, with_test=True),
        PlannedRuns("portraits", len(SIDES), at_once=1),
    ]


def build_space(config: ComposedConfig) -> Space:
    """The parameters that a composed configuration searches: those of its search space that are not fixed; raises UserError."""
    from synaptune.config.search_space import check_search, read_dimensions

    space = Space(
        tuple(
            dimension
            for dimension in read_dimensions(config.base)
            if dimension.name not in config.fixed_names
        )
    )
    check_search(config.base, space.names)
    return space


def _run_stages(protocol: Protocol, prior: Sequence[Observation]) -> tuple[UnitPoint, UnitPoint]:
    """Everything to the verdict; returns the points that were validated."""
    from rich.console import Console

    from synaptune.config.search_space import read_fixed_values
    from synaptune.report.summary import print_verdict, summarise_study
    from synaptune.study.artifacts import write_best, write_json

    folder = protocol.study.location.folder
    print_message(
        f"study {protocol.study.location.name} ({folder}): {protocol.plan.budget} evaluations of {len(protocol.space.names)} parameters"
    )
    _check_sanity(protocol)
    baseline = _run_baseline(protocol)
    ledger = protocol.make_ledger("search", seeds=int(protocol.base.search.seeds))
    trials = run_search(protocol, ledger, protocol.plan, prior=prior)
    best = rerun_incumbents(protocol, trials) or baseline
    write_best(
        folder / "best.yaml", protocol.study.location.name, best, read_fixed_values(protocol.base)
    )
    pairs = run_validation(protocol, baseline.unit, best.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.read_trials())
    summary = summarise_study(
        protocol.study.location.name,
        trials,
        best,
        pairs=pairs,
        defaults=baseline.values,
        seconds=seconds,
    )
    if protocol.objective.name == "pareto":
        found = summary["pareto"] = _summarise_front(protocol, trials)
        print_message(
            f"pareto: {len(found['front'])} trials on the front, hypervolume {found['hypervolume']:.4g} (baseline 1)"
        )
    write_json(folder / "summary.json", summary)
    print_verdict(summary, Console())
    print(
        f"written to {folder}/summary.json; use: python train.py tuned={folder}/best.yaml",
        flush=True,
    )
    return baseline.unit, best.unit


def _check_sanity(protocol: Protocol) -> None:
    """Check the optimizer and the objective once; raises UserError when they fail and nobody said to go on."""
    from synaptune.search.sanity import SOLVED_LOSS, check_objective, check_optimizer

    study, faults = protocol.study, []
    signal = study.read_note("sanity.signal")
    reference = (
        _measure_unigram_entropy(protocol.base) if signal is None else None
    )  # before anything costly: it reads the text
    check = study.read_note("sanity.optimizer")
    if check is None:
        print_message("sanity: the optimizer on Rosenbrock's function")
        result = check_optimizer(protocol.engine.name, protocol.seed)
        check = result._asdict() | {"solved": result.is_solved}
        study.write_note("sanity.optimizer", check)
    spent = f"{check['evaluations']} evaluations, {check['attempts']} attempts"
    print_message(
        f"sanity: Rosenbrock in 10 dimensions reached {check['best']:.2g} ({spent}; solved below {SOLVED_LOSS:g})"
    )
    if not check["solved"]:
        faults.append(
            f"optimizer: Rosenbrock's function stayed at {check['best']:.3g}, expected below {SOLVED_LOSS:g}"
        )
    if signal is None:
        ledger = protocol.make_ledger("sanity")
        seeds = [protocol.seed + number for number in range(SANITY_SEEDS)]
        stream = make_optimizer(Engine("random", protocol.seed), protocol.space)
        units = [
            unit for unit in (stream.ask() for _ in range(SANITY_CANDIDATES)) if unit is not None
        ]
        points = [(protocol.space.get_start(), seed) for seed in seeds] + [
            (unit, protocol.seed) for unit in units
        ]
        points += [(unit, seed) for unit in units[:SANITY_REPEATS] for seed in seeds[1:]]
        found = dict(
            zip(points, run_points(protocol, ledger, points, label="sanity run"), strict=True)
        )
        signal = check_objective(
            [require_objective(found[protocol.space.get_start(), seed]) for seed in seeds],
            [found[unit, protocol.seed].objective for unit in units],
            [[found[unit, seed].objective for seed in seeds] for unit in units[:SANITY_REPEATS]],
            reference,
        ).to_facts()
        study.write_note("sanity.signal", signal)
    compared = (
        "" if signal["reference"] is None else f" (unigram entropy {signal['reference']:.3f})"
    )
    spread = (
        "unknown"
        if signal["spread_over_candidates"] is None
        else f"{signal['spread_over_candidates']:.4f}"
    )
    print_message(
        f"sanity: loss {signal['loss']:.3f}{compared}, spread over random candidates {spread}"
    )
    print_message(
        f"sanity: spread over seeds {signal['spread_over_seeds']:.4f}, of differences between candidates {signal['noise']:.4f}"
    )
    faults += signal["faults"]
    if faults and not protocol.go_on:
        raise UserError(
            "got an objective or optimizer that a search would be wasted on\n  "
            + "\n  ".join(faults)
            + "\n  expected: sanity checks that pass\n  to do: change what is named (and the study's name), or go on with --go-on"
        )
    for fault in faults:
        print_message(f"going on in spite of {fault}")


def _run_baseline(protocol: Protocol) -> Trial:
    (trial,) = run_points(
        protocol,
        protocol.make_ledger("baseline"),
        [(protocol.space.get_start(), protocol.seed)],
        label="baseline run",
    )
    print_message(f"baseline: objective {require_objective(trial):.4f} at the defaults")
    return trial


def _summarise_front(protocol: Protocol, trials: Sequence[Trial]) -> dict[str, Any]:
    """The Pareto front of a search's complete trials: each with its changes from the baseline by axis, and the hypervolume."""
    from synaptune.search.objective.pareto import hypervolume, pareto_front
    from synaptune.search.objective.score import compute_costs

    complete = [trial for trial in trials if trial.state == "complete"]
    costs = [compute_costs(protocol.objective, trial.facts) for trial in complete]
    front = [
        {"trial": trial.number, "changes": cost}
        for trial, cost, on in zip(complete, costs, pareto_front(costs), strict=True)
        if on
    ]
    return {"front": front, "hypervolume": hypervolume(costs)}


def _measure_unigram_entropy(base: DictConfig) -> float | None:
    """Cross-entropy of the validation text under the training text's token frequencies [nats/token]; null when rows are not text."""
    import numpy as np

    from synaptune.config.settings import read_settings
    from synaptune.data.corpus import load_corpus

    built = read_settings(base)
    if built.objective.name != "val_loss" or built.data.recall_fraction > 0.0:
        return None
    corpus = load_corpus(built.data, built.model.context)
    counts = (
        np.bincount(corpus.train, minlength=corpus.vocab) + 1.0
    )  # one more of each: no token is impossible
    shares = np.bincount(corpus.val, minlength=corpus.vocab) / len(corpus.val)
    return float(-(shares * np.log(counts / counts.sum())).sum())


if __name__ == "__main__":
    sys.exit(main())
