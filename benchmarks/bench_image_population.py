"""Small image networks trained as one program, against the same networks one by one.

    python benchmarks/bench_image_population.py [--networks 16] [--steps 200] [--pairs 3]
    ... --data mnist --path FOLDER --batch 256

Both ways end with the same files: result.json, metrics.csv and a checkpoint of each network. They
run in turns; the ratio of their CPU times is that of each pair, and its median is printed. The
networks are random candidates of the dendritic search space that fit the budget, which share a seed
as the candidates of a search do (`search`), or one candidate on many seeds (`seeds`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from synaptune.config.compose import compose_config
from synaptune.config.run import finish_run, prepare_run, run
from synaptune.training.population_fit import fit_population
from synaptune.training.trainer import FitResult


def make_candidates(options: argparse.Namespace, kind: str) -> list[DictConfig]:
    """Return the configurations of the networks."""
    random = np.random.default_rng(0)
    common = [
        *("model=dendritic", f"data={options.data}", "logger=csv", "logger.progress=off"),
        *("logger.tensorboard=false", f"training.steps={options.steps}", "training.evaluations=2"),
        *(f"training.batch={options.batch}", "budget.max_params=8000"),
        *([f"data.path={options.path}"] if options.path else []),
    ]
    candidates = []
    for number in range(options.networks):
        words = [f"seed={number}"]
        if kind == "search":
            words = [
                f"network.n_neurons={random.integers(8, 17)}",
                f"network.n_dendrites={random.integers(3, 9)}",
                f"network.n_dendrite_inputs={random.integers(16, 33)}",
                f"network.steps_to_resample={random.integers(64, 257)}",
                f"training.learning_rate={10 ** random.uniform(-3, -1.5):.5g}",
            ]
        candidates.append(compose_config([*common, *words]).base)
    return candidates


def train(candidates: list[DictConfig], folder: Path, *, together: bool) -> list[float]:
    """Train the networks; return their validation losses."""
    folders = [folder / str(number) for number in range(len(candidates))]
    if not together:
        outcomes = [run(*pair, overrides=[]) for pair in zip(candidates, folders, strict=True)]
        return [outcome.metrics["val_loss"] for outcome in outcomes]
    prepared = [prepare_run(*pair, []) for pair in zip(candidates, folders, strict=True)]
    losses = [0.0] * len(prepared)
    for index, fitted in fit_population([each.job for each in prepared]):
        assert isinstance(fitted, FitResult), fitted
        outcome = finish_run(prepared[index], fitted, fitted.busy_seconds)
        losses[index] = outcome.metrics["val_loss"]
    return losses


def measure(options: argparse.Namespace, kind: str) -> None:
    """Print the CPU times and the largest difference of a validation loss."""
    candidates = make_candidates(options, kind)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    losses: dict[bool, list[float]] = {}
    for _ in range(options.pairs):
        for together in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                started_at = time.process_time()
                losses[together] = train(candidates, Path(folder), together=together)
                seconds[together].append(time.process_time() - started_at)
    ratio = statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
    apart = max(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True))
    print(
        f"{kind}: {len(candidates)} networks, {options.steps} steps of {options.batch} images: "
        f"one by one {statistics.median(seconds[False]):.1f} s, together "
        f"{statistics.median(seconds[True]):.1f} s, {ratio:.1f} times; "
        f"largest difference of a loss {apart:.1e}",
        flush=True,
    )


def main() -> None:
    """Measure both kinds of population."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist, cifar10")
    parser.add_argument("--path", help="folder of the image files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # the imports are nobody's time
        train(make_candidates(options, "seeds")[:1], Path(folder), together=True)
    for kind in ("search", "seeds"):
        measure(options, kind)


if __name__ == "__main__":
    main()
