"""Search quality: our `cma` against pycma itself, Nevergrad's and Optuna's CMA-ES, TPE and random points.

    python benchmarks/bench_search.py [--dimensions 10 48] [--evaluations 1000 3000] [--seeds 15] [--keep FILE]

Every optimizer gets as many evaluations, the same problems and the same noise. Reported is the median over the seeds of the
*true* (noise-free) value of the point with the lowest *observed* value, in brackets the quartiles. The minimum of every
problem is 0. Slow optimizers run fewer seeds, TPE in many dimensions fewer evaluations: their rows say so. The last tables
compare `cma` with pycma and Nevergrad's seed by seed (Wilcoxon's signed ranks of the log values, two-sided).

Problems over z = 10 (u - o), u in the unit box, the optimum o 0.15 to 0.35 from the centre in every coordinate, by the seed:

    sphere      sum z^2                                      ellipsoid   sum 10^(6 (i-1)/(n-1)) (R z)_i^2, R a random rotation
    Rosenbrock  sum 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, x = z + 1
    Rastrigin   sum z^2 + 10 (1 - cos 2 pi z)                noisy       sphere, observed with N(0, 5 % of its value at the centre)
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

from synaptune.search.optimizers.cma import INITIAL_STEP
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

NOISE = 0.05  # of the sphere's value at the centre
PROBLEMS = ("sphere", "ellipsoid", "Rosenbrock", "Rastrigin", "noisy")
SLOW_SEEDS = {"cmaes": 5, "tpe": 3}
TPE_EVALUATIONS = 500  # above 20 dimensions: its cost grows with the square of the trials
PYCMA = {"pycma": "BoundTransform", "pycma-penalty": "BoundPenalty"}
OPTIMIZERS = ("cma", *PYCMA, "nevergrad", "cmaes", "tpe", "random")


class Problem(NamedTuple):
    """true: the noise-free value at a point of the unit box; noise: standard deviation of an observation."""

    true: Callable[[np.ndarray], float]
    noise: float


def problem(name: str, *, dimension: int, seed: int) -> Problem:
    """A problem with its optimum and its rotation drawn by the seed."""
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


class Ours:
    """An optimizer of synaptune."""

    def __init__(self, name: str, dimension: int, seed: int, evaluations: int) -> None:
        space = Space(tuple(Dimension(f"x{axis}", "lin", 0.0, 1.0) for axis in range(dimension)))
        self._optimizer = make_optimizer(Engine(name, seed, budget=evaluations), space)

    def ask(self) -> list[np.ndarray]:
        """A generation."""
        units = [self._optimizer.ask() for _ in range(self._optimizer.generation_size)]
        return [np.array(unit) for unit in units]

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Its losses."""
        self._optimizer.tell(
            [
                Observation(tuple(point.tolist()), loss)
                for point, loss in zip(points, losses, strict=True)
            ]
        )


class Pycma:
    """pycma as its users call it: its own population, bounds by its own default (BoundTransform) or its alternative."""

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
        """A generation."""
        return self._strategy.ask()

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Its losses."""
        self._strategy.tell(points, losses)


class NevergradCma:
    """Nevergrad's ParametrizedCMA with the same first step and population; its factor on the step of a bounded box is undone."""

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
        """A generation."""
        self._asked = [self._optimizer.ask() for _ in range(self._size)]
        return [np.clip(candidate.value, 0.0, 1.0) for candidate in self._asked]

    def tell(self, points: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Its losses."""
        for candidate, loss in zip(self._asked, losses, strict=True):
            self._optimizer.tell(candidate, loss)


def contestant(name: str, *, dimension: int, seed: int, evaluations: int) -> Any:
    """An optimizer to run, with `ask` and `tell` of whole generations."""
    if name in PYCMA:
        return Pycma(dimension, seed, PYCMA[name])
    return (
        NevergradCma(dimension, seed)
        if name == "nevergrad"
        else Ours(name, dimension, seed, evaluations)
    )


class Case(NamedTuple):
    """One run."""

    optimizer: str
    problem: str
    dimension: int
    evaluations: int
    seed: int

    def run(self) -> float:
        """The true value of the point with the lowest observed one."""
        given = problem(self.problem, dimension=self.dimension, seed=self.seed)
        noise = np.random.default_rng([self.seed, 7])
        optimizer = contestant(
            self.optimizer, dimension=self.dimension, seed=self.seed, evaluations=self.evaluations
        )
        best, at_best, spent = math.inf, math.inf, 0
        while spent < self.evaluations:
            points = optimizer.ask()
            true = [given.true(np.asarray(point)) for point in points]
            observed = [value + given.noise * noise.standard_normal() for value in true]
            for value, seen in list(zip(true, observed, strict=True))[: self.evaluations - spent]:
                best, at_best = (seen, value) if seen < best else (best, at_best)
            optimizer.tell(points, observed)
            spent += len(points)
        return at_best


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every run, the quick optimizers first."""
    found = []
    for optimizer in sorted(arguments.optimizers, key=lambda name: name in SLOW_SEEDS):
        for dimension, evaluations in zip(arguments.dimensions, arguments.evaluations, strict=True):
            spent = (
                min(evaluations, TPE_EVALUATIONS)
                if optimizer == "tpe" and dimension > 20
                else evaluations
            )
            seeds = range(min(arguments.seeds, SLOW_SEEDS.get(optimizer, arguments.seeds)))
            found += [
                Case(optimizer, name, dimension, spent, seed) for name in PROBLEMS for seed in seeds
            ]
    return found


def measure(wanted: Sequence[Case], keep: Path | None) -> dict[Case, float]:
    """Run what `keep` does not hold yet, adding each result to it as it comes."""
    done = {}
    if keep is not None and keep.exists():
        done = {
            Case(*entry[:-1]): entry[-1] for entry in map(json.loads, keep.read_text().splitlines())
        }
    began = time.perf_counter()
    for number, case in enumerate(wanted):
        if case in done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done[case] = case.run()
        if keep is not None:
            with keep.open("a") as file:
                file.write(json.dumps([*case, done[case]]) + "\n")
        print(
            f"{number + 1} of {len(wanted)}, {time.perf_counter() - began:.0f} s",
            end="\r",
            file=sys.stderr,
            flush=True,
        )
    return {case: done[case] for case in wanted}


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2g} [{low:.2g}, {high:.2g}]"


def table(results: dict[Case, float], *, dimension: int, evaluations: int) -> str:
    """Medians and quartiles of one dimension, Markdown."""
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
            spent = (
                "" if runs[0].evaluations == evaluations else f", {runs[0].evaluations} evaluations"
            )
            label = f"`{optimizer}` ({len(rows[PROBLEMS[0]])} seeds{spent})"
            lines.append(
                f"| {label} | " + " | ".join(spread(rows[name]) for name in PROBLEMS) + " |"
            )
    return "\n".join(lines)


def duel(results: dict[Case, float], dimensions: Sequence[int], other: str) -> str:
    """`cma` against another optimizer seed by seed, Markdown."""
    from scipy.stats import wilcoxon

    lines = [
        f"| `cma` over `{other}` | ratio of medians | median ratio, seed by seed | seeds won | p |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dimension in dimensions:
        for name in PROBLEMS:
            ours, theirs = (
                [value for case, value in results.items() if case[:3] == (who, name, dimension)]
                for who in ("cma", other)
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
    """Run and print the tables."""
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
        "--keep", type=Path, help="a file of results: what it holds is not run again"
    )
    arguments = parser.parse_args()
    if len(arguments.dimensions) != len(arguments.evaluations) or arguments.seeds < 1:
        parser.error("give as many --evaluations as --dimensions, and at least one seed")
    results = measure(cases(arguments), arguments.keep)
    for dimension, evaluations in zip(arguments.dimensions, arguments.evaluations, strict=True):
        print(f"\n{table(results, dimension=dimension, evaluations=evaluations)}")
    for other in (*PYCMA, "nevergrad"):
        if {"cma", other} <= set(arguments.optimizers):
            print(f"\n{duel(results, arguments.dimensions, other)}")


if __name__ == "__main__":
    main()
