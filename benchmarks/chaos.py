"""Crash test of a search: its controller, its workers and its database server are killed at random.

    python benchmarks/chaos.py [--kills 50] [--trials 400] [--workers 2] [--server] [--seed 0]

The same search runs once undisturbed and once with kills. The final trials (order, parameters,
objectives, states) must be the same, without duplicates. The controller and the workers are killed
with SIGKILL. With --server the study is stored on a PostgreSQL server of its own, which is stopped
in immediate mode (without clean-up) and started again. The exit code is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPACE = {f"x{number}": ("uniform", -5.0, 10.0) for number in range(5)} | {
    "n": ("int", 0, 12),
    "rate": ("log_uniform", 1e-4, 1.0),
}


def make_manager(folder: Path, url: str | None, trials: int, workers: int):
    """Make the manager of the search."""
    from synaptune import TrialManager

    return TrialManager(
        "chaos",
        trials,
        storage=url,
        sampler="cma",
        workers=workers,
        retries=10**6,
        seed=3,
        directory=folder,
        progress=False,
    )


def run_search(folder: Path, url: str | None, trials: int, workers: int, seconds: float) -> None:
    """Run the search, or continue it; this process may be killed."""

    def objective(params):
        time.sleep(seconds)
        return (
            sum((params[f"x{number}"] - number) ** 2 for number in range(5))
            + params["n"]
            + abs(params["rate"] - 0.1)
        )

    make_manager(folder, url, trials, workers).optimize(objective, SPACE)


def list_trials(folder: Path, url: str | None, trials: int, workers: int) -> list[tuple]:
    """List the facts of the trials that must not depend on kills."""
    return [
        (trial.index, trial.values, trial.objective, trial.state)
        for trial in make_manager(folder, url, trials, workers).trials
    ]


def run_with_kills(
    options: argparse.Namespace, folder: Path, server, url: str | None
) -> Counter[str]:
    """Run the search to its end while its parts are killed.

    Returns:
        The number of kills by kind.
    """
    draw, kills = random.Random(options.seed), Counter()
    kinds = [
        "controller",
        *(["worker"] if options.workers > 1 else []),
        *(["server"] if server is not None else []),
    ]
    command = [
        sys.executable,
        __file__,
        "--attempt",
        str(folder),
        "--trials",
        str(options.trials),
        "--workers",
        str(options.workers),
    ]
    command += ["--seconds", str(options.seconds)]
    command += ["--url", url] if url else []
    process = None
    while sum(kills.values()) < options.kills:
        process = process or subprocess.Popen(command)
        time.sleep(draw.uniform(1.0, 4.0))
        if process.poll() is not None:
            if process.returncode == 0:
                break
            raise SystemExit(f"the search ended by itself with code {process.returncode}")
        kind = draw.choice(kinds)
        if kind == "controller":
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = None
        elif kind == "server":
            server.stop("immediate")
            server.start()
        elif not kill_worker(process.pid, draw):
            continue
        kills[kind] += 1
    process = process or subprocess.Popen(command)
    if process.wait() != 0:
        raise SystemExit(f"the search ended with code {process.returncode}")
    return kills


def kill_worker(controller: int, draw: random.Random) -> bool:
    """Kill a random child of the controller; False when it has none."""
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    if not children:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(draw.choice(children)), signal.SIGKILL)
    return True


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=50, help="number of kills (default %(default)s)"
    )
    parser.add_argument(
        "--trials", type=int, default=400, help="trials of the search (default %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="number of workers; 1 runs in the controller's process (default %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="sleep of a trial (default %(default)s)"
    )
    parser.add_argument(
        "--server", action="store_true", help="use a PostgreSQL server, and kill it as well"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the kills (default %(default)s)"
    )
    parser.add_argument("--attempt", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attempt is not None:
        run_search(options.attempt, options.url, options.trials, options.workers, options.seconds)
        return 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, server, url = Path(name), None, None
        if options.server:
            sys.path.insert(0, str(ROOT / "tests"))
            from helpers.servers import run_postgres

            server = stack.enter_context(run_postgres())
            url = server.make_url()
        run_search(folder / "undisturbed", None, options.trials, options.workers, 0.0)
        expected = list_trials(folder / "undisturbed", None, options.trials, options.workers)
        started_at = time.monotonic()
        kills = run_with_kills(options, folder / "killed", server, url)
        trials = list_trials(folder / "killed", url, options.trials, options.workers)
    by_kind = ", ".join(f"{count} of the {kind}" for kind, count in sorted(kills.items()))
    print(f"{sum(kills.values())} kills ({by_kind})")
    verdict = "the same as undisturbed" if trials == expected else "NOT the same"
    print(f"{len(trials)} trials in {time.monotonic() - started_at:.0f} s; {verdict}")
    return 0 if trials == expected else 1


if __name__ == "__main__":
    sys.exit(main())
