"""Effect of common random numbers on the comparison of candidates: `make bench-noise`.

    python benchmarks/bench_noise.py [--candidates 8] [--seeds 4] [--first-seed 0]
        [overrides of conf/train.yaml ...]

Random points of the search space are each trained on the same seeds (initialisation and data
order). The benchmark prints the standard deviation of the difference of two candidates with a
common seed and with different seeds, the ratio of the two variances, and the rank correlation of
the candidates between seeds. Finished runs are stored in outputs/noise, so that the same command
continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from run_cache import draw_candidates, load_or_train
from runs import ROOT, format_table

from synaptune.core.errors import UserError, user_error
from synaptune.search.objective.common_seeds import list_common_seeds, measure_common_seeds

HEAD = ["", "value"]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--candidates", type=int, default=8, help="random points of the search space (default 8)"
    )
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each (default 4)")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        help="the first of the seeds, and the seed of the points (default 0)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (default 2)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "outputs" / "noise",
        help="folder of the finished runs",
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    try:
        if options.candidates < 3 or options.seeds < 2 or options.threads < 1:
            raise user_error(
                got=str(vars(options)),
                expected="candidates >= 3, seeds >= 2, threads >= 1",
                do="correct the options",
            )
        run_benchmark(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run_benchmark(options: argparse.Namespace) -> None:
    """Train the candidates and print the table.

    Raises:
        UserError: too many runs diverge.
    """
    losses = []
    points = draw_candidates(options.overrides, options.candidates, options.first_seed)
    for number, point in enumerate(points):
        runs = [
            load_or_train(
                options.folder,
                [*options.overrides, *point, f"seed={seed}", "training.evaluations=1"],
                f"candidate {number}, seed {seed}",
            )
            for seed in list_common_seeds(options.first_seed, options.seeds)
        ]
        if all(run.curve is not None for run in runs):
            losses.append([run.loss for run in runs])
    if len(losses) < 3:
        raise user_error(
            got=f"{len(losses)} candidates without a diverged run",
            expected="at least 3",
            do="use more candidates, or a lower learning rate",
        )
    noise = measure_common_seeds(losses)
    low, high = noise.ratio_interval
    interval = f"95 % bootstrap over candidates {low:.2f} to {high:.2f}"
    print(
        f"\n{len(losses)} candidates of {options.candidates}, {options.seeds} seeds each, "
        "validation loss [nats/token]:\n"
    )
    values = {
        "standard deviation over candidates (of their means)": f"{noise.candidate_deviation:.4f}",
        "standard deviation over seeds (of one candidate)": f"{noise.seed_deviation:.4f}",
        "standard deviation of a difference, different seeds": f"{noise.different**0.5:.4f}",
        "standard deviation of a difference, common seeds": f"{noise.common**0.5:.4f}",
        "variance ratio, different over common": f"{noise.ratio:.2f} ({interval})",
        "rank correlation of the candidates between two seeds": f"{noise.rank_correlation:.2f}",
    }
    print(format_table([HEAD, *([name, value] for name, value in values.items())]))


if __name__ == "__main__":
    sys.exit(main())
