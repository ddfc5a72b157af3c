"""Time and memory that a trial costs the controller in the study.

    python benchmarks/bench_study.py [--trials 1000] [--reports 4] [--url URL]

The benchmark starts, reports and finishes trials with 48 parameters and 25 metrics. The default
database is SQLite in a temporary folder. The plain commit is one row that the same database writes
and commits just before: a lower bound for every call.
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


def read_memory() -> float:
    """Read the resident memory of this process [MiB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def time_commit(study: Study, count: int = 200) -> float:
    """Return the median time of one durable row [s]."""
    times = []
    for number in range(count):
        started_at = time.perf_counter()
        study.write_note("bench", number)
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def time_trial(
    ledger: PhaseLedger, index: int, unit: tuple[float, ...], reports: int
) -> dict[str, float]:
    """Return the time of each call of one trial [s]."""
    marks = [time.perf_counter()]
    trial = ledger.start(index, unit, ledger.space.to_values(unit), index // 16)
    marks.append(time.perf_counter())
    for step in range(reports):
        ledger.report(trial, 1.0 / (1 + step), step)
    marks.append(time.perf_counter())
    ledger.finish(
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
        location = StudyLocation(
            f"bench-{uuid.uuid4().hex[:8]}",
            Path(name),
            options.url or f"sqlite:///{name}/study.db",
            "never",
        )
        with Study(location, {}) as study:
            ledger = PhaseLedger(study, space, "search", {"seed": 0})
            commit = time_commit(study)
            heads = ("trials", "start", "report", "finish", "total", "p99")
            print(" ".join(f"{head:>8}" for head in heads) + f"  ms; {'memory':>8} MiB")
            for first in range(0, options.trials, BLOCK):
                count = min(BLOCK, options.trials - first)
                times_by_trial = [
                    time_trial(ledger, first + i, (i / BLOCK,) * PARAMETERS, options.reports)
                    for i in range(count)
                ]
                totals = sorted(sum(times.values()) for times in times_by_trial)
                medians = [
                    statistics.median(times[call] for times in times_by_trial)
                    for call in times_by_trial[0]
                ]
                medians.append(statistics.median(totals))
                row = [1000 * seconds for seconds in (*medians, totals[int(0.99 * len(totals))])]
                print(
                    f"{first + count:>8} "
                    + " ".join(f"{value:8.2f}" for value in row)
                    + f"      {read_memory():8.1f}",
                    flush=True,
                )
            started_at = time.perf_counter()
            assert len(study.read_trials()) == options.trials
            seconds = time.perf_counter() - started_at
            print(f"plain commit {1000 * commit:.2f} ms; reading all trials {seconds:.1f} s")


if __name__ == "__main__":
    main()
