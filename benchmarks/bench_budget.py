"""Search quality at the budgets of a person: 20 to 300 evaluations of a noisy loss.

    python benchmarks/bench_budget.py [--seeds 9] [--optimizers NAME ...] [--problems NAME ...]
        [--keep FILE]

Every optimizer gets the same problems, the same starts and the same noise. The result of a run is
the *true* (noise-free) loss of the point that it recommends, less the lowest loss of the problem
(of a fitted one: by local searches from the best of its trials and 5,000 random points) [0.001
nats]. `auto` recommends by the score of search/posterior.py, every other optimizer the point with
the lowest observed loss. Two rows have the points of `auto` and another rule: the lowest observed
loss, the lowest posterior mean. The tables show the median over the seeds and, in brackets, the
quartiles.

Problems (losses in nats/token; the noise is that of a real study with common seeds):

    real-gp      a Gaussian process fitted to a real study of 300 trials over ten parameters
    real-forest  a random forest fitted to the same study
    stdlib-gp, tinyshakespeare-gp
                 Gaussian processes fitted to the 717 trials of bench_strategies.py on a text
    one, three   designed: 1 or 3 of the coordinates matter
    all          designed: every coordinate matters a little
    interact     designed: two coordinates act through their sum, a third one alone
    noisy        `three` with three times the noise
    integers     `three`; every other coordinate has four values only

    f(u) = sum_i a_i (1 - exp(-(u_i - o_i)^2 / 0.18)), o drawn from [0.1, 0.9]

The designed problems have 10 and 48 coordinates and start at random defaults. The studies are files
of benchmarks/data.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_search import PYCMA, Pycma, format_quartiles

from synaptune.search.optimizers.auto import resolve_engine
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.posterior import fit_posterior
from synaptune.search.space.space import Dimension, Space, UnitPoint

BUDGETS = (20, 40, 80, 160, 300)
NOISE = 0.012  # of the difference of two runs with common seeds [nats/token]
DATA = Path(__file__).parent / "data"
REAL = {
    "real-gp": "shakespeare.csv",
    "real-forest": "shakespeare.csv",
    "stdlib-gp": "strategies-stdlib",
    "tinyshakespeare-gp": "strategies-tinyshakespeare",
}
DESIGNED = ("one", "three", "all", "interact", "noisy", "integers")
PROBLEMS = (*REAL, *(f"{name}-{size}" for size in (10, 48) for name in DESIGNED))
# `cma-start` begins at the defaults with a step of 0.2 (search.start_design=defaults).
OPTIMIZERS = ("auto", "cma", "cma-start", "gp", "tpe", "cmaes", "qmc", "pycma", "NGOpt", "random")
AUTO_ROWS = ("auto", "auto, observed", "auto, mean")
ROWS = (*AUTO_ROWS, *OPTIMIZERS[1:])
# Budgets of which the points differ, where an optimizer adapts to the budget.
PLANS = {"auto": (160, 300), "cma": (20, 300), "NGOpt": BUDGETS, "gp": (80,), "tpe": (160,)}
_LOCAL_SEARCHES = 20  # for the minimum of a fitted problem
_WIDTH = 0.18  # of the bowls of the designed problems


class Problem(NamedTuple):
    """A problem over the unit box.

    Attributes:
        true: noise-free loss at a point.
        minimum: its lowest value.
        noise: standard deviation of an observation.
        start: the defaults.
        bins: number of values of each coordinate; 0 for a continuous one.
    """

    true: Callable[[np.ndarray], float]
    minimum: float
    noise: float
    start: tuple[float, ...]
    bins: tuple[int, ...]

    def make_space(self) -> Space:
        """Return the problem's space."""
        return Space(
            tuple(
                Dimension(f"x{axis}", "lin", 0, count - 1, integer=True, start=round(start * count))
                if count
                else Dimension(f"x{axis}", "lin", 0.0, 1.0, start=start)
                for axis, (start, count) in enumerate(zip(self.start, self.bins, strict=True))
            )
        )


def read_trials(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the losses and unit coordinates of the trials of benchmarks/data/NAME."""
    if name.endswith(".csv"):
        with (DATA / name).open() as file:
            rows = np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
        return rows[:, 0], rows[:, 1:]
    from bench_strategies import ENGINES
    from runs import compose_config

    from synaptune.config.search_space import read_dimensions

    space = Space(tuple(read_dimensions(compose_config(["search_space=phase1"]))))
    runs = json.loads((DATA / name / "runs.json").read_text()).values()
    # The labels of the runs with fresh seeds and of incumbents are longer.
    searches = {f"{strategy} {seed}" for strategy in ENGINES for seed in range(3)}
    trials = [run for run in runs if run["label"] in searches]
    units = []
    for trial in trials:
        values = dict(word.split("=", 1) for word in trial["overrides"])
        units.append([axis.to_unit(float(values[axis.name])) for axis in space.dimensions])
    return np.array([trial["val_loss"] for trial in trials]), np.array(units)


@functools.cache
def fit_real(name: str) -> Problem:
    """Fit the model of a real study."""
    from scipy.optimize import minimize
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    losses, units = read_trials(REAL[name])
    size = units.shape[1]
    if name.endswith("forest"):
        model: Any = RandomForestRegressor(100, min_samples_leaf=2, random_state=0)
    else:
        kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern([1.0] * size, (0.1, 100.0), nu=2.5)
        kernel += WhiteKernel(0.05, (1e-3, 1.0))
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(units, losses)
    candidates = np.concatenate([np.random.default_rng(0).random((5_000, size)), units])
    best = candidates[np.argsort(model.predict(candidates))[:_LOCAL_SEARCHES]]

    def true(unit: np.ndarray) -> float:
        return float(model.predict(unit[None])[0])

    minimum = min(minimize(true, start, bounds=[(0.0, 1.0)] * size).fun for start in best)
    return Problem(true, float(minimum), NOISE, tuple(units[0]), (0,) * size)


def make_problem(name: str, seed: int) -> Problem:
    """Make a problem; the seed draws the optimum, the defaults and which coordinates matter."""
    if name in REAL:
        return fit_real(name)
    kind, size = name.split("-")[0], int(name.split("-")[1])
    stream = np.random.default_rng([seed, size])
    optimum, start = stream.uniform(0.1, 0.9, size), stream.random(size)
    order = stream.permutation(size)
    weights = {"one": [0.2], "all": [0.3 / size] * size}.get(kind, [0.12, 0.06, 0.03])
    bins = tuple(4 if kind == "integers" and axis % 2 else 0 for axis in range(size))
    if kind == "integers":  # on the middle of a bin, so that the minimum is 0
        optimum = np.where(bins, (np.floor(optimum * 4) + 0.5) / 4, optimum)

    def true(unit: np.ndarray) -> float:
        distance = unit - optimum
        if any(bins):
            middle = (np.minimum(np.floor(unit * 4), 3) + 0.5) / 4
            distance = np.where(bins, middle, unit) - optimum
        chosen = distance[order[: len(weights)]]
        if kind == "interact":
            chosen = np.array([chosen[0] + chosen[1], chosen[2]])
            return float(0.15 - 0.15 * math.exp(-(chosen[0] ** 2) / 0.06)) + float(
                0.05 - 0.05 * math.exp(-(chosen[1] ** 2) / _WIDTH)
            )
        return float(np.array(weights) @ (1.0 - np.exp(-(chosen**2) / _WIDTH)))

    return Problem(true, 0.0, NOISE * (3.0 if kind == "noisy" else 1.0), tuple(start), bins)


# The regret of the recommended point by row of the tables and number of evaluations.
Regrets = dict[str, dict[int, float]]


class Case(NamedTuple):
    """One run of an optimizer on a problem; `budget` is what the optimizer is told."""

    optimizer: str
    problem: str
    budget: int
    seed: int

    def run(self) -> Regrets:
        """Run the case and return its regrets."""
        problem = make_problem(self.problem, self.seed)
        space = problem.make_space()
        noise = np.random.default_rng([self.seed, 7])
        if self.optimizer in PYCMA:
            contestant: Any = Pycma(len(problem.start), self.seed, PYCMA[self.optimizer])
        else:
            contestant = make_optimizer(self._make_engine(), space)
        units, losses, regrets = [], [], {row: {} for row in self.rows}
        while len(losses) < self.budget:
            if self.optimizer in PYCMA:
                generation = [tuple(point) for point in contestant.ask()]
            else:
                generation = [contestant.ask() for _ in range(contestant.generation_size)]
            true = [problem.true(np.array(unit)) for unit in generation]
            observed = [value + problem.noise * noise.standard_normal() for value in true]
            for unit, value, loss in zip(generation, true, observed, strict=True):
                units.append((unit, value))
                losses.append(loss)
                if len(losses) in self.checkpoints:
                    for row, index in self._recommend([unit for unit, _ in units], losses).items():
                        regrets[row][len(losses)] = units[index][1] - problem.minimum
            if self.optimizer in PYCMA:
                contestant.tell([np.array(unit) for unit in generation], observed)
            else:
                contestant.tell(list(map(Observation, generation, observed)))
        return regrets

    def _recommend(self, units: list[UnitPoint], losses: list[float]) -> dict[str, int]:
        observed = int(np.argmin(losses))
        if self.optimizer != "auto":
            return {self.optimizer: observed}
        model = fit_posterior(units, losses)
        assert model is not None
        best, lowest_mean = int(np.argmin(model.scores)), int(np.argmin(model.mean))
        return dict(zip(AUTO_ROWS, (best, observed, lowest_mean), strict=True))

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of the tables to which the run belongs."""
        return AUTO_ROWS if self.optimizer == "auto" else (self.optimizer,)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of evaluations at which the run is judged."""
        plans = PLANS.get(self.optimizer, BUDGETS[-1:])
        shorter = max((plan for plan in plans if plan < self.budget), default=0)
        return tuple(count for count in BUDGETS if shorter < count <= self.budget)

    def _make_engine(self) -> Engine:
        name, design = self.optimizer, "sobol" if self.optimizer in ("auto", "cma") else "defaults"
        engine = Engine(
            "cma" if name == "cma-start" else name,
            self.seed,
            budget=self.budget,
            start_design=design,
            restarts=3 if design == "sobol" else 0,
        )
        return resolve_engine(engine).engine


def list_cases(options: argparse.Namespace) -> list[Case]:
    """List all runs, seed by seed, so that an interrupted benchmark has all optimizers."""
    return [
        Case(optimizer, problem, budget, seed)
        for seed in range(options.seeds)
        for problem in options.problems
        for optimizer in options.optimizers
        for budget in PLANS.get(optimizer, BUDGETS[-1:])
    ]


def run_cases(cases: Sequence[Case], file: Path | None) -> dict[Case, Regrets]:
    """Run the cases whose results the file does not have, and append each result to it."""
    results: dict[Case, Regrets] = {}
    if file is not None and file.exists():
        for entry in map(json.loads, file.read_text().splitlines()):
            results[Case(*entry[0])] = {
                row: {int(count): regret for count, regret in regrets.items()}
                for row, regrets in entry[1].items()
            }
    started_at = time.perf_counter()
    for number, case in enumerate(cases, 1):
        if case in results:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[case] = case.run()
        if file is not None:
            with file.open("a") as stream:
                stream.write(json.dumps([case, results[case]]) + "\n")
        seconds = time.perf_counter() - started_at
        print(f"{number} of {len(cases)}, {seconds:.0f} s", end="\r", file=sys.stderr, flush=True)
    return {case: results[case] for case in cases}


def format_table(results: dict[Case, Regrets], problem: str) -> str:
    """Format the regrets on a problem as Markdown, in 0.001 nats."""
    lines = [
        f"| {problem} | " + " | ".join(map(str, BUDGETS)) + " |",
        "| --- " * (len(BUDGETS) + 1) + "|",
    ]
    for row in ROWS:
        cells = [_list_regrets(results, row, problem, count) for count in BUDGETS]
        if any(cells):
            texts = [format_quartiles(cell) if cell else "-" for cell in cells]
            lines.append(f"| `{row}` ({max(map(len, cells))}) | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def format_ranks(results: dict[Case, Regrets], problems: Sequence[str]) -> str:
    """Format, for each budget, the mean over all problems of the median regrets as Markdown."""
    lines = [
        "| mean over the problems | " + " | ".join(map(str, BUDGETS)) + " |",
        "| --- " * (len(BUDGETS) + 1) + "|",
    ]
    for row in ROWS:
        texts = []
        for count in BUDGETS:
            cells = [_list_regrets(results, row, name, count) for name in problems]
            texts.append(
                f"{np.mean([np.median(cell) for cell in cells]):.1f}" if all(cells) else "-"
            )
        if any(text != "-" for text in texts):
            lines.append(f"| `{row}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def format_differences(results: dict[Case, Regrets], problems: Sequence[str]) -> str:
    """Format the paired differences of `auto` to the others as Markdown, in 0.001 nats.

    Each is the mean over the problems, with a 95 % t-interval over them.
    """
    from scipy import stats

    lines = [
        "| `auto` less | " + " | ".join(map(str, BUDGETS)) + " |",
        "| --- " * (len(BUDGETS) + 1) + "|",
    ]
    for row in ROWS[1:]:
        texts = []
        for count in BUDGETS:
            pairs = [
                [_list_regrets(results, each, name, count) for each in ("auto", row)]
                for name in problems
            ]
            if len(problems) < 2 or not all(map(all, pairs)):
                texts.append("-")
                continue
            means = [np.mean(np.subtract(ours, theirs)) for ours, theirs in pairs]
            mean, error = np.mean(means), stats.sem(means) * stats.t.ppf(0.975, len(means) - 1)
            texts.append(f"{mean:+.1f} ({mean - error:+.1f} to {mean + error:+.1f})")
        if any(text != "-" for text in texts):
            lines.append(f"| `{row}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _list_regrets(results: dict[Case, Regrets], row: str, problem: str, count: int) -> list[float]:
    return [
        1000.0 * regrets[row][count]
        for case, regrets in results.items()
        if case.problem == problem and count in regrets.get(row, {})
    ]


def main() -> None:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument(
        "--keep", type=Path, help="a file of results; cases with a stored result are not run again"
    )
    options = parser.parse_args()
    results = run_cases(list_cases(options), options.keep)
    for problem in options.problems:
        print(f"\n{format_table(results, problem)}")
    print(f"\n{format_ranks(results, options.problems)}")
    print(f"\n{format_differences(results, options.problems)}")


if __name__ == "__main__":
    main()
