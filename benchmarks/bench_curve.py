"""How well the end of a training run is known before it ends: `make bench-curve`.

    python benchmarks/bench_curve.py [--candidates 16] [--seed 0] [overrides of conf/train.yaml ...]

Random points of the search space are trained to the end, with many validations, and again with a quarter, half and three
quarters of the steps on a schedule of their own. Compared with the loss at the end of the whole run: the last loss of the
prefix, the power law fitted to the prefix, and the short run. Finished runs are kept in outputs/curve: the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from kept import Kept, candidates, kept_run
from ladder import ROOT, table

from synaptune.core.errors import UserError, user_error
from synaptune.search.objective.learning_curve import (
    LEAST_POINTS,
    Prediction,
    extrapolate,
    measure_errors,
)

FRACTIONS = (0.25, 0.5, 0.75)
EVALUATIONS = 20
HEAD = [
    "part of the steps",
    "method",
    "mean error",
    "RMSE",
    "RMSE less the mean error",
    "in the 95 % interval",
    "rank correlation",
]


class Candidate:
    """The runs of one point of the search space: the whole one, and by fraction those with their own schedule."""

    def __init__(self, whole: Kept, short: dict[float, Kept]) -> None:
        self.whole, self.short = whole, short

    @property
    def complete(self) -> bool:
        """Whether none of its runs diverged."""
        return None not in (self.whole.curve, *(run.curve for run in self.short.values()))

    def prefix(self, fraction: float) -> list[tuple[float, float]]:
        """(step, loss) of the whole run as far as a fraction of its steps."""
        assert self.whole.curve is not None
        return [
            (step, loss) for step, loss in self.whole.curve if step <= fraction * self.whole.steps
        ]


def measured(folder: Path, common: Sequence[str], count: int, seed: int) -> Iterator[Candidate]:
    """The candidates, each trained where it is not yet."""
    for number, point in enumerate(candidates(common, count, seed)):
        run = [*common, *point]
        whole = kept_run(
            folder, [*run, f"training.evaluations={EVALUATIONS}"], f"candidate {number}, whole"
        )
        parts = {fraction: round(whole.steps * fraction) for fraction in FRACTIONS}
        yield Candidate(
            whole,
            {
                fraction: kept_run(
                    folder,
                    [*run, f"training.steps={steps}", "training.evaluations=1"],
                    f"candidate {number}, {steps} steps",
                )
                for fraction, steps in parts.items()
            },
        )


def rows(found: Sequence[Candidate]) -> Iterator[list[str]]:
    """The cells of the table, three methods for each fraction."""
    final = [candidate.whole.loss for candidate in found]
    for fraction in FRACTIONS:
        fits = [
            extrapolate(candidate.prefix(fraction), candidate.whole.steps) for candidate in found
        ]
        methods: dict[str, list[Prediction | float]] = {
            "last value of the prefix": [candidate.prefix(fraction)[-1][1] for candidate in found],
            "power law on the prefix": [fit for fit in fits if fit is not None],
            "short run, own schedule": [candidate.short[fraction].loss for candidate in found],
        }
        for name, predictions in methods.items():
            found_errors = measure_errors(predictions, final)
            covered = "-" if found_errors.coverage is None else f"{found_errors.coverage:.0%}"
            numbers = (
                f"{found_errors.mean:+.4f}",
                f"{found_errors.rmse:.4f}",
                f"{found_errors.spread:.4f}",
            )
            yield [
                f"{fraction:.0%}",
                name,
                *numbers,
                covered,
                f"{found_errors.rank_correlation:.2f}",
            ]


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--candidates", type=int, default=16, help="random points of the search space (default 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the points (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (default 2)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "outputs" / "curve",
        help="where finished runs are kept",
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(given.threads)
    try:
        if given.candidates < 3 or given.threads < 1:
            raise user_error(
                got=str(vars(given)),
                expected="candidates >= 3, threads >= 1",
                do="correct the options",
            )
        tried = list(measured(given.folder, given.overrides, given.candidates, given.seed))
        found = [candidate for candidate in tried if candidate.complete]
        if (
            len(found) < 3
            or min(len(candidate.prefix(FRACTIONS[0])) for candidate in found) < LEAST_POINTS
        ):
            raise user_error(
                got=f"{len(found)} whole candidates",
                expected=f"at least 3, with {LEAST_POINTS} validations in {FRACTIONS[0]:.0%} of the steps",
                do="more candidates, or a scale with more steps",
            )
        print(
            f"\n{len(found)} candidates of {len(tried)}; errors in nats/token, positive when the prediction is too high:\n"
        )
        print(table([HEAD, *rows(found)]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
