"""Controller time of a trial in the study: start, report and finish of 48 parameters and 25 metrics, and the controller's memory.

python benchmarks/bench_study.py [--trials 1000] [--reports 4] [--url URL]      (default: SQLite in a temporary folder)
The bare commit is one row written and committed by the same database just before: what no ledger can go below.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

PARAMETERS = 48
METRICS = 25
BLOCK = 1000


def resident() -> float:
    """Memory of this process now [MiB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def bare_commit(study: Study, count: int = 200) -> float:
    """Median time of one durable row [s]."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        study.write_note("bench", number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def one_trial(
    book: PhaseLedger, index: int, unit: tuple[float, ...], reports: int
) -> dict[str, float]:
    """Seconds of each call of one trial."""
    marks = [time.perf_counter()]
    trial = book.start(index, unit, book.space.to_values(unit), index // 16)
    marks.append(time.perf_counter())
    for step in range(reports):
        book.report(trial, 1.0 / (1 + step), step)
    marks.append(time.perf_counter())
    book.finish(
        trial, Result(1.0, 0.1, {f"metric_{number}": number / 7 for number in range(METRICS)})
    )
    marks.append(time.perf_counter())
    return dict(
        zip(
            ("start", "report", "finish"),
            (after - before for before, after in itertools.pairwise(marks)),
            strict=True,
        )
    )


def main() -> None:
    """Print milliseconds per trial and memory for each block of trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=BLOCK)
    parser.add_argument("--reports", type=int, default=4)
    parser.add_argument("--url")
    options = parser.parse_args()
    space = Space(
        tuple(Dimension(f"parameter_{number}", "lin", 0.0, 1.0) for number in range(PARAMETERS))
    )
    with tempfile.TemporaryDirectory() as name:
        place = StudyLocation(
            f"bench-{uuid.uuid4().hex[:8]}",
            Path(name),
            options.url or f"sqlite:///{name}/study.db",
            "never",
        )
        with Study(place, {}) as study:
            book = PhaseLedger(study, space, "search", {"seed": 0})
            commit = bare_commit(study)
            print(
                f"{'trials':>8} {'start':>8} {'report':>8} {'finish':>8} {'whole':>8} {'p99':>8}  ms; {'memory':>8} MiB"
            )
            for first in range(0, options.trials, BLOCK):
                count = min(BLOCK, options.trials - first)
                taken = [
                    one_trial(book, first + i, (i / BLOCK,) * PARAMETERS, options.reports)
                    for i in range(count)
                ]
                whole = sorted(sum(times.values()) for times in taken)
                middle = [
                    statistics.median(times[call] for times in taken) for call in taken[0]
                ] + [statistics.median(whole)]
                row = [1000 * seconds for seconds in (*middle, whole[int(0.99 * len(whole))])]
                print(
                    f"{first + count:>8} "
                    + " ".join(f"{value:8.2f}" for value in row)
                    + f"      {resident():8.1f}",
                    flush=True,
                )
            begun = time.perf_counter()
            assert len(study.read_trials()) == options.trials
            print(
                f"bare commit {1000 * commit:.2f} ms; reading all trials {time.perf_counter() - begun:.1f} s"
            )


if __name__ == "__main__":
    main()
