"""What common random numbers buy in a search: `make bench-noise`.

    python benchmarks/bench_noise.py [--candidates 8] [--seeds 4] [--first-seed 0] [overrides of conf/train.yaml ...]

Random points of the search space are each trained on the same seeds (initialisation and data order). Printed: how much the
difference of two candidates varies when they share a seed and when they do not, the ratio of the two variances, and how
alike the seeds rank the candidates. Finished runs are kept in outputs/noise: the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from kept import candidates, kept_run
from ladder import ROOT, table

from synaptune.core.errors import UserError, user_error
from synaptune.search.objective.common_seeds import list_common_seeds, measure_common_seeds

HEAD = ["", "value"]


def main() -> int:
    """The command; returns its exit code."""
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
        help="where finished runs are kept",
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(given.threads)
    try:
        if given.candidates < 3 or given.seeds < 2 or given.threads < 1:
            raise user_error(
                got=str(vars(given)),
                expected="candidates >= 3, seeds >= 2, threads >= 1",
                do="correct the options",
            )
        show(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def show(given: argparse.Namespace) -> None:
    """Make the runs and print the table; raises UserError when too many diverge."""
    losses = []
    for number, point in enumerate(candidates(given.overrides, given.candidates, given.first_seed)):
        row = [
            kept_run(
                given.folder,
                [*given.overrides, *point, f"seed={seed}", "training.evaluations=1"],
                f"candidate {number}, seed {seed}",
            )
            for seed in list_common_seeds(given.first_seed, given.seeds)
        ]
        if all(run.curve is not None for run in row):
            losses.append([run.loss for run in row])
    if len(losses) < 3:
        raise user_error(
            got=f"{len(losses)} whole candidates",
            expected="at least 3",
            do="more candidates, or a lower learning rate",
        )
    found = measure_common_seeds(losses)
    low, high = found.ratio_interval
    print(
        f"\n{len(losses)} candidates of {given.candidates}, {given.seeds} seeds each, validation loss [nats/token]:\n"
    )
    cells = {
        "standard deviation over candidates (of their means)": f"{found.candidate_deviation:.4f}",
        "standard deviation over seeds (of one candidate)": f"{found.seed_deviation:.4f}",
        "standard deviation of a difference, different seeds": f"{found.different**0.5:.4f}",
        "standard deviation of a difference, common seeds": f"{found.common**0.5:.4f}",
        "variance ratio, different over common": f"{found.ratio:.2f} (95 % bootstrap over candidates {low:.2f} to {high:.2f})",
        "rank correlation of the candidates between two seeds": f"{found.rank_correlation:.2f}",
    }
    print(table([HEAD, *([name, value] for name, value in cells.items())]))


if __name__ == "__main__":
    sys.exit(main())
