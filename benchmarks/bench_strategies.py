"""Search strategies on the real objective: perplexity on fresh seeds after 20, 40 and 80 runs.

    python benchmarks/bench_strategies.py [--seeds 3] [--budgets 20,40,80] [overrides ...]
    python benchmarks/bench_strategies.py data=text data.path=FILE --folder outputs/strategies-text

Each strategy searches on each seed, that of its training too, and sees the validation loss. After
each budget the point that it recommends is trained on fresh seeds and scored on the test split.
`auto` and `random, model` recommend by the score of search/posterior.py, `random` and `cma-start`
the lowest loss; `random, model` has the runs of `random`. `auto, incumbents` trains the five points
of `auto` with the lowest scores on three more seeds and recommends the best of them. `cma-start` is
`cma` from the defaults with a step of 0.2.
All searches advance together, so that both processes are busy. The table of a budget is written
when it is complete, beside all finished runs: the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder import format_overrides, get_perplexities
from runs import (
    FIRST_FRESH_SEED,
    QUIET,
    ROOT,
    Job,
    Results,
    RunCache,
    check_options,
    compose_config,
    format_table,
    run_on_seeds,
    start_pool,
)

from synaptune.analysis.compare import compute_improvement
from synaptune.config.search_space import read_dimensions
from synaptune.core.errors import UserError
from synaptune.protocols.stages import INCUMBENT_SEEDS
from synaptune.search.optimizers.registry import Engine, Observation, Optimizer, make_optimizer
from synaptune.search.posterior import fit_posterior
from synaptune.search.space.space import Space, UnitPoint
from synaptune.study.artifacts import write_json, write_text

ENGINES: dict[str, dict[str, Any]] = {
    "auto": dict(name="auto"),
    "cma-start": dict(name="cma", start_design="defaults", step=0.2, restarts=0),
    "random": dict(name="random"),
}
# The search and the rule of each row of the table.
ROWS = {
    "auto": ("auto", "posterior"),
    "cma-start": ("cma-start", "observed"),
    "random": ("random", "observed"),
    "random, model": ("random", "posterior"),
    "auto, incumbents": ("auto", "incumbents"),
}
INCUMBENTS = 5

# The second is what the searches see, but on other seeds.
MEASURES = {"perplexity": "test perplexity", "val_loss": "validation loss"}


@dataclass
class Search:
    """One search: its strategy, seed and the trials that have ended."""

    strategy: str
    seed: int
    optimizer: Optimizer
    trials: list[Observation] = field(default_factory=list)

    def rank(self, budget: int, rule: str) -> list[UnitPoint]:
        """Return the points of the first `budget` trials by a rule of ROWS, the best one first."""
        ended = [trial for trial in self.trials[:budget] if trial.loss is not None]
        scores: Any = [float(trial.loss or 0.0) for trial in ended]
        if rule != "observed":
            posterior = fit_posterior([trial.unit for trial in ended], scores)
            scores = scores if posterior is None else posterior.scores
        return [ended[index].unit for index in np.argsort(scores, kind="stable")]


def advance(searches: Sequence[Search], runs: RunCache, space: Space, until: int) -> None:
    """Run the trials of all searches up to the first `until` of each."""
    while waiting := [search for search in searches if len(search.trials) < until]:
        jobs, units = [], []
        for search in waiting:
            count = search.optimizer.generation_size
            found = [unit for _ in range(count) if (unit := search.optimizer.ask()) is not None]
            units.append(found)
            jobs += [
                Job(
                    f"{search.strategy} {search.seed}",
                    (*format_overrides(space.to_values(unit)), f"seed={search.seed}"),
                )
                for unit in found
            ]
        title = f"{min(len(search.trials) for search in waiting)}/{until} trials:"
        results = iter(runs.load_or_train(jobs, title))
        for search, found in zip(waiting, units, strict=True):
            generation = [Observation(unit, next(results).get("val_loss")) for unit in found]
            search.optimizer.tell(generation)
            search.trials += generation


def validate(searches: Sequence[Search], runs: RunCache, space: Space, budget: int) -> Results:
    """Train on fresh seeds what each row recommends for each seed, beside the defaults."""
    rungs = {"defaults": ()}
    for row, (strategy, rule) in ROWS.items():
        chosen = [search for search in searches if search.strategy == strategy]
        ranked = [search.rank(budget, rule) for search in chosen]
        if rule == "incumbents":
            ranked = rerun_incumbents(chosen, ranked, runs, space, f"incumbents after {budget}:")
        for search, points in zip(chosen, ranked, strict=True):
            rungs[f"{row}/{search.seed}"] = format_overrides(space.to_values(points[0]))
    fresh = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 3)
    return run_on_seeds(runs, rungs, fresh, f"fresh seeds after {budget}:")


def rerun_incumbents(
    searches: Sequence[Search],
    ranked: Sequence[Sequence[UnitPoint]],
    runs: RunCache,
    space: Space,
    title: str,
) -> list[list[UnitPoint]]:
    """Order the first points of each search by their mean loss on seeds that it has not used."""
    jobs = [
        Job(
            f"{search.strategy} {search.seed}, incumbent",
            (*format_overrides(space.to_values(unit)), f"seed={search.seed + 1 + number}"),
        )
        for search, points in zip(searches, ranked, strict=True)
        for unit in points[:INCUMBENTS]
        for number in range(INCUMBENT_SEEDS)
    ]
    results = iter(runs.load_or_train(jobs, title))
    ordered = []
    for points in ranked:
        means = [
            statistics.fmean(next(results).get("val_loss", np.inf) for _ in range(INCUMBENT_SEEDS))
            for _ in points[:INCUMBENTS]
        ]
        ordered.append([points[index] for index in np.argsort(means, kind="stable")])
    return ordered


def summarise(results: Results, seeds: Sequence[int]) -> dict[str, Any]:
    """Return per row the means of each search over the fresh seeds, and its gain on `defaults`."""
    start = get_perplexities(results["defaults"])
    rows: dict[str, Any] = {}
    for row in ("defaults", *ROWS):
        names = ["defaults"] if row == "defaults" else [f"{row}/{seed}" for seed in seeds]
        found = [results[name] for name in names]
        rows[row] = {
            "perplexity": [statistics.fmean(get_perplexities(runs)) for runs in found],
            "val_loss": [statistics.fmean(run["val_loss"] for run in runs) for runs in found],
            "gain": [compute_improvement(start, get_perplexities(runs))[0] for runs in found],
        }
    return rows


def format_budgets(tables: dict[int, dict[str, Any]], metric: str) -> str:
    """Format a metric of each row after each budget: the mean, and that of each search."""
    cells = [["", *(f"{budget} runs" for budget in tables)]]
    for row in next(iter(tables.values())):
        line = [row]
        for table in tables.values():
            values = table[row][metric]
            text = f"{statistics.fmean(values):.3f}"
            if len(values) > 1:
                text += f" ({', '.join(f'{value:.3f}' for value in values)})"
            line.append(text)
        cells.append(line)
    return format_table(cells)


def run_benchmark(runs: RunCache, options: argparse.Namespace) -> None:
    """Run the searches; print and write the table after each budget."""
    space = Space(tuple(read_dimensions(compose_config(runs.common))))
    seeds, most = range(options.seeds), max(options.budgets)
    searches = [
        Search(
            strategy,
            seed,
            make_optimizer(Engine(seed=seed, workers=2, budget=most, **engine), space),
        )
        for seed in seeds
        for strategy, engine in ENGINES.items()
    ]
    tables: dict[int, dict[str, Any]] = {}
    for budget in sorted(options.budgets):
        advance(searches, runs, space, budget)
        tables[budget] = summarise(validate(searches, runs, space, budget), seeds)
        text = "\n".join(
            f"{title} on fresh seeds: mean (each search)\n\n{format_budgets(tables, metric)}\n"
            for metric, title in MEASURES.items()
        )
        write_json(runs.path.parent / "strategies.json", tables)
        write_text(runs.path.parent / "strategies.md", text)
        print(f"\n{text}", flush=True)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of a strategy (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument(
        "--budgets",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[20, 40, 80],
        help="runs of a search after which it is scored (default 20,40,80)",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "strategies")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    options = parser.parse_intermixed_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    torch.set_num_threads(1)
    try:
        check_options(
            options.seeds >= 1 and options.workers >= 1 and min(options.budgets) >= 2,
            f"--seeds {options.seeds} --workers {options.workers} --budgets {options.budgets}",
            "at least 1 seed, 1 worker and budgets of 2",
        )
        with start_pool(options.workers) as pool:
            common = (*QUIET, "search_space=phase1", *options.overrides)
            run_benchmark(RunCache(options.folder / "runs.json", pool, common), options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
