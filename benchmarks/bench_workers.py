"""Speed-up by workers, overhead of the controller, and throughput of a population.

    python benchmarks/bench_workers.py [speedup] [overhead] [--trials 80] [--seconds 1.0] [--server]
    python benchmarks/bench_workers.py population [scale=smoke] [training.steps=50]

speedup: trials that only sleep; the same random search on 1 and on 4 worker processes of this
machine and, where it is installed, of a local Ray cluster. Printed are the ratios of the wall time
from the first trial's start to the last one's end, and of the whole call with the start of the
workers.

overhead: a CMA search of 10 parameters with trials that do nothing, in this process. Printed are
the milliseconds of a trial and the memory of the controller as the number of trials grows.

population: the same 8, 16 and 32 random points of phase 1 in two worker processes, as one program
(`workers=population`), and as one program in each of two processes, in turns; words with = are
overrides of all. Printed are the wall times from the first trial's start to the last one's end, and
their ratios.

With --server the studies are stored on a PostgreSQL server.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from synaptune import TrialManager
from synaptune.search.workers.config import WorkersConfig
from synaptune.study.reader import find_study

ROOT = Path(__file__).resolve().parent.parent
SPACE = {f"x{number}": ("uniform", 0.0, 1.0) for number in range(10)}
BLOCKS = (200, 1000, 2000, 3000, 4000, 5000)
POPULATIONS = (8, 16, 32)


def make_sleeping_objective(seconds: float):
    """Make an objective whose trials sleep [s]."""

    def objective(params):
        time.sleep(seconds)
        return params["x0"]

    return objective


def measure_speedup(kind: str, options: argparse.Namespace, folder: Path, url: str | None) -> str:
    """Measure the speed-up of 4 workers of a kind over 1 worker, and describe it in a line."""
    spans, walls = {}, {}
    for count in (1, 4):
        name = f"{kind}{count}"
        workers = WorkersConfig(kind, count, cpus=0.25)
        manager = TrialManager(
            name,
            options.trials,
            "minimize",
            url,
            "random",
            workers=workers,
            directory=folder / name,
            progress=False,
        )
        ends: list[float] = []
        started_at = time.perf_counter()
        manager.optimize(
            make_sleeping_objective(options.seconds),
            SPACE,
            [lambda manager, trial, ends=ends: ends.append(time.perf_counter())],
        )
        walls[count] = time.perf_counter() - started_at
        spans[count] = ends[-1] - ends[0] + options.seconds
    return (
        f"{kind}: 4 workers / 1 worker {spans[1] / spans[4]:.2f} x "
        f"({walls[1] / walls[4]:.2f} x with the start of the workers)"
    )


def measure_overhead(folder: Path, url: str | None, most: int) -> None:
    """Print the time of a trial [ms] and the controller's memory at each block of trials."""
    times: list[float] = [time.perf_counter()]

    def print_progress(manager, trial):
        times.append(time.perf_counter())
        count = len(times) - 1
        if count in BLOCKS:
            intervals = [
                1000.0 * (after - before)
                for before, after in zip(times[-201:-1], times[-200:], strict=True)
            ]
            memory = (
                int(Path("/proc/self/statm").read_text().split()[1])
                * resource.getpagesize()
                / 2**20
            )
            print(
                f"trial {count}: median {statistics.median(intervals):.1f} ms of the last 200, "
                f"memory {memory:.0f} MiB",
                flush=True,
            )

    manager = TrialManager(
        "overhead", most, "minimize", url, "cma", directory=folder / "overhead", progress=False
    )
    started_at = time.perf_counter()
    manager.optimize(
        lambda params: sum((value - 0.3) ** 2 for value in params.values()),
        SPACE,
        callbacks=[print_progress],
    )
    print(
        f"{most} trials: mean {1000.0 * (time.perf_counter() - started_at) / most:.1f} ms a trial"
    )


def measure_population(folder: Path, overrides: list[str], rounds: int) -> None:
    """Print the wall times of two worker processes and of populations, and their ratios."""
    for count in POPULATIONS:
        together = ("workers=population", f"workers.count={count}")
        ways = {
            "two processes": ("workers=processes", "workers.count=2"),
            "population": together,
            "two populations": (*together, "workers.devices=[cpu,cpu]"),
        }
        for turn in range(rounds):
            spans = {}
            for name, words in ways.items():
                study = folder / f"{name.replace(' ', '-')}-{count}-{turn}"
                command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/sweeper=random"]
                command += [f"hydra.sweeper.optim.budget={count}", f"study.dir={study}"]
                command += ["logger=csv", "logger.progress=off", *words, *overrides]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
                times = find_study(str(study))
                span = max(times.end_times.values()) - min(times.start_times.values())
                spans[name] = span.total_seconds()
            text = ", ".join(
                f"{name} {seconds:.0f} s ({spans['two processes'] / seconds:.2f} x)"
                for name, seconds in spans.items()
            )
            print(f"{count} candidates: {text}", flush=True)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=["speedup", "overhead"],
        help="speedup, overhead (default: both), population, and overrides of the population",
    )
    parser.add_argument(
        "--trials", type=int, default=80, help="sleeping trials of a search (default %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="sleep of a trial (default %(default)s)"
    )
    parser.add_argument(
        "--most", type=int, default=5000, help="trials of the overhead part (default %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of a population (default %(default)s)"
    )
    parser.add_argument(
        "--server", action="store_true", help="store the studies on a PostgreSQL server"
    )
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        url = None
        if options.server:
            sys.path.insert(0, str(ROOT / "tests"))
            from helpers.servers import run_postgres

            url = stack.enter_context(run_postgres()).make_url()
        print(f"studies on {'PostgreSQL' if url else 'SQLite'}")
        if "speedup" in options.parts:
            for kind in ("processes", *(["ray"] if importlib.util.find_spec("ray") else [])):
                print(measure_speedup(kind, options, Path(folder), url), flush=True)
        if "overhead" in options.parts:
            measure_overhead(Path(folder), url, options.most)
        if "population" in options.parts:
            overrides = [part for part in options.parts if "=" in part]
            measure_population(Path(folder), overrides, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
