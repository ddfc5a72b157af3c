"""Search quality of `cma` against pycma, the CMA-ES of Nevergrad and Optuna, TPE and random points.

    python benchmarks/bench_search.py [--dimensions 10 48] [--evaluations 1000 3000] [--seeds 15]
        [--keep FILE]

Every optimizer gets the same number of evaluations, the same problems and the same noise. The
result of a run is the *true* (noise-free) value of the point with the lowest *observed* value. The
tables show its median over the seeds and, in brackets, its quartiles. The minimum of every problem
is 0. Slow optimizers run fewer seeds, and TPE in many dimensions fewer evaluations; their rows are
labelled so. The last tables compare `cma` with pycma and Nevergrad seed by seed (Wilcoxon's signed
ranks of the log values, two-sided).

Problems over z = 10 (u - o), with u in the unit box; the seed draws the optimum o, which is 0.15 to
0.35 from the centre in every coordinate:

    sphere      sum z^2
    ellipsoid   sum 10^(6 (i-1)/(n-1)) (R z)_i^2, R a random rotation
    Rosenbrock  sum 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, x = z + 1
    Rastrigin   sum z^2 + 10 (1 - cos 2 pi z)
    noisy       sphere, observed with N(0, 5 % of its value at the centre)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synaptune.search.config import SearchConfig
from synaptune.search.optimizers.auto import plan_engine
from synaptune.search.optimizers.cma import INITIAL_STEP
from synaptune.search.optimizers.registry import Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

NOISE = 0.05  # standard deviation as a fraction of the sphere's value at the centre
PROBLEMS = ("sphere", "ellipsoid", "Rosenbrock", "Rastrigin", "noisy")
SLOW_SEEDS = {"cmaes": 5, "tpe": 3}
TPE_EVALUATIONS = 500  # above 20 dimensions; the cost of TPE grows with the square of the trials
PYCMA = {"pycma": "BoundTransform", "pycma-penalty": "BoundPenalty"}
# `cma-start` begins at the centre (search.start_design=defaults), `cma` in the whole box.
OPTIMIZERS = ("cma", "cma-start", *PYCMA, "nevergrad", "cmaes", "tpe", "random")


class Problem(NamedTuple):
    """A problem over the unit box.

    Attributes:
        true: noise-free value at a point.
        noise: standard deviation of an observation.
    """

    true: Callable[[np.ndarray], float]
    noise: float


def make_problem(name: str, *, dimension: int, seed: int) -> Problem:
    """Make a problem; the seed draws its optimum and its rotation."""
    stream = np.random.default_rng([seed, dimension])
    optimum = 0.5 + stream.choice([-1.0, 1.0], dimension) * stream.uniform(0.15, 0.35, dimension)
    rotation = np.linalg.qr(stream.standard_normal((dimension, dimension)))[0]
    weights = 10.0 ** (6.0 * np.arange(dimension) / (dimension - 1))

    def rosenbrock(z: np.ndarray) -> float:
        x = z + 1.0
        return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))

    values: dict[str, Callable[[np.ndarray], float]] = {
        "sphere": lambda z: float(z @ z),
        "ellipsoid": lambda z: float(weights @ (rotation @ z) ** 2),
        "Rosenbrock": rosenbrock,
        "Rastrigin": lambda z: float(np.sum(z**2 + 10.0 * (1.0 - np.cos(2.0 * math.pi * z)))),
    }
    value = values.get(name, values["sphere"])
    at_centre = value(10.0 * (0.5 - optimum))
    return Problem(
        lambda unit: value(10.0 * (unit - optimum)), NOISE * at_centre if name == "noisy" else 0.0
    )


class SynaptuneOptimizer:
    """An optimizer of Synaptune."""

    def __init__(self, name: str, dimension: int, seed: int, evaluations: int) -> None:
        space = Space(tuple(Dimension(f"x{axis}", "lin", 0.0, 1.0) for axis in range(dimension)))
        config = SearchConfig(start_design="defaults", restarts=0)
        engine, _ = plan_engine(
            config if name == "cma-start" else SearchConfig(),
            optimizer=name.removesuffix("-start"),
            seed=seed,
            workers=1,
            budget=evaluations,
        )
        self._optimizer = make_optimizer(engine, space)

    def ask(self) -> list[np.ndarray]:
        """Ask for the points of a generation."""
        units = [self._optimizer.ask() for _ in range(self._optimizer.generation_size)]
        return [np.array(unit) for unit in units]

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Tell the losses of the generation."""
        self._optimizer.tell(
            [
                Observation(tuple(point.tolist()), loss)
                for point, loss in zip(points, losses, strict=True)
            ]
        )


class Pycma:
    """pycma with its default population size and one of its two handlers of bounds."""

    def __init__(self, dimension: int, seed: int, handler: str) -> None:
        import cma

        options = {
            "bounds": [0.0, 1.0],
            "BoundaryHandler": getattr(cma.boundary_handler, handler),
            "seed": seed + 1,
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy([0.5] * dimension, INITIAL_STEP, options)

    def ask(self) -> list[np.ndarray]:
        """Ask for the points of a generation."""
        return self._strategy.ask()

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Tell the losses of the generation."""
        self._strategy.tell(points, losses)


class NevergradCma:
    """Nevergrad's ParametrizedCMA with the same first step and population size.

    Its `scale` cancels the factor that Nevergrad applies to the step in a bounded box.
    """

    def __init__(self, dimension: int, seed: int) -> None:
        import nevergrad as ng

        box = (
            ng.p.Array(init=np.full(dimension, 0.5))
            .set_mutation(sigma=INITIAL_STEP)
            .set_bounds(0.0, 1.0)
        )
        box.random_state = np.random.RandomState(seed)
        self._size = 4 + int(3 * math.log(dimension))
        family = ng.families.ParametrizedCMA(
            scale=1.0 / (0.3 if dimension < 18 else 0.15), popsize=self._size
        )
        self._optimizer = family(box, num_workers=1)
        self._asked: list[Any] = []

    def ask(self) -> list[np.ndarray]:
        """Ask for the points of a generation."""
        self._asked = [self._optimizer.ask() for _ in range(self._size)]
        return [np.clip(candidate.value, 0.0, 1.0) for candidate in self._asked]

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Tell the losses of the generation."""
        for candidate, loss in zip(self._asked, losses, strict=True):
            self._optimizer.tell(candidate, loss)


def make_contestant(name: str, *, dimension: int, seed: int, evaluations: int) -> Any:
    """Make an optimizer whose `ask` and `tell` take full generations."""
    if name in PYCMA:
        return Pycma(dimension, seed, PYCMA[name])
    return (
        NevergradCma(dimension, seed)
        if name == "nevergrad"
        else SynaptuneOptimizer(name, dimension, seed, evaluations)
    )


class Case(NamedTuple):
    """One run of an optimizer on a problem."""

    optimizer: str
    problem: str
    dimension: int
    evaluations: int
    seed: int

    def run(self) -> float:
        """Run the case and return the true value of the point with the lowest observed one."""
        problem = make_problem(self.problem, dimension=self.dimension, seed=self.seed)
        noise = np.random.default_rng([self.seed, 7])
        optimizer = make_contestant(
            self.optimizer, dimension=self.dimension, seed=self.seed, evaluations=self.evaluations
        )
        best_observed, true_of_best, count = math.inf, math.inf, 0
        while count < self.evaluations:
            points = optimizer.ask()
            true = [problem.true(np.asarray(point)) for point in points]
            observed = [value + problem.noise * noise.standard_normal() for value in true]
            counted = list(zip(observed, true, strict=True))[: self.evaluations - count]
            best_observed, true_of_best = min(
                [(best_observed, true_of_best), *counted], key=lambda pair: pair[0]
            )
            optimizer.tell(points, observed)
            count += len(points)
        return true_of_best


def list_cases(options: argparse.Namespace) -> list[Case]:
    """List all runs, the fast optimizers first."""
    cases = []
    for optimizer in sorted(options.optimizers, key=lambda name: name in SLOW_SEEDS):
        for dimension, evaluations in zip(options.dimensions, options.evaluations, strict=True):
            count = (
                min(evaluations, TPE_EVALUATIONS)
                if optimizer == "tpe" and dimension > 20
                else evaluations
            )
            seeds = range(min(options.seeds, SLOW_SEEDS.get(optimizer, options.seeds)))
            cases += [
                Case(optimizer, name, dimension, count, seed) for name in PROBLEMS for seed in seeds
            ]
    return cases


def run_cases(cases: Sequence[Case], file: Path | None) -> dict[Case, float]:
    """Run the cases whose results the file does not have, and append each result to it."""
    results = {}
    if file is not None and file.exists():
        results = {
            Case(*entry[:-1]): entry[-1] for entry in map(json.loads, file.read_text().splitlines())
        }
    started_at = time.perf_counter()
    for number, case in enumerate(cases):
        if case in results:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[case] = case.run()
        if file is not None:
            with file.open("a") as stream:
                stream.write(json.dumps([*case, results[case]]) + "\n")
        print(
            f"{number + 1} of {len(cases)}, {time.perf_counter() - started_at:.0f} s",
            end="\r",
            file=sys.stderr,
            flush=True,
        )
    return {case: results[case] for case in cases}


def format_quartiles(values: Sequence[float]) -> str:
    """Format the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2g} [{low:.2g}, {high:.2g}]"


def format_table(results: dict[Case, float], *, dimension: int, evaluations: int) -> str:
    """Format the medians and quartiles of one dimension as Markdown."""
    lines = [
        f"| {dimension}-D, {evaluations} evaluations | " + " | ".join(PROBLEMS) + " |",
        "| --- " * (len(PROBLEMS) + 1) + "|",
    ]
    for optimizer in OPTIMIZERS:
        rows = {
            name: [
                value for case, value in results.items() if case[:3] == (optimizer, name, dimension)
            ]
            for name in PROBLEMS
        }
        runs = [
            case for case in results if case.optimizer == optimizer and case.dimension == dimension
        ]
        if runs:
            fewer = (
                "" if runs[0].evaluations == evaluations else f", {runs[0].evaluations} evaluations"
            )
            label = f"`{optimizer}` ({len(rows[PROBLEMS[0]])} seeds{fewer})"
            quartiles = " | ".join(format_quartiles(rows[name]) for name in PROBLEMS)
            lines.append(f"| {label} | {quartiles} |")
    return "\n".join(lines)


def format_comparison(results: dict[Case, float], dimensions: Sequence[int], other: str) -> str:
    """Compare `cma` with another optimizer seed by seed, as Markdown."""
    from scipy.stats import wilcoxon

    lines = [
        f"| `cma` over `{other}` | ratio of medians | median ratio, seed by seed | seeds won | p |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dimension in dimensions:
        for name in PROBLEMS:
            ours, theirs = (
                [value for case, value in results.items() if case[:3] == (key, name, dimension)]
                for key in ("cma", other)
            )
            logs = [
                math.log(max(a, 1e-300) / max(b, 1e-300)) for a, b in zip(ours, theirs, strict=True)
            ]
            won = f"{sum(entry < 0 for entry in logs)} of {len(logs)}"
            ratio = statistics.median(ours) / statistics.median(theirs)
            pairwise = math.exp(statistics.median(logs))
            p = float(wilcoxon(logs)[1])  # type: ignore[arg-type]
            lines.append(
                f"| {name}, {dimension}-D | {ratio:.2f} | {pairwise:.2f} | {won} | {p:.2g} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10, 48])
    parser.add_argument(
        "--evaluations",
        type=int,
        nargs="+",
        default=[1000, 3000],
        help="per run, one for each of --dimensions",
    )
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument(
        "--keep", type=Path, help="a file of results; cases with a stored result are not run again"
    )
    options = parser.parse_args()
    if len(options.dimensions) != len(options.evaluations) or options.seeds < 1:
        parser.error("give as many --evaluations as --dimensions, and at least one seed")
    results = run_cases(list_cases(options), options.keep)
    for dimension, evaluations in zip(options.dimensions, options.evaluations, strict=True):
        print(f"\n{format_table(results, dimension=dimension, evaluations=evaluations)}")
    for other in (*PYCMA, "nevergrad"):
        if {"cma", other} <= set(options.optimizers):
            print(f"\n{format_comparison(results, options.dimensions, other)}")


if __name__ == "__main__":
    main()
