"""The attribution ladder: what each mechanism gains over the best plain transformer.

    python benchmarks/ladder.py [--budget 30] [--seeds 5] [--workers 2] [overrides ...]
    python benchmarks/ladder.py data=text data.path=FILE
    python benchmarks/ladder.py --compared training.steps=800 --only "plain, wide" [--only NAME]

The text is that of the configuration, the standard library without an override. The steps:

1. Strength of the distance of the plain model: `barrier`, `learned` and `clock` have one each, the
   best of a geometric grid by validation loss on the search seed.
2. Values of the synapse: a search by `auto` on the search seed, or the best.yaml of a study
   (`--tuned FILE`). The rungs of the synapse share them; each removes mechanisms.
3. CPU time of a step: all rungs alternate in one process.
4. Equal steps: the learning rate of each rung, the best of a geometric grid by validation loss on
   two seeds of their own; then all rungs on fresh seeds, scored on the test split.
5. Equal time: the same again, each rung with the steps that fit into the training time of the
   slowest.

The wide plain model has at least as many parameters as the full synaptic one, and the distance of
the lowest validation loss. Smeared keys are the simplest counterpart of the memory.
Gains are paired over the seeds, against the first rung, plain RoPE, and against the plain rung of
the lowest mean test perplexity: a choice by the test split that favours the plain model.
`--compared` changes the scale of steps 3 to 5 alone: strengths and values of short runs of a small
model, compared in a larger one or in longer runs. `--only` leaves out the other rungs.
The tables and a JSON file are in outputs/ladder/TEXT, beside all finished runs: the same command
continues an interrupted ladder.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from runs import (
    FIRST_FRESH_SEED,
    QUIET,
    ROOT,
    Job,
    Results,
    RunCache,
    StepCost,
    check_options,
    compose_config,
    count_parameters,
    format_table,
    give_equal_time,
    measure_steps,
    run_on_seeds,
    start_pool,
)
from tuning import (
    HIGHEST_RATE,
    LEARNING_RATE,
    LOWEST_RATE,
    SEARCH_SEED,
    format_overrides,
    make_grid,
    tune_rates,
    tune_values,
)

from synaptune.analysis.compare import compute_improvement
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import read_settings
from synaptune.core.errors import UserError, user_error
from synaptune.data.corpus import load_corpus
from synaptune.model.gpt import GPT
from synaptune.search.space.space import Space
from synaptune.study.artifacts import read_best, write_json, write_text

BARRIER = "synapse.attention.barrier_strength"
# The useful part of the declared range: below it the bias has little effect.
WEAKEST, STRONGEST = 4.0, 128.0
DISTANCES = ("barrier", "learned", "clock")
SEARCHED = (
    BARRIER,
    "synapse.attention.lambda_loge",
    "synapse.calcium.alpha_ca",
    "synapse.postsynaptic.post_fast_lr",
    "synapse.postsynaptic.post_fast_decay",
    "synapse.postsynaptic.rank_eligibility",
    "synapse.structural.energy_cost_rel",
)
PLAIN, ALIBI, WIDE = "plain, RoPE", "plain, ALiBi", "plain, wide"
SMEARED_WIDE = "plain, wide, smeared keys"
PLAIN_BY_DISTANCE = {
    "barrier": "plain + tuned barrier",
    "learned": "plain + learned slope",
    "clock": "plain + tuned clock",
}
SMEARED = "plain + tuned clock, smeared keys"
PLAIN_RUNGS = (PLAIN, ALIBI, *PLAIN_BY_DISTANCE.values(), SMEARED, WIDE, SMEARED_WIDE)
FULL = "+ experts: synaptic, tuned"
DISTANCE_ALONE, MEMORY, DYNAMICS = "synaptic: distance alone", "+ memory", "+ dynamics"
ONE_NETWORK, DEFAULTS = "experts as one wide network", "synaptic, defaults"
RUNGS = (*PLAIN_RUNGS, DISTANCE_ALONE, MEMORY, DYNAMICS, FULL, ONE_NETWORK, DEFAULTS)
COMPARISONS = {"equal_steps": "Equal steps", "equal_time": "Equal training time"}
NO_RELEASE, NO_MEMORY, NO_EXPERTS = "no_release", "no_memory", "no_experts"


class Distance(NamedTuple):
    """The best strength of a distance bias of the plain model, and its validation loss."""

    variant: str
    strength: float
    loss: float

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of the plain model with this distance."""
        return (
            "ablation=plain",
            f"model.distance={self.variant}",
            f"{BARRIER}={self.strength:.6g}",
        )


def tune_distances(runs: RunCache, points: int) -> list[Distance]:
    """Find the best strength of each distance on a geometric grid, by validation loss."""
    grid = [
        Distance(variant, strength, math.inf)
        for variant in DISTANCES
        for strength in make_grid(WEAKEST, STRONGEST, points)
    ]
    jobs = [
        Job(f"{d.variant} {d.strength:.3g}", (*d.overrides, f"seed={SEARCH_SEED}")) for d in grid
    ]
    results = runs.load_or_train(jobs, "distance")
    tried = [
        distance._replace(loss=result.get("val_loss", math.inf))
        for distance, result in zip(grid, results, strict=True)
    ]
    return [
        min((d for d in tried if d.variant == variant), key=lambda d: d.loss)
        for variant in DISTANCES
    ]


def make_space(common: Sequence[str], strength: float) -> Space:
    """Return the search space of the synapse; the search starts at the plain model's distance."""
    cfg = compose_config(common)
    if not any(word.startswith("search_space") for word in common):
        cfg.search_space.parameters = list(SEARCHED)
    narrow = dict(low=WEAKEST, high=STRONGEST, start=strength)
    return Space(
        tuple(
            dataclasses.replace(dimension, **narrow) if dimension.name == BARRIER else dimension
            for dimension in read_dimensions(cfg)
        )
    )


def read_tuned(path: Path) -> dict[str, Any]:
    """Return the values of the synapse of a best.yaml.

    Raises:
        UserError: the file is no best.yaml, or sets something else.
    """
    values = read_best(path)
    if others := [name for name in values if not name.startswith("synapse.")]:
        raise user_error(
            got=f"--tuned {path} with {', '.join(others)}",
            expected="values of synapse.*, because all rungs share the training",
            do="give the best.yaml of a search over the synapse",
        )
    return values


def make_rungs(
    common: Sequence[str], distances: Sequence[Distance], values: dict[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return the overrides of all rungs by name; the plain model with RoPE is the first.

    Args:
        common: overrides of all compared runs.
        distances: the tuned distances of the plain model.
        values: the tuned values of the synapse.
    """
    tuned = ("model=synaptic", *format_overrides(values))

    def without(*mechanisms: str) -> tuple[str, ...]:
        return (*tuned, f"ablation=[{','.join(mechanisms)}]")

    best = min(distances, key=lambda distance: distance.loss)
    clock = next(distance for distance in distances if distance.variant == "clock")
    model = compose_config(common).model
    multiple = model.ff_multiple * model.experts // model.top_k
    wide = (*best.overrides, f"model.width={find_wide(common, best.overrides, tuned)}")
    return {
        PLAIN: ("ablation=plain",),
        ALIBI: ("ablation=plain", "position=alibi"),
        **{PLAIN_BY_DISTANCE[d.variant]: d.overrides for d in distances},
        SMEARED: (*clock.overrides, "model.smear=true"),
        WIDE: wide,
        SMEARED_WIDE: (*wide, "model.smear=true"),
        DISTANCE_ALONE: without(NO_RELEASE, NO_MEMORY, NO_EXPERTS),
        MEMORY: without(NO_RELEASE, NO_EXPERTS),
        DYNAMICS: without(NO_EXPERTS),
        FULL: tuned,
        ONE_NETWORK: (*without(NO_EXPERTS), f"model.ff_multiple={multiple}"),
        DEFAULTS: ("model=synaptic",),
    }


def check_rungs(names: Sequence[str]) -> None:
    """Check the names of `--only`.

    Raises:
        UserError: a name is unknown, or the names have no plain rung or fewer than two rungs.
    """
    for name in names:
        check_options(name in RUNGS, f"--only {name!r}", f"one of {', '.join(map(repr, RUNGS))}")
    check_options(
        not names or (len(set(names)) > 1 and not set(names).isdisjoint(PLAIN_RUNGS)),
        f"--only {', '.join(map(repr, names))}",
        f"at least two rungs, one of them of {', '.join(map(repr, PLAIN_RUNGS))}",
    )


def find_wide(common: Sequence[str], plain: tuple[str, ...], full: tuple[str, ...]) -> int:
    """Return the least width with which the plain model has the parameters of the full one."""
    settings = read_settings(compose_config([*common, *full]))
    vocab = load_corpus(settings.data, settings.model.context).vocab
    wanted = count_parameters(GPT(settings.model, settings.synapse, vocab, seed=0))
    settings = read_settings(compose_config([*common, *plain]))
    model = settings.model
    while count_parameters(GPT(model, settings.synapse, vocab, seed=0)) < wanted:
        model = dataclasses.replace(model, width=model.width + 2 * model.heads)
    return model.width


def find_best_plain(results: Results) -> str:
    """Return the plain rung of the lowest mean test perplexity."""
    plain = [name for name in PLAIN_RUNGS if name in results]
    return min(plain, key=lambda name: statistics.fmean(get_perplexities(results[name])))


def get_perplexities(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return the test perplexities of runs."""
    return [entry["test_perplexity"] for entry in runs]


def summarise(
    results: Results, costs: dict[str, StepCost], rates: dict[str, float]
) -> dict[str, Any]:
    """Return the numbers of one comparison by rung, for the JSON file and the table."""
    first, best, rungs = next(iter(results)), find_best_plain(results), {}
    for name, runs in results.items():
        gains = {
            key: None
            if reference == name
            else list(
                compute_improvement(get_perplexities(results[reference]), get_perplexities(runs))
            )
            for key, reference in (("gain_over_first", first), ("gain_over_best_plain", best))
        }
        rungs[name] = {
            "parameters": costs[name].parameters,
            "steps": int(runs[0]["steps"]),
            "step_time_ratio": costs[name].ratio,
            "learning_rate": rates[name],
            "test_loss": [entry["test_loss"] for entry in runs],
            "test_perplexity": get_perplexities(runs),
            **gains,
        }
    return {"best_plain": best, "rungs": rungs}


def make_rows(summary: dict[str, Any]) -> Iterator[list[str]]:
    """Make the rows of a table: the head, and one for each rung."""
    first, best = next(iter(summary["rungs"])), summary["best_plain"]
    gains = {"gain_over_first": first, "gain_over_best_plain": best}
    if first == best:
        del gains["gain_over_first"]
    yield [
        "",
        "parameters",
        "time of a step",
        "steps",
        "learning rate",
        "test loss [nats/token]",
        "test perplexity",
        *(f"gain over {name} [%]" for name in gains.values()),
    ]
    for name, rung in summary["rungs"].items():
        losses = rung["test_loss"]
        yield [
            name,
            f"{rung['parameters']:,}",
            f"{rung['step_time_ratio']:.2f} x",
            str(rung["steps"]),
            f"{rung['learning_rate']:.3g}",
            f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}",
            f"{statistics.fmean(rung['test_perplexity']):.3f}",
            *(_format_gain(rung[key]) for key in gains),
        ]


def _format_gain(gain: Sequence[float] | None) -> str:
    return "-" if gain is None else f"{gain[0]:+.2f} ({gain[1]:+.2f} to {gain[2]:+.2f})"


def run_ladder(runs: RunCache, options: argparse.Namespace) -> None:
    """Run both searches and all rungs; print and write the tables."""
    folder, common = runs.path.parent, runs.common
    seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + options.seeds)
    distances = tune_distances(runs, options.strengths)
    strength = distances[-1].strength
    if options.tuned is not None:
        values = read_tuned(options.tuned)
    else:
        space = make_space(common, strength)
        values = tune_values(runs, space, budget=options.budget, workers=options.workers)
    compared = (*common, *options.compared)
    rungs = {
        name: (*options.compared, *overrides)
        for name, overrides in make_rungs(compared, distances, values).items()
        if not options.only or name in options.only
    }
    costs = measure_steps(rungs, common, options.rounds, folder / "step_times.json")
    slowest = max(costs, key=lambda name: costs[name].ratio)
    design = {
        "seeds": list(seeds),
        "overrides": list(compared),
        "distances": {d.variant: d._asdict() for d in distances},
        "values": values,
        "rungs": {name: list(overrides) for name, overrides in rungs.items()},
        "slowest": slowest,
    }
    text = _describe(design, options)
    record: dict[str, Any] = {"design": design}
    for key in COMPARISONS if options.comparison == "both" else (options.comparison,):
        title = COMPARISONS[key]
        if key == "equal_time":
            rungs = give_equal_time(rungs, costs, compose_config(compared).training.steps)
            title += f", that of `{slowest}`"
        rates = tune_rates(runs, rungs, options.rates, options.highest_rate)
        with_rates = {n: (*o, f"{LEARNING_RATE}={rates[n]}") for n, o in rungs.items()}
        results = run_on_seeds(runs, with_rates, seeds, title.split(",")[0].lower())
        record[key] = summarise(results, costs, rates)
        text += f"\n## {title}\n\n{format_table(list(make_rows(record[key])))}\n"
        write_json(folder / "ladder.json", record)
        write_text(folder / "ladder.md", text)
    print(f"\n{text}\nwritten to {folder}")


def _describe(design: dict[str, Any], options: argparse.Namespace) -> str:
    distances = ", ".join(
        f"{d['variant']} {d['strength']:.3g}" for d in design["distances"].values()
    )
    values = ", ".join(f"`{name}={value}`" for name, value in design["values"].items())
    source = f"from {options.tuned}" if options.tuned else f"a search of {options.budget}"
    return (
        f"# Ladder\n\n{len(design['seeds'])} paired seeds from {FIRST_FRESH_SEED}; mean ± standard "
        "deviation; gains in test perplexity with 95 % t-intervals, positive is better.\n"
        f"Strengths of the plain distances: {distances}. Values of the synapse ({source}): "
        f"{values}.\nOverrides: `{' '.join(design['overrides'])}`\n"
    )


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = dict(type=int, metavar="N")
    parser.add_argument("--budget", default=30, help="evaluations of the search (30)", **number)
    parser.add_argument("--tuned", type=Path, help="best.yaml of a study in place of the search")
    parser.add_argument("--strengths", default=6, help="strengths of a distance (6)", **number)
    parser.add_argument(
        "--rates", default=5, help="learning rates of every rung; 0: the configured (5)", **number
    )
    parser.add_argument(
        "--highest-rate",
        type=float,
        default=HIGHEST_RATE,
        metavar="RATE",
        help=f"the highest of the learning rates ({HIGHEST_RATE})",
    )
    parser.add_argument(
        "--compared",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="override of the compared runs alone, such as training.steps=800; repeatable",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="compared rung, such as 'plain, wide'; repeatable (all)",
    )
    parser.add_argument(
        "--comparison", choices=["both", *COMPARISONS], default="both", help="(both)"
    )
    parser.add_argument("--seeds", default=5, help="fresh seeds of every rung (5)", **number)
    parser.add_argument(
        "--rounds", default=20, help="rounds of the time measurement (20)", **number
    )
    parser.add_argument("--workers", default=2, help="runs at a time (2)", **number)
    parser.add_argument("--threads", default=1, help="threads of a run (1)", **number)
    parser.add_argument("--folder", type=Path, help="of the results (outputs/ladder/TEXT)")
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    options = parser.parse_intermixed_args()
    common = (*QUIET, *options.overrides)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read by the workers when they start
    torch.set_num_threads(options.threads)
    try:
        least = {"budget": 1, "strengths": 2, "seeds": 2, "rounds": 1, "workers": 1, "threads": 1}
        for name, value in least.items():
            got = getattr(options, name)
            check_options(got >= value, f"--{name} {got}", f"at least {value}")
        check_options(
            options.rates == 0 or options.rates >= 2, f"--rates {options.rates}", "0, or at least 2"
        )
        check_options(
            options.highest_rate > LOWEST_RATE,
            f"--highest-rate {options.highest_rate:g}",
            f"above {LOWEST_RATE}",
        )
        check_rungs(options.only)
        data = read_settings(compose_config(common)).data
        name = Path(data.path).stem if data.path else data.source
        folder = options.folder or ROOT / "outputs" / "ladder" / name
        with start_pool(options.workers, options.threads) as pool:
            run_ladder(RunCache(folder / "runs.json", pool, common), options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
