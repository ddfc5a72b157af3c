"""Power of a screening on planted effects, against one parameter at a time.

    python benchmarks/bench_screen.py [--studies 400] [--parameters 48] [--noise 0.03]

Each simulated study has three parameters with an effect (.01, .02 and .04 nats between the two
levels) among all, and half as many interactions of pairs with a standard deviation of .005. Both
designs have the same number of runs. `screen` is analysis/screening.py. `one at a time` runs the
defaults r times and both levels of each parameter once, or as often as the runs allow, and tests
the difference of the two levels with the known noise. The table shows how often an effect is told
from zero at 5 % (Holm over all parameters), how often its parameter is chosen for the search, and
how often a parameter without effect is.

A second table is of the ablation of phase 1 (analysis/ablation.py): the same effects among a few
parameters that are set back, one at a time, on few paired seeds. The standard deviation of a paired
difference is .012, that of the validation in docs/reports/shakespeare.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from synaptune.analysis.ablation import POOLED_BELOW
from synaptune.analysis.compare import compare, holm, pool_spread
from synaptune.analysis.screening import ALPHA, CHOSEN_P, MAX_CHOSEN, analyse_screen, plan_screen

PLANTED = (0.01, 0.02, 0.04)
INTERACTION = 0.005
RUNS = (64, 100, 200)
PAIRED_NOISE = 0.012  # standard deviation of a paired difference of the validation [nats]
ABLATIONS = ((7, 2), (5, 3), (4, 4), (5, 5))  # parameters and seeds


def simulate_screen(
    count: int, runs: int, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each parameter whether it is significant and whether it is chosen."""
    stream = np.random.default_rng(seed)
    plan = plan_screen(count, runs, seed)
    x = plan.signs
    losses = x[:, : len(PLANTED)] @ np.array(PLANTED) / 2.0
    for _ in range(count // 2):
        i, j = stream.choice(count, 2, replace=False)
        losses = losses + INTERACTION * stream.standard_normal() * x[:, i] * x[:, j]
    losses = losses + noise * stream.standard_normal(len(losses))
    names = [str(index) for index in range(count)]
    screening = analyse_screen(plan, names, losses.tolist())
    assert screening is not None
    by_name = {effect.name: effect for effect in screening.effects}
    significant = [by_name[name].adjusted_p < ALPHA for name in names]
    return np.array(significant), np.array([by_name[name].chosen for name in names])


def simulate_single(
    count: int, runs: int, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for one parameter at a time."""
    from scipy.stats import norm

    stream = np.random.default_rng(seed)
    per_level = max(runs / (2.0 * count), 0.5)  # half: one level of each, against the defaults
    effects = np.zeros(count)
    effects[: len(PLANTED)] = PLANTED
    error = noise * math.sqrt(2.0 / per_level)
    estimates = effects + error * stream.standard_normal(count)
    p_values = 2.0 * norm.sf(np.abs(estimates) / error)
    order = np.argsort(p_values)[:MAX_CHOSEN]
    chosen = np.isin(np.arange(count), order) & (p_values < CHOSEN_P)
    return np.array(holm(p_values.tolist())) < ALPHA, chosen


def simulate_ablation(count: int, seeds: int, seed: int) -> np.ndarray:
    """Return for each parameter whether its worth is significant."""
    stream = np.random.default_rng(seed)
    effects = np.zeros(count)
    effects[: len(PLANTED)] = PLANTED
    # Each parameter is compared with the same run of the optimum.
    noise = PAIRED_NOISE / math.sqrt(2.0) * stream.standard_normal((count + 1, seeds))
    perplexities = 8.0 * np.exp(noise + np.array([0.0, *effects])[:, None])
    after = perplexities[0].tolist()
    pairs = [(before.tolist(), after) for before in perplexities[1:]]
    spread = pool_spread(pairs) if seeds < POOLED_BELOW else None
    return np.array(holm([compare(*pair, spread=spread).p for pair in pairs])) < ALPHA


def main() -> None:
    """Simulate the studies and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--parameters", type=int, default=48)
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--ablation", action="store_true", help="the second table only")
    options = parser.parse_args()
    planted = [f"{effect:g}: told, chosen" for effect in PLANTED]
    print(f"| runs, design | {' | '.join(planted)} | no effect: told, chosen |")
    print("| --- " * (len(PLANTED) + 2) + "|")
    for runs in () if options.ablation else RUNS:
        for label, simulate in (("screen", simulate_screen), ("one at a time", simulate_single)):
            results = [
                simulate(options.parameters, runs, options.noise, seed)
                for seed in range(options.studies)
            ]
            told, chosen = (
                np.mean([result[side] for result in results], axis=0) for side in (0, 1)
            )
            size = len(PLANTED)
            cells = [f"{told[i]:.0%}, {chosen[i]:.0%}" for i in range(size)]
            cells.append(f"{told[size:].mean():.1%}, {chosen[size:].mean():.0%}")
            print(f"| {runs}, {label} | {' | '.join(cells)} |")
    print(f"\n| parameters x seeds | {' | '.join(map(str, PLANTED))} | no effect |")
    print("| --- " * (len(PLANTED) + 2) + "|")
    for count, seeds in ABLATIONS:
        studies = range(options.studies // 2)
        told = np.mean([simulate_ablation(count, seeds, seed) for seed in studies], axis=0)
        cells = [f"{share:.0%}" for share in told[: len(PLANTED)]]
        print(f"| {count} x {seeds} | {' | '.join(cells)} | {told[len(PLANTED) :].mean():.1%} |")


if __name__ == "__main__":
    main()
