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

from synaptune.analysis.cost import Stage
from synaptune.config.compose import Composed, composed
from synaptune.core.errors import UserError
from synaptune.protocols.final_report import closed
from synaptune.protocols.options import add_common_options, add_report_option, guarded
from synaptune.protocols.portraits import SIDES
from synaptune.protocols.protocol import Protocol, say
from synaptune.protocols.session import OPTIMIZER, opened
from synaptune.protocols.stages import confirmed, measured, objective_at_start, searched, validated
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Told
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space, Unit
from synaptune.search.trial import Trial
from synaptune.study.optimize import begun_at

BUDGET = 40
SANITY_SEEDS = 3
SANITY_CANDIDATES = 6
SANITY_REPEATED = 2  # of the candidates, those run on every sanity seed
FRESH = 1000  # distance of the validation seeds from the search's


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(_run, _options(sys.argv[1:] if arguments is None else arguments))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.phase1", description="Tune the parameters of phase 1 and say what they are worth."
    )
    parser.add_argument("--budget", type=int, default=BUDGET, help=f"evaluations of the search (default {BUDGET})")
    add_common_options(parser)
    add_report_option(parser)
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> None:
    Plan(options.budget).check()
    begun = composed(options.overrides, options.study)
    base, place = begun.base, begun.place
    space, prior = begun_at(searched_space(begun), base.search.start)
    seeds = [int(base.seed) + FRESH + number for number in range(options.seeds)]
    settings = {"protocol": "phase1"}
    with opened(base, place, space, budget=options.budget, seeds=seeds, go_on=options.go_on, settings=settings) as protocol:
        for dimension in space.dimensions:
            if not dimension.holds(configured := OmegaConf.select(base, dimension.name)):
                say(f"{dimension.name}: {configured} lies outside {dimension.describe()}; baseline and search begin at its nearest end")
        points = _stages(protocol, prior)
        if options.report:
            closed(protocol, *points)


def stages(budget: int, seeds: int, space: Space, *, workers: int = 1) -> list[Stage]:
    """The training runs of a protocol over a space, the two portraits of its end included.

    The baseline and the search's first evaluation are copies of a sanity run.
    """
    population = make_optimizer(Engine(OPTIMIZER, 0, workers, budget), space).generation_size
    sanity = SANITY_SEEDS + SANITY_CANDIDATES + SANITY_REPEATED * (SANITY_SEEDS - 1)
    return [
        Stage("sanity", sanity),
        Stage("search", budget - 1, at_once=population),
        Stage("validation", 2 * seeds, tested=True),
        Stage("portraits", len(SIDES), at_once=1),
    ]


def searched_space(composed: Composed) -> Space:
    """The parameters that a composed configuration searches: those of its search space that are not fixed; raises UserError."""
    from synaptune.config.search_space import check_base, declared_space

    space = Space(tuple(dimension for dimension in declared_space(composed.base) if dimension.name not in composed.given))
    check_base(composed.base, space.names)
    return space


def _stages(protocol: Protocol, prior: Sequence[Told]) -> tuple[Unit, Unit]:
    """Everything to the verdict; returns the points that were validated."""
    from rich.console import Console

    from synaptune.config.search_space import fixed_values
    from synaptune.report.summary import show_verdict, summarise
    from synaptune.study.artifacts import write_best, write_json

    folder = protocol.study.place.folder
    say(f"study {protocol.study.place.name} ({folder}): {protocol.plan.budget} evaluations of {len(protocol.space.names)} parameters")
    _sanity(protocol)
    baseline = _baseline(protocol)
    ledger = protocol.ledger("search", seeds=int(protocol.base.search.seeds))
    trials = searched(protocol, ledger, protocol.plan, prior=prior)
    best = confirmed(protocol, trials) or baseline
    write_best(folder / "best.yaml", protocol.study.place.name, best, fixed_values(protocol.base))
    pairs = validated(protocol, baseline.unit, best.unit)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.trials())
    summary = summarise(protocol.study.place.name, trials, best, pairs=pairs, defaults=baseline.values, seconds=seconds)
    if protocol.objective.name == "pareto":
        found = summary["pareto"] = _front(protocol, trials)
        say(f"pareto: {len(found['front'])} trials on the front, hypervolume {found['hypervolume']:.4g} (baseline 1)")
    write_json(folder / "summary.json", summary)
    show_verdict(summary, Console())
    print(f"written to {folder}/summary.json; use: python train.py tuned={folder}/best.yaml", flush=True)
    return baseline.unit, best.unit


def _sanity(protocol: Protocol) -> None:
    """Check the optimizer and the objective once; raises UserError when they fail and nobody said to go on."""
    from synaptune.search.sanity import SOLVED, check_optimizer, signal_of

    study, faults = protocol.study, []
    signal = study.note("sanity.signal")
    reference = _unigram_entropy(protocol.base) if signal is None else None  # before anything costly: it reads the text
    check = study.note("sanity.optimizer")
    if check is None:
        say("sanity: the optimizer on Rosenbrock's function")
        result = check_optimizer(protocol.engine.name, protocol.seed)
        check = result._asdict() | {"solved": result.solved}
        study.put_note("sanity.optimizer", check)
    spent = f"{check['evaluations']} evaluations, {check['attempts']} attempts"
    say(f"sanity: Rosenbrock in 10 dimensions reached {check['best']:.2g} ({spent}; solved below {SOLVED:g})")
    if not check["solved"]:
        faults.append(f"optimizer: Rosenbrock's function stayed at {check['best']:.3g}, expected below {SOLVED:g}")
    if signal is None:
        ledger = protocol.ledger("sanity")
        seeds = [protocol.seed + number for number in range(SANITY_SEEDS)]
        stream = make_optimizer(Engine("random", protocol.seed), protocol.space)
        units = [unit for unit in (stream.ask() for _ in range(SANITY_CANDIDATES)) if unit is not None]
        points = [(protocol.space.start(), seed) for seed in seeds] + [(unit, protocol.seed) for unit in units]
        points += [(unit, seed) for unit in units[:SANITY_REPEATED] for seed in seeds[1:]]
        found = dict(zip(points, measured(protocol, ledger, points, label="sanity run"), strict=True))
        signal = signal_of(
            [objective_at_start(found[protocol.space.start(), seed]) for seed in seeds],
            [found[unit, protocol.seed].objective for unit in units],
            [[found[unit, seed].objective for seed in seeds] for unit in units[:SANITY_REPEATED]],
            reference,
        ).facts()
        study.put_note("sanity.signal", signal)
    compared = "" if signal["reference"] is None else f" (unigram entropy {signal['reference']:.3f})"
    spread = "unknown" if signal["spread_over_candidates"] is None else f"{signal['spread_over_candidates']:.4f}"
    say(f"sanity: loss {signal['loss']:.3f}{compared}, spread over random candidates {spread}")
    say(f"sanity: spread over seeds {signal['spread_over_seeds']:.4f}, of differences between candidates {signal['noise']:.4f}")
    faults += signal["faults"]
    if faults and not protocol.go_on:
        raise UserError(
            "got an objective or optimizer that a search would be wasted on\n  "
            + "\n  ".join(faults)
            + "\n  expected: sanity checks that pass\n  to do: change what is named (and the study's name), or go on with --go-on"
        )
    for fault in faults:
        say(f"going on in spite of {fault}")


def _baseline(protocol: Protocol) -> Trial:
    (trial,) = measured(protocol, protocol.ledger("baseline"), [(protocol.space.start(), protocol.seed)], label="baseline run")
    say(f"baseline: objective {objective_at_start(trial):.4f} at the defaults")
    return trial


def _front(protocol: Protocol, trials: Sequence[Trial]) -> dict[str, Any]:
    """The Pareto front of a search's complete trials: each with its changes from the baseline by axis, and the hypervolume."""
    from synaptune.search.objective.pareto import hypervolume, pareto_front
    from synaptune.search.objective.score import vector

    complete = [trial for trial in trials if trial.state == "complete"]
    costs = [vector(protocol.objective, trial.facts) for trial in complete]
    front = [{"trial": trial.number, "changes": cost} for trial, cost, on in zip(complete, costs, pareto_front(costs), strict=True) if on]
    return {"front": front, "hypervolume": hypervolume(costs)}


def _unigram_entropy(base: DictConfig) -> float | None:
    """Cross-entropy of the validation text under the training text's token frequencies [nats/token]; null when rows are not text."""
    import numpy as np

    from synaptune.config.settings import settings
    from synaptune.data.corpus import load_corpus

    built = settings(base)
    if built.objective.name != "val_loss" or built.data.recall_fraction > 0.0:
        return None
    corpus = load_corpus(built.data, built.model.context)
    counts = np.bincount(corpus.train, minlength=corpus.vocab) + 1.0  # one more of each: no token is impossible
    shares = np.bincount(corpus.val, minlength=corpus.vocab) / len(corpus.val)
    return float(-(shares * np.log(counts / counts.sum())).sum())


if __name__ == "__main__":
    sys.exit(main())
