"""Accuracy of the predictions of a run's final loss before its end: `make bench-curve`.

    python benchmarks/bench_curve.py [--candidates 16] [--seed 0] [overrides of conf/train.yaml ...]

Random points of the search space are trained to the end, with many validations. They are trained
again with a quarter, half and three quarters of the steps on a schedule of that length. Three
predictions are compared with the loss at the end of the full run: the last loss of the prefix, the
power law fitted to the prefix, and the short run. Finished runs are stored in outputs/curve, so
that the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from run_cache import CachedRun, draw_candidates, load_or_train
from runs import ROOT, format_table

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
    """The runs of one point of the search space.

    Attributes:
        full: the run with all steps.
        short: the runs with a fraction of the steps and a schedule of that length, by fraction.
    """

    def __init__(self, full: CachedRun, short: dict[float, CachedRun]) -> None:
        self.full, self.short = full, short

    @property
    def is_complete(self) -> bool:
        """Whether none of the runs diverged."""
        return None not in (self.full.curve, *(run.curve for run in self.short.values()))

    def get_prefix(self, fraction: float) -> list[tuple[float, float]]:
        """Return (step, loss) of the full run up to a fraction of its steps."""
        assert self.full.curve is not None
        return [
            (step, loss) for step, loss in self.full.curve if step <= fraction * self.full.steps
        ]


def train_candidates(
    folder: Path, common: Sequence[str], count: int, seed: int
) -> Iterator[Candidate]:
    """Train the candidates, or load those that are stored in the folder."""
    for number, point in enumerate(draw_candidates(common, count, seed)):
        overrides = [*common, *point]
        full = load_or_train(
            folder, [*overrides, f"training.evaluations={EVALUATIONS}"], f"candidate {number}, full"
        )
        steps_by_fraction = {fraction: round(full.steps * fraction) for fraction in FRACTIONS}
        yield Candidate(
            full,
            {
                fraction: load_or_train(
                    folder,
                    [*overrides, f"training.steps={steps}", "training.evaluations=1"],
                    f"candidate {number}, {steps} steps",
                )
                for fraction, steps in steps_by_fraction.items()
            },
        )


def make_rows(candidates: Sequence[Candidate]) -> Iterator[list[str]]:
    """Make the rows of the table, three methods for each fraction."""
    final = [candidate.full.loss for candidate in candidates]
    for fraction in FRACTIONS:
        prefixes = [candidate.get_prefix(fraction) for candidate in candidates]
        fits = [
            extrapolate(prefix, candidate.full.steps)
            for prefix, candidate in zip(prefixes, candidates, strict=True)
        ]
        methods: dict[str, list[Prediction | float]] = {
            "last value of the prefix": [prefix[-1][1] for prefix in prefixes],
            "power law on the prefix": [fit for fit in fits if fit is not None],
            "short run, own schedule": [candidate.short[fraction].loss for candidate in candidates],
        }
        for name, predictions in methods.items():
            errors = measure_errors(predictions, final)
            yield [
                f"{fraction:.0%}",
                name,
                f"{errors.mean:+.4f}",
                f"{errors.rmse:.4f}",
                f"{errors.spread:.4f}",
                "-" if errors.coverage is None else f"{errors.coverage:.0%}",
                f"{errors.rank_correlation:.2f}",
            ]


def main() -> int:
    """Run the command and return its exit code."""
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
        help="folder of the finished runs",
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py, e.g. scale=smoke")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    try:
        if options.candidates < 3 or options.threads < 1:
            raise user_error(
                got=str(vars(options)),
                expected="candidates >= 3, threads >= 1",
                do="correct the options",
            )
        trained = list(
            train_candidates(options.folder, options.overrides, options.candidates, options.seed)
        )
        complete = [candidate for candidate in trained if candidate.is_complete]
        shortest = FRACTIONS[0]
        if (
            len(complete) < 3
            or min(len(candidate.get_prefix(shortest)) for candidate in complete) < LEAST_POINTS
        ):
            raise user_error(
                got=f"{len(complete)} candidates without a diverged run",
                expected=f"at least 3, with {LEAST_POINTS} validations in {shortest:.0%} of "
                "the steps",
                do="use more candidates, or a scale with more steps",
            )
        print(
            f"\n{len(complete)} candidates of {len(trained)}; errors in nats/token, "
            "positive when the prediction is too high:\n"
        )
        print(format_table([HEAD, *make_rows(complete)]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
