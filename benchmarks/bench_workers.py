"""What workers bring and what the controller costs, with trials that only sleep.

    python benchmarks/bench_workers.py [speedup] [overhead] [--trials 80] [--seconds 1.0] [--server]

speedup: the same random search on 1 and on 4 worker processes of this machine and (where it is installed) of a local Ray cluster;
wall time from the first trial's start to the last one's end, and of the whole call with the start of the workers. overhead: a CMA
search of 10 parameters with trials that do nothing, in this process: milliseconds a trial and the memory of the controller as the
trials grow. With --server the studies are on a PostgreSQL server.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from synaptune import TrialManager
from synaptune.search.workers.config import WorkersConfig

ROOT = Path(__file__).resolve().parent.parent
SPACE = {f"x{number}": ("uniform", 0.0, 1.0) for number in range(10)}
BLOCKS = (200, 1000, 2000, 3000, 4000, 5000)


def sleeping(seconds: float):
    """A trial that sleeps."""

    def objective(params):
        time.sleep(seconds)
        return params["x0"]

    return objective


def speedup(kind: str, given: argparse.Namespace, folder: Path, url: str | None) -> str:
    """One line for a kind of workers."""
    spans, walls = {}, {}
    for count in (1, 4):
        name = f"{kind}{count}"
        workers = WorkersConfig(kind, count, cpus=0.25)
        manager = TrialManager(
            name,
            given.trials,
            "minimize",
            url,
            "random",
            workers=workers,
            directory=folder / name,
            progress=False,
        )
        ends: list[float] = []
        began = time.perf_counter()
        manager.optimize(
            sleeping(given.seconds),
            SPACE,
            [lambda manager, trial, ends=ends: ends.append(time.perf_counter())],
        )
        walls[count], spans[count] = time.perf_counter() - began, ends[-1] - ends[0] + given.seconds
    return f"{kind}: 4 workers / 1 worker {spans[1] / spans[4]:.2f} x ({walls[1] / walls[4]:.2f} x with the start of the workers)"


def overhead(folder: Path, url: str | None, most: int) -> None:
    """Lines of milliseconds a trial and memory at each block."""
    times: list[float] = [time.perf_counter()]

    def watch(manager, trial):
        times.append(time.perf_counter())
        count = len(times) - 1
        if count in BLOCKS:
            gaps = [
                1000.0 * (after - before)
                for before, after in zip(times[-201:-1], times[-200:], strict=True)
            ]
            memory = (
                int(Path("/proc/self/statm").read_text().split()[1])
                * resource.getpagesize()
                / 2**20
            )
            print(
                f"trial {count}: median {statistics.median(gaps):.1f} ms of the last 200, memory {memory:.0f} MiB",
                flush=True,
            )

    manager = TrialManager(
        "overhead", most, "minimize", url, "cma", directory=folder / "overhead", progress=False
    )
    began = time.perf_counter()
    manager.optimize(
        lambda params: sum((value - 0.3) ** 2 for value in params.values()), SPACE, [watch]
    )
    print(f"{most} trials: mean {1000.0 * (time.perf_counter() - began) / most:.1f} ms a trial")


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=["speedup", "overhead"],
        help="speedup, overhead (default: both)",
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
        "--server", action="store_true", help="keep the studies on a PostgreSQL server"
    )
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        url = None
        if given.server:
            sys.path.insert(0, str(ROOT / "tests"))
            from helpers.servers import run_postgres

            url = stack.enter_context(run_postgres()).make_url()
        print(f"studies on {'PostgreSQL' if url else 'SQLite'}")
        if "speedup" in given.parts:
            for kind in ("processes", *(["ray"] if importlib.util.find_spec("ray") else [])):
                print(speedup(kind, given, Path(place), url), flush=True)
        if "overhead" in given.parts:
            overhead(Path(place), url, given.most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
